"""Incremental classifier and representation learning (Rebuffi et al., CVPR 2017, algorithms 1-5)."""

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
from nacre.training.method import Method
from nacre.training.phases import Phase, Remember


@dataclass(frozen=True, kw_only=True)
class ICaRL(Method):
    """Distil, keep herded exemplars, answer by the nearest mean of their features.

    The paper trains with a sigmoid per class; with softmax and softened distillation, as here, the field's later tables are
    made. Its authors' code averages every mean over flipped images as well.
    """

    family = "representation"
    paper = "Rebuffi et al., CVPR 2017"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "old model"})

    weight: float = 1.0
    """Of the distillation."""
    temperature: float = 2.0
    """Of the distillation."""

    def build(self, spec: ImageSpec) -> Model:
        """With a nearest-mean readout."""
        return build_model(self.backbone, self.head, spec, readout=NearestMean)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Update the representation, construct the exemplar set, take its means."""
        yield distilling_fit(knowledge, stage, self.temperature, self.optim_of(stage), weight=self.weight)
        yield Remember()
        yield class_means()
