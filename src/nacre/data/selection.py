"""Which images of a class to remember: features -> positions in order of worth, so that a prefix is a smaller choice.

Shapes: n candidates of one class, D features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Features = Callable[[], Tensor]
"""Computes the candidates' features [n, D]; called only by a selection that looks at them."""
Selection = Callable[[int, Features, int, Generator], Tensor]
"""(candidates n, their features, how many to choose, randomness) -> positions, int64, the most worthy first."""


def herding(n: int, features: Features, count: int, generator: Generator) -> Tensor:
    """Exemplars whose running mean stays nearest the class mean (Rebuffi et al., CVPR 2017, algorithm 4).

    Features are scaled to length one first, as the paper does. Ties go to the earlier candidate.
    """
    unit = F.normalize(features().double(), dim=1)
    mean = unit.mean(0)
    total = torch.zeros_like(mean)
    free = torch.ones(n, dtype=torch.bool, device=unit.device)
    chosen = torch.empty(min(count, n), dtype=torch.long, device=unit.device)
    for k in range(len(chosen)):
        gap = (mean - (total + unit) / (k + 1)).norm(dim=1)
        best = torch.where(free, gap, torch.inf).argmin()
        chosen[k] = best
        total += unit[best]
        free[best] = False
    return chosen.cpu()


def random(n: int, features: Features, count: int, generator: Generator) -> Tensor:
    """Exemplars drawn without replacement."""
    return torch.randperm(n, generator=generator)[:count]


SELECTIONS: dict[str, Selection] = {"herding": herding, "random": random}
