"""GDumb: greedily store, and learn from the store alone (Prabhu et al., ECCV 2020, algorithm 1 and section 3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nacre.data.memory import PerClass
from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.methods.shared import afresh
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Fit, Phase, Remember


@dataclass(frozen=True, kw_only=True)
class GDumb(Method):
    """A balanced store, and a network that is trained from fresh weights on nothing but it.

    What is stored is drawn at random, whatever `--selection` says: a network with fresh weights has nothing to choose by. The paper
    trains with CutMix (`--set augment.mix=cutmix`).
    """

    family = "replay"
    paper = "Prabhu et al., ECCV 2020"
    budget = PerClass(20)
    needs = frozenset({"exemplars"})

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Start afresh."""
        afresh(self, knowledge, stage)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Store, then fit."""
        yield Remember(worth=torch.rand(len(stage.train) + len(knowledge.memory)))
        yield Fit(Loss(classification=CrossEntropy()), knowledge.memory.samples(), knowledge.model, optim=self.optim_of(stage))
