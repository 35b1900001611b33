"""Dark experience replay++: remembered images come with the logits they had (Buzzega et al., NeurIPS 2020, eq. 6)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.memory import PerClass
from nacre.data.replay import Rehearsal
from nacre.data.stream import Stage
from nacre.losses.loss import Loss
from nacre.losses.rehearsal import Dark, NewCrossEntropy, RememberedCrossEntropy
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Fit, Phase, Remember


@dataclass(frozen=True, kw_only=True)
class DERpp(Method):
    """Cross-entropy on the new images; squared error to stored logits and cross-entropy on two draws of remembered ones.

    The paper fills a reservoir while it trains and stores the logits of that moment; here exemplars are chosen, and their
    logits stored, when a stage ends. New and remembered images share a forward pass, and so their batch norms' statistics; the authors
    show them apart. The squared error is a mean over the logits that were stored, theirs over those of all classes to come.
    """

    family = "replay"
    paper = "Buzzega et al., NeurIPS 2020"
    budget = PerClass(20)
    needs = frozenset({"exemplars"})

    alpha: float = 0.3
    """Of the stored logits."""
    beta: float = 0.5
    """Of the remembered labels."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """One fit, then the exemplars with their logits."""
        memory = knowledge.memory
        loss = Loss(classification=NewCrossEntropy())
        if len(memory):
            loss = loss.adding(dark=self.alpha * Dark(), rehearsal=self.beta * RememberedCrossEntropy(half=True))
        joins = Rehearsal(memory.samples(), memory.stored, ratio=2)
        yield Fit(loss, stage.train, knowledge.model, optim=self.optim_of(stage), rehearsal=joins)
        yield Remember(answers=True)
