"""Learning a unified classifier incrementally via rebalancing (Hou et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

from nacre.data.memory import PerClass
from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy, MarginRanking
from nacre.losses.distillation import FeatureCosine
from nacre.losses.loss import Loss
from nacre.methods.shared import new_means, seen_samples
from nacre.models.backbones import signed
from nacre.models.model import Model, build_model
from nacre.training.gradients import HoldRows
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Adjust, Fit, Phase, Remember, Work


@dataclass(frozen=True, kw_only=True)
class LUCIR(Method):
    """A cosine head, features held in their direction, and a margin between exemplars and new classes (eq. 3-9).

    Rows of known classes stay where they are (section 3.3). As in the authors' code, the weight of eq. 6 grows with known classes
    over new ones, and the margin is taken in the mean over the rivals, where eq. 8 sums it. The paper ends with a class-balanced
    fine-tuning on ImageNet only; it is left out.
    """

    family = "representation"
    paper = "Hou et al., CVPR 2019"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "old model"})

    head: str = "cosine"
    less_forget: float = 5.0
    """Of the features' direction, times sqrt(known / new)."""
    ranking: float = 1.0
    """Of the margin ranking."""
    margin: float = 0.5
    """Between cosines, in [0, 2]."""
    nearest: int = 2
    """New classes that an exemplar is compared with."""

    def build(self, spec: ImageSpec) -> Model:
        """Without the last rectifier, so that features may point anywhere."""
        model = build_model(self.backbone, self.head, spec)
        signed(model.backbone)
        return model

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Imprint the new rows, fit, remember."""
        loss = Loss(classification=CrossEntropy())
        if stage.known:
            if stage.new:
                yield Adjust("imprint", self.imprint)
            loss = loss.adding(less_forget=self.less_forget * sqrt(stage.known / max(1, len(stage.new))) * FeatureCosine())
            loss = loss.adding(ranking=self.ranking * MarginRanking(self.margin, self.nearest)) if stage.new else loss
        data, held = seen_samples(knowledge, stage), HoldRows(stage.first)
        yield Fit(loss, data, knowledge.model, teacher=knowledge.teacher, optim=self.optim_of(stage), gradient=held)
        yield Remember()

    def imprint(self, work: Work) -> None:
        """New rows are the directions of their classes' mean features, as long as known rows are (the authors' code)."""
        rows, known = work.knowledge.model.head.rows.weight, work.stage.known
        rows[known:] = new_means(work) * rows[:known].norm(dim=1).mean()
