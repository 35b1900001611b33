"""Prototype augmentation and self-supervision (Zhu et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nacre.data.stream import Stage
from nacre.losses.loss import Loss
from nacre.losses.prototypes import FeatureDistance, PrototypeReplay, TurnedCrossEntropy
from nacre.methods.shared import remember_means
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Adjust, Fit, Phase


@dataclass(frozen=True, kw_only=True)
class PASS(Method):
    """Every quarter turn of a class is a class; a mean per class with noise stands for its images later.

    Images are square. The paper trains a ResNet-18 with attention; its Adam is AdamW here. At the rates of SGD the sharp softmax makes
    all features vanish in the first steps. Distances to old features are averaged over the batch; the authors' code takes one norm
    over all of it, which with the same weight pulls about sixteen times as hard.
    """

    family = "no exemplars"
    paper = "Zhu et al., CVPR 2021"
    by_class = ("prototypes",)
    needs = frozenset({"old model"})

    head: str = "turned"
    optim: Optim = Optim(name="adamw", lr=0.001, weight_decay=2e-4)
    temperature: float = 0.1
    """Of the logits."""
    distillation: float = 10.0
    """Of the features' distance from the old model's."""
    prototypes: float = 10.0
    """Of the prototypes' classification."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, then take the new classes' means."""
        loss, statistics = Loss(classification=TurnedCrossEntropy(self.temperature)), knowledge.statistics
        if stage.known:
            seed = int(torch.randint(2**40, ()))
            replay = PrototypeReplay(statistics["prototypes"], statistics["radius"], self.temperature, seed)
            loss = loss.adding(distillation=self.distillation * FeatureDistance(), prototypes=self.prototypes * replay)
        yield Fit(loss, stage.train, knowledge.model, teacher=knowledge.teacher, optim=self.optim_of(stage), turns=True)
        yield Adjust("prototypes", remember_means)
