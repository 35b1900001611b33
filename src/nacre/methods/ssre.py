"""Self-sustaining representation expansion (Zhu et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.losses.prototypes import PrototypeReplay, SelectedCrossEntropy, SelectedDistance
from nacre.methods.shared import remember_means
from nacre.models.model import Model
from nacre.models.sided import sides_of, with_sides
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Adjust, Fit, Phase, Work


@dataclass(frozen=True, kw_only=True)
class SSRE(Method):
    """Learn new classes in 1x1 convolutions beside the old ones, fold them in, and distil what looks like an old class.

    After the first stage the main branch is held still while its sides learn (eq. 8-9); a sample counts for distillation by its
    likeness to the nearest class mean and for classification by what is left of it, as in the authors' code; the paper sets a
    threshold (eq. 10-11). Likeness is seen from the means' centre, below zero it is zero, and holds no gradient; means get no noise.
    Distances are averaged over the batch at the paper's lambda; the authors' code adds them up at one. AdamW stands for Adam.
    """

    family = "no exemplars"
    paper = "Zhu et al., CVPR 2022"
    by_class = ("prototypes",)
    needs = frozenset({"old model"})

    optim: Optim = Optim(name="adamw", lr=0.001, weight_decay=2e-4)
    temperature: float = 0.1
    """Of the logits."""
    distillation: float = 10.0
    """lambda: of the features' distance from the old model's."""
    prototypes: float = 10.0
    """Of the prototypes' classification."""

    def build(self, spec: ImageSpec) -> Model:
        """With convolutions that can open."""
        model = Method.build(self, spec)
        with_sides(model.backbone)
        return model

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Make room for the stage's classes, and after the first stage for what it adds to the convolutions."""
        knowledge.model.grow(stage.seen)
        for conv in sides_of(knowledge.model.backbone) if stage.index else ():
            conv.resize(1)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, fold, take the new classes' means."""
        model, statistics = knowledge.model, knowledge.statistics
        if stage.index == 0:
            yield Fit(Loss(classification=CrossEntropy(temperature=self.temperature)), stage.train, model, optim=self.optim)
        else:
            means, seed = statistics["prototypes"], int(torch.randint(2**40, ()))
            loss = Loss(
                classification=SelectedCrossEntropy(means, self.temperature),
                distillation=self.distillation * SelectedDistance(means),
                prototypes=self.prototypes * PrototypeReplay(means, 0 * statistics["radius"], self.temperature, seed),
            )
            only = [*(conv.side for conv in sides_of(model.backbone)), model.head]
            yield Fit(loss, stage.train, model, teacher=knowledge.teacher, only=only, optim=self.optim_of(stage))
        yield Adjust("fold", fold)
        yield Adjust("prototypes", remember_means)


def fold(work: Work) -> None:
    """Make one convolution of each and what stands beside it."""
    for conv in sides_of(work.knowledge.model.backbone):
        conv.resize(0)
