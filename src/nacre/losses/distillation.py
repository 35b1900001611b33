"""Terms that hold the model near its teacher.

Shapes: B samples, K classes the teacher knows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.losses.loss import Step, Term


@dataclass(frozen=True)
class Distillation(Term):
    """Cross-entropy of the known classes' softened logits against the teacher's (Li & Hoiem, ECCV 2016, eq. 2-3).

    -sum softmax(old / T) log softmax(new / T), batch mean, without the factor T squared of Hinton et al.
    """

    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, but it must be above 0")

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        assert step.old is not None, "distillation needs Fit(teacher=...)"
        old = step.old.logits.detach()
        return distillation(step.out.logits[:, : old.shape[1]], old, self.temperature)


def distillation(new: Tensor, old: Tensor, temperature: float) -> Tensor:
    """Softened cross-entropy of logits [B, K] against logits [B, K]: a scalar, in nats."""
    return F.cross_entropy(new / temperature, (old / temperature).softmax(1))


@dataclass(frozen=True)
class FeatureCosine(Term):
    """One minus the cosine of features and the teacher's (Hou et al., CVPR 2019, eq. 6: less-forget)."""

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in [0, 2]."""
        assert step.old is not None, "distillation needs Fit(teacher=...)"
        return (1 - F.cosine_similarity(step.out.features, step.old.features.detach())).mean()


@dataclass(frozen=True)
class PooledMaps(Term):
    """Distance of maps pooled along their height and along their width (Douillard et al., ECCV 2020, eq. 4-5: POD-spatial)."""

    def __call__(self, step: Step) -> Tensor:
        """Mean over depths and batch of the Euclidean distance, in [0, 2]."""
        assert step.old is not None, "distillation needs Fit(teacher=...)"
        gaps = [(pooled(new) - pooled(old.detach())).norm(dim=1).mean() for new, old in zip(step.out.maps, step.old.maps, strict=True)]
        return torch.stack(gaps).mean()


def pooled(maps: Tensor) -> Tensor:
    """Squared maps [B, D, h, w] summed over columns and over rows, one vector of length one per image: [B, D (h + w)]."""
    squared = maps * maps  # unlike a power, it keeps nothing but the maps; sums count in fp32 without a copy of them being kept
    return F.normalize(torch.cat([squared.sum(side, dtype=torch.float32).flatten(1) for side in (3, 2)], 1))


class BalancedDistillation(Term):
    """Softened cross-entropy against the teacher's answers, weighted by class (Wang et al., ECCV 2022, eq. 11).

    Args:
        weights: of the classes, [K].
        temperature: of both.
    """

    def __init__(self, weights: Tensor, temperature: float = 2.0) -> None:
        self.weights, self.temperature = weights, temperature

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        assert step.old is not None, "distillation needs Fit(teacher=...)"
        target = (step.old.logits.detach() / self.temperature).softmax(1) * self.weights.to(step.old.logits.device)
        return F.cross_entropy(step.out.logits / self.temperature, target / target.sum(1, keepdim=True))
