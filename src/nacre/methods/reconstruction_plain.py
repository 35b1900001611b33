"""Classification and reconstruction in every stage, and nothing else: the bare form of `nacre.methods.reconstruction`.

    stage 1:   CE + w FVU
    stage t:   (1 - k) (CE + w FVU) + k KD

with the fraction of variance unexplained FVU, the weight w, and k = known / seen classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.memory import PerClass
from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.methods.shared import balanced_fit, distilling_fit
from nacre.training.knowledge import Knowledge
from nacre.training.method import Decoding, Method
from nacre.training.optim import Optim
from nacre.training.phases import Phase, Remember


@dataclass(frozen=True, kw_only=True)
class ReconstructionPlain(Method):
    """Classify, reconstruct and distil; exemplars; answer by the head that was trained: everything else off."""

    family = "representation"
    paper = "CN113222100A, public abstract"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "old model"})

    head: str = "cosine"
    decoding: Decoding | None = Decoding()
    temperature: float = 2.0
    """Of the distillation."""
    balanced: Optim | None = None
    """How the head is fitted to the exemplars alone when a stage after the first ends; None: not at all."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """One fit, then the exemplars, and where asked the head on them."""
        yield distilling_fit(knowledge, stage, self.temperature, self.optim_of(stage))
        yield Remember()
        if self.balanced is not None and stage.known and len(knowledge.memory):
            yield balanced_fit(knowledge, CrossEntropy(), self.balanced)
