"""Train on the new classes and the exemplars alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.memory import PerClass
from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.methods.shared import seen_samples
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Fit, Phase, Remember


@dataclass(frozen=True, kw_only=True)
class Replay(Method):
    """Cross-entropy over all classes seen, on new images and exemplars."""

    family = "replay"
    paper = "Masana et al., TPAMI 2022"
    budget = PerClass(20)
    needs = frozenset({"exemplars"})

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """One fit, then the exemplars."""
        data = seen_samples(knowledge, stage)
        yield Fit(Loss(classification=CrossEntropy()), data, knowledge.model, optim=self.optim_of(stage))
        yield Remember()
