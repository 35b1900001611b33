"""Terms of a net that learns without labels, and of what it passes on (Zheng et al., CVPR 2025: TagFex).

A batch holds two views of every image, first one of each, then the other of each.

Shapes: B samples of a step, K new classes, P numbers of a projection.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.losses.classification import cross_entropy
from nacre.losses.loss import Step, Term
from nacre.models.guided import guided


def agnostic_features(step: Step) -> Tensor:
    """Of the agnostic net: [B, d]."""
    return step.out.maps[0].float().mean((2, 3))


def contrast(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """InfoNCE of projections [B, P] against [B, P]: each is to find the other view of its image among all but itself, in nats.

    van den Oord et al. 2018, eq. 4, with cosines over a temperature (Chen et al., ICML 2020, eq. 1).
    """
    cosines = F.normalize(queries) @ F.normalize(keys).T / temperature
    own = torch.eye(len(cosines), dtype=torch.bool, device=cosines.device)
    other = (torch.arange(len(cosines), device=cosines.device) + len(cosines) // 2) % len(cosines)
    return F.cross_entropy(cosines.masked_fill(own, -torch.inf), other)


@dataclass(frozen=True)
class Contrast(Term):
    """Two views of an image lie together, and those of different images apart (section 4.1, eq. 3)."""

    unmixed = True

    temperature: float = 0.2

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        projected = guided(step.model).projector(agnostic_features(step))
        return contrast(projected, projected, self.temperature)


class PredictedContrast(Term):
    """Old features can be told from new ones: their contrast in the old projection, behind a predictor (section 4.1, eq. 4).

    Args:
        projector: as it is now; a copy is held still.
        temperature: of the cosines.
    """

    unmixed = True

    def __init__(self, projector: nn.Module, temperature: float = 0.2) -> None:
        self.projector, self.temperature = copy.deepcopy(projector).requires_grad_(False), temperature

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        assert step.old is not None, "distillation needs Fit(teacher=...)"
        predicted = guided(step.model).predictor(agnostic_features(step))
        return contrast(self.projector(predicted), self.projector(step.old.features.detach()), self.temperature)


def merged(step: Step) -> Tensor:
    """What the merged features say of the new classes: [B, K]; only the newest branch and the attention learn from it."""
    backbone = guided(step.model)
    own, guide = step.out.maps[-1][:, -backbone.agnostic.dim :].float(), step.out.maps[0].detach().float()
    return backbone.merge(own, guide)  # type: ignore[no-any-return]


def of_new(step: Step, each: Tensor) -> Tensor:
    """Mean of numbers [B] over the samples of new classes; 0 without any."""
    new = step.batch.labels >= step.stage.known  # a mask, not a choice of rows, whose number the step would have to wait for
    return (each * new).sum() / new.sum().clamp_min(1)


@dataclass(frozen=True)
class Transfer(Term):
    """Merged features tell the new classes apart, and where they do so better than the whole model, its newest branch follows them.

    (Eq. 7-9, and the authors' code for the comparison.)
    """

    unmixed = True

    weight: float = 1.0
    """Of following, beside the classification of what is merged."""
    temperature: float = 2.0
    """Of following."""

    def __call__(self, step: Step) -> Tensor:
        """Means over the samples of new classes, in nats."""
        logits, known = merged(step), step.stage.known
        own = of_new(step, F.cross_entropy(logits, (step.batch.labels - known).clamp_min(0), reduction="none"))
        target = (logits.detach() / self.temperature).softmax(1)
        follower = (step.out.logits[:, known:] / self.temperature).log_softmax(1)
        gap = of_new(step, F.kl_div(follower, target, reduction="none").sum(1))
        better = own.detach() < cross_entropy(step.out.logits.detach(), step.batch)
        return own + self.weight * better * gap
