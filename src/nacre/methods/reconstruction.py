"""Classification and reconstruction in every stage: the method this project exists for.

From the public abstract of patent application CN113222100A (Dai & Lin): in the first stage the loss sums, per image, a
classification term and a reconstruction error term, and later stages go on so over their own group of images. The formulas
are this project's own: with the fraction of variance unexplained FVU, weights w and d, and k = known / seen classes,

    stage 1:   CE + w FVU
    stage t:   CE + w FVU + d KD, or without d (1 - k) (CE + w FVU) + k KD
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.memory import PerClass
from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.methods.shared import class_means, distilling_fit
from nacre.models.heads import NearestMean
from nacre.models.model import Model, build_model
from nacre.training.knowledge import Knowledge
from nacre.training.method import Decoding, Method
from nacre.training.phases import Phase, Remember


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Method):
    """Classify, reconstruct and distil with a cosine head; herded exemplars; answer by nearest class mean."""

    family = "representation"
    paper = "CN113222100A, public abstract"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "old model"})

    head: str = "cosine"
    decoding: Decoding | None = Decoding()
    distillation: float | None = 1.0
    """Weight d of the distillation beside classification; None: the shares of known and new classes."""
    temperature: float = 2.0
    """Of the distillation."""

    def build(self, spec: ImageSpec) -> Model:
        """With a nearest-mean readout."""
        return build_model(self.backbone, self.head, spec, readout=NearestMean)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """One fit, the exemplars, their means."""
        yield distilling_fit(knowledge, stage, self.temperature, self.optim_of(stage), weight=self.distillation)
        yield Remember()
        yield class_means()
