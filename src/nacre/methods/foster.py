"""Feature boosting and compression (Wang et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nacre.data.memory import PerClass
from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.losses.classification import BalancedCrossEntropy, Enhancement, effective_weights
from nacre.losses.distillation import BalancedDistillation, Distillation
from nacre.losses.loss import Loss
from nacre.methods.shared import base_fit, becomes, expandable, first_branch, seen_samples
from nacre.models.expandable import Expandable, Widening
from nacre.models.model import Model
from nacre.models.registry import backbone
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Fit, Phase, Remember


@dataclass(frozen=True, kw_only=True)
class FOSTER(Method):
    """Add a second network that mends what the first leaves, then press both into one of the first one's size.

    Boosting by logits alignment, feature enhancement (eq. 7-8) and distillation of the known classes; a balanced distillation (eq. 11)
    into the first branch with its columns of the boosted head. Class weights are normalised effective numbers, as in the authors' code.
    """

    family = "growing network"
    paper = "Wang et al., ECCV 2022"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "old model"})

    distillation: float = 1.0
    """Of the known classes' logits against the old model's."""
    temperature: float = 2.0
    """Of both distillations."""
    boosting: float = 0.96
    """beta of the class weights while boosting, in [0, 1)."""
    compressing: float = 0.97
    """beta of the class weights while compressing, in [0, 1)."""
    compression: Optim | None = None
    """How the two networks are pressed into one; None: as the stage is learnt."""

    def build(self, spec: ImageSpec) -> Model:
        """With one branch."""
        trunk = Expandable(backbone(self.backbone, spec))
        return Model(trunk, Widening(trunk.dim), spec)

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Add the second branch after the first stage, and a head of its own for it."""
        trunk, head = expandable(knowledge.model)
        if stage.index:
            trunk.resize(2)
        head.resize(stage.seen, trunk.dim, stage.seen if stage.index else 0, trunk.width)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Boost, compress, remember."""
        data, optim = seen_samples(knowledge, stage), self.optim_of(stage)
        if stage.index == 0:
            yield from base_fit(self, knowledge, stage)
            yield Remember()
            return
        counts = torch.bincount(data.labels, minlength=stage.seen).clamp_min(1)
        loss = Loss(
            classification=BalancedCrossEntropy(effective_weights(counts, self.boosting)),
            enhancement=Enhancement(),
            distillation=self.distillation * Distillation(self.temperature),
        )
        yield Fit(loss, data, knowledge.model, teacher=knowledge.teacher, optim=optim)
        student = first_branch(knowledge.model)
        loss = Loss(classification=BalancedDistillation(effective_weights(counts, self.compressing), self.temperature))
        yield Fit(loss, data, student, teacher=knowledge.model.frozen(answers=False), optim=self.compression or optim)
        yield becomes(student)
        yield Remember()
