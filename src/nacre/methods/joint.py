"""Train on everything so far: the upper bound, which stores every image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.memory import EVERYTHING
from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.methods.shared import afresh, seen_samples
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Fit, Phase, Remember


@dataclass(frozen=True, kw_only=True)
class Joint(Method):
    """From fresh weights at every stage, cross-entropy over all images of all classes seen."""

    family = "upper bound"
    paper = "Masana et al., TPAMI 2022"
    budget = EVERYTHING
    needs = frozenset({"exemplars"})

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Start afresh."""
        afresh(self, knowledge, stage)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """One fit, then keep every image."""
        data = seen_samples(knowledge, stage)
        yield Fit(Loss(classification=CrossEntropy()), data, knowledge.model, optim=self.optim_of(stage))
        yield Remember()
