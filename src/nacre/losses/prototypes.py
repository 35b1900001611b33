"""Terms of methods that keep no image: turned images, and prototypes in the place of what was seen.

Shapes: B samples of a step, four times as many as images; K classes known, D features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.losses.loss import Step, Term
from nacre.models.heads import Turned
from nacre.seeds import generator


def head_of(step: Step) -> Turned:
    """The head, which must tell turned images apart."""
    head = step.model.head
    assert isinstance(head, Turned), "this term needs --head turned"
    return head


@dataclass(frozen=True)
class TurnedCrossEntropy(Term):
    """Cross-entropy over all classes and turns (Zhu et al., CVPR 2021, eq. 4); the batch holds every image in four turns."""

    unmixed = True

    temperature: float = 0.1

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        labels = step.batch.labels
        turn = torch.arange(4, device=labels.device).repeat_interleave(len(labels) // 4)
        return F.cross_entropy(head_of(step).every(step.out.features) / self.temperature, 4 * labels + turn)


@dataclass(frozen=True)
class FeatureDistance(Term):
    """Euclidean distance of features from the teacher's (Zhu et al., CVPR 2021, eq. 6)."""

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, 0 or more."""
        assert step.old is not None, "distillation needs Fit(teacher=...)"
        distance: Tensor = (step.out.features - step.old.features.detach()).norm(dim=1)
        return distance.mean()


class PrototypeReplay(Term):
    """Cross-entropy of known classes' prototypes with noise around them (Zhu et al., CVPR 2021, eq. 2-3).

    Its random numbers depend on the seed and on the step's place in the fit alone.

    Args:
        prototypes: [K, D].
        radius: standard deviation of the noise.
        temperature: of the logits.
        seed: of the fit.
    """

    def __init__(self, prototypes: Tensor, radius: Tensor, temperature: float, seed: int) -> None:
        self.prototypes, self.radius, self.temperature, self.seed = prototypes, radius, temperature, seed

    def __call__(self, step: Step) -> Tensor:
        """Mean over as many prototypes as the batch has images, in nats."""
        head = step.model.head
        each = 4 if isinstance(head, Turned) else 1
        count = max(1, len(step.batch.labels) // each)
        draw = generator(self.seed, "prototypes", round(step.progress * 2**40))
        labels = torch.randint(len(self.prototypes), (count,), generator=draw).to(self.prototypes.device)
        noise = torch.randn(count, self.prototypes.shape[1], generator=draw).to(self.prototypes.device)
        features = self.prototypes[labels] + self.radius * noise
        return F.cross_entropy(head.every(features) / self.temperature, each * labels)


def likeness(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine of features [B, D] and the nearest of prototypes [K, D], seen from the prototypes' centre, cut to [0, 1]: [B], no gradient.

    The paper takes it from the origin. Behind a rectifier all features lie in one direction from there: in a ResNet-20 on CIFAR-100 the
    median over images of new classes was 0.98, which leaves classification a weight of 0.02.
    """
    prototypes = prototypes.to(features.device)
    cosines = F.normalize(features.detach() - prototypes.mean(0)) @ F.normalize(prototypes - prototypes.mean(0)).T
    return cosines.max(1).values.clamp(0, 1)


class SelectedCrossEntropy(Term):
    """Cross-entropy that counts a sample by how little it looks like a known class (Zhu et al., CVPR 2022, eq. 10-11: SSRE).

    Args:
        prototypes: [K, D].
        temperature: of the logits.
    """

    unmixed = True

    def __init__(self, prototypes: Tensor, temperature: float) -> None:
        self.prototypes, self.temperature = prototypes, temperature

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        each = F.cross_entropy(step.out.logits / self.temperature, step.batch.labels, reduction="none")
        return ((1 - likeness(step.out.features, self.prototypes)) * each).mean()


class SelectedDistance(Term):
    """Euclidean distance of features from the teacher's, which counts by how much a sample looks like a known class (eq. 11 there).

    Args:
        prototypes: [K, D].
    """

    def __init__(self, prototypes: Tensor) -> None:
        self.prototypes = prototypes

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, 0 or more."""
        assert step.old is not None, "distillation needs Fit(teacher=...)"
        gap: Tensor = (step.out.features - step.old.features.detach()).norm(dim=1)
        return (likeness(step.out.features, self.prototypes) * gap).mean()


class GaussianReplay(Term):
    """Cross-entropy of features drawn around class means, on logits of length 1 / temperature (Zhang et al., ICCV 2023, eq. 4).

    Every class has equally many in every step. Random numbers depend on the seed and on the step's place in the fit alone.

    Args:
        means: [K, D].
        factors: L [K, D, D], with L L' the covariance of a class.
        each: features of a class in a step.
        temperature: tau.
        seed: of the fit.
    """

    def __init__(self, means: Tensor, factors: Tensor, each: int, temperature: float, seed: int) -> None:
        self.means, self.factors, self.each, self.temperature, self.seed = means, factors, each, temperature, seed

    def drawn(self, progress: float) -> tuple[Tensor, Tensor]:
        """Features [K each, D] and labels [K each] of the step when `progress` of the fit is done."""
        classes, dim = self.means.shape
        draw = generator(self.seed, "features", round(progress * 2**40))
        noise = torch.randn(classes, self.each, dim, generator=draw).to(self.means.device)
        features = self.means[:, None] + noise @ self.factors.mT
        return features.flatten(0, 1), torch.arange(classes, device=self.means.device).repeat_interleave(self.each)

    def __call__(self, step: Step) -> Tensor:
        """Mean over what was drawn, in nats."""
        features, labels = self.drawn(step.progress)
        logits: Tensor = step.model.head(features)
        return F.cross_entropy(F.normalize(logits) / self.temperature, labels)
