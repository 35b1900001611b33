"""Learning without forgetting: hold the old answers on the new images (Li & Hoiem, ECCV 2016, fig. 3 and eq. 1-4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.stream import Stage
from nacre.losses.distillation import Distillation
from nacre.losses.loss import Loss
from nacre.methods.shared import classification, seen_samples
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Fit, Phase, Remember


@dataclass(frozen=True, kw_only=True)
class LwF(Method):
    """Cross-entropy on the new classes, and the old model's softened answers to the new images.

    The paper's tasks have heads of their own; here they share one growing head, the class-incremental form that the field
    compares, and there is no warm-up of the new rows alone.
    """

    family = "representation"
    paper = "Li & Hoiem, ECCV 2016"
    needs = frozenset({"old model"})

    weight: float = 3.0
    """Of the distillation; the paper uses 1 with a head per task, class-incremental tables 3."""
    temperature: float = 2.0
    """Of the distillation."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """One fit; exemplars only where a budget is given."""
        distilled = (self.weight if stage.known else 0.0) * Distillation(self.temperature)
        loss = Loss(classification=classification(knowledge, stage), distillation=distilled)
        yield Fit(loss, seen_samples(knowledge, stage), knowledge.model, teacher=knowledge.teacher, optim=self.optim_of(stage))
        yield Remember()
