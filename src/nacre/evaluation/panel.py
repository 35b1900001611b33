"""Forgetting made visible: exemplars, their reconstruction when their class came, and now.

Shapes: K classes, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nacre.data.source import Samples
from nacre.training.inference import outputs
from nacre.training.learner import Learner

THEN = "reconstruction_then"
"""Name of the statistic that keeps the old reconstructions."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One exemplar of every class, each [K, C, H, W], uint8."""

    images: Tensor
    then: Tensor
    now: Tensor
    errors: Tensor
    """[K]: fraction of variance unexplained, now."""


def first_exemplars(learner: Learner) -> Samples | None:
    """The most worthy exemplar of every class; None where a class has none."""
    memory = learner.knowledge.memory.samples()
    firsts = [int(torch.nonzero(memory.labels == label)[0]) for label in memory.labels.unique()]
    return memory.take(torch.tensor(firsts)) if firsts and len(firsts) == len(learner.classes) else None


def reconstruct(learner: Learner, samples: Samples) -> tuple[Tensor, Tensor]:
    """Reconstructions as uint8 images, and each one's fraction of variance unexplained."""
    model, parts, errors = learner.knowledge.model, [], []
    for images, out in outputs(model, samples, learner.runtime, decode=True):
        assert out.reconstruction is not None
        parts.append(model.normalise.inverse(out.reconstruction).cpu())
        errors.append((out.reconstruction - images).square().mean((1, 2, 3)).cpu())
    return torch.cat(parts), torch.cat(errors)


def keep(learner: Learner) -> None:
    """After a stage: keep how the new classes' first exemplars are reconstructed, C x H x W bytes per class."""
    exemplars = first_exemplars(learner)
    if exemplars is None or learner.knowledge.model.decoder is None:
        return
    now, _ = reconstruct(learner, exemplars)
    before = learner.knowledge.statistics.get(THEN, now[:0])
    learner.knowledge.statistics[THEN] = torch.cat([before.cpu(), now[len(before) :]])


def panel(learner: Learner) -> Panel | None:
    """The pictures; None without a decoder, or without exemplars."""
    exemplars, then = first_exemplars(learner), learner.knowledge.statistics.get(THEN)
    if exemplars is None or then is None or learner.knowledge.model.decoder is None:
        return None
    now, errors = reconstruct(learner, exemplars)
    return Panel(exemplars.pixels(), then.cpu(), now, errors)
