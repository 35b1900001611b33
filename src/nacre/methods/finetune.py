"""Train on the new classes alone: the lower bound, which forgets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Fit, Phase


@dataclass(frozen=True, kw_only=True)
class Finetune(Method):
    """Cross-entropy on the new images, no memory."""

    family = "baseline"
    paper = "Masana et al., TPAMI 2022"

    among: Literal["seen", "new"] = "seen"
    """Classes of the softmax: all seen, or only the new ones, which hides the forgetting of the head."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """One fit."""
        loss = Loss(classification=CrossEntropy(first=stage.first if self.among == "new" else 0))
        yield Fit(loss, stage.train, knowledge.model, optim=self.optim_of(stage))
