"""Averaged gradient episodic memory (Chaudhry et al., ICLR 2019, eq. 10-11)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.memory import PerClass
from nacre.data.replay import Rehearsal
from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.training.gradients import NoConflict
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Fit, Phase, Remember


@dataclass(frozen=True, kw_only=True)
class AGEM(Method):
    """Cross-entropy on the new images, whose gradient loses what would raise the loss of the remembered ones.

    All classes seen compete; the paper tells the model which task an image belongs to. Without that it is at finetuning's level in the
    literature too: what may not raise the loss of remembered images need not lower it, and the new classes win. The reference batch is as
    large as the batch of new images; the authors' is of 256 images beside ten new ones. Their single pass of plain descent is
    `optim.epochs=1`, `optim.momentum=0` and `optim.weight_decay=0`: momentum and decay act on what was projected.
    """

    family = "weight regularization"
    paper = "Chaudhry et al., ICLR 2019"
    budget = PerClass(20)
    needs = frozenset({"exemplars"})

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """One fit, then the exemplars."""
        reference = Rehearsal(knowledge.memory.samples(), apart=True)
        loss = Loss(classification=CrossEntropy())
        yield Fit(loss, stage.train, knowledge.model, optim=self.optim_of(stage), gradient=NoConflict(), rehearsal=reference)
        yield Remember()
