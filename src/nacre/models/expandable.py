"""Backbones that grow: one branch per stage, with or without a trunk that all share, and the head that widens with them.

Shapes: B images, D features of all branches together, d of one, K classes.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.errors import NacreError
from nacre.models.backbones import Backbone, through
from nacre.models.growing import Growing
from nacre.models.heads import Head, Rows


class Expandable(Backbone, Growing):
    """Branches side by side, whose last maps are joined; only the newest learns, the others stay in inference form.

    A new branch begins as a copy of the one before it.

    Args:
        first: a backbone, which becomes the first branch.
        shared: leave all but the backbone's last depth in a trunk that every branch starts from.
        learns: whether that trunk goes on learning after the first stage, through all branches.
    """

    def __init__(self, first: Backbone, *, shared: bool = False, learns: bool = True) -> None:
        nn.Module.__init__(self)
        self.width, self.reduction, self.learns = first.dim, first.reduction, learns and shared
        self.trunk = nn.ModuleList()
        if shared:
            stem, stages = getattr(first, "stem", None), getattr(first, "stages", None)
            if not isinstance(stages, nn.ModuleList):
                raise NacreError(f"{type(first).__name__} has no depths that could be shared: use small, resnet20, resnet32 or resnet18.")
            begun = [nn.Sequential(stem, stages[0])] if isinstance(stem, nn.Module) else [stages[0]]
            self.trunk = nn.ModuleList([*begun, *stages[1:-1]])
            first = Deepest(stages[-1], first)
        self.branches = nn.ModuleList([first])

    @property
    def dim(self) -> int:  # type: ignore[override]
        """D."""
        return self.width * len(self.branches)

    def size(self) -> list[int]:
        """Number of branches."""
        return [len(self.branches)]

    def resize(self, *size: int) -> None:
        """Add branches, or keep the first ones; all but the newest are frozen, and so is a trunk that does not go on learning."""
        kept = list(self.branches)[: size[0]]
        while len(kept) < size[0]:
            kept.append(copy.deepcopy(kept[-1]).requires_grad_(True))
        self.branches = nn.ModuleList(kept)
        for part in self.frozen_parts():
            part.requires_grad_(False)

    def numbers(self, *size: int) -> int:
        """Those of the branches, but for parts that have sizes of their own."""
        first = self.branches[0]
        apart = {id(parameter) for part in first.modules() if isinstance(part, Growing) for parameter in part.parameters()}
        return size[0] * sum(parameter.numel() for parameter in first.parameters() if id(parameter) not in apart)

    def frozen_parts(self) -> list[nn.Module]:
        """What does not learn."""
        branches = list(self.branches)
        return branches[:-1] + (list(self.trunk) if len(branches) > 1 and not self.learns else [])

    def train(self, mode: bool = True) -> Expandable:
        """Training form for what learns; the running statistics of what is frozen stay as they are."""
        nn.Module.train(self, mode)
        for part in self.frozen_parts():
            part.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> the newest branch's maps, the last one joined with those of all branches: [B, D, h, w]."""
        below = through(self.trunk, images) if len(self.trunk) else ()
        start = below[-1] if below else images
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns):
            old = [branch(start)[-1] for branch in list(self.branches)[:-1]]
        newest = self.branches[-1](start)
        return (*below, *newest[:-1], torch.cat([*old, newest[-1]], 1))


class Deepest(Backbone):
    """The last depth of a backbone: maps in, maps out."""

    def __init__(self, stage: nn.Module, whole: Backbone) -> None:
        nn.Module.__init__(self)
        self.stage, self.dim, self.reduction = stage, whole.dim, whole.reduction

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, D', h', w'] -> one map [B, d, h, w]."""
        return (self.stage(images),)


class Widening(Head):
    """An affine head that grows in classes and in features, and an auxiliary one on the newest branch's features.

    The auxiliary head tells the new classes apart and from all known ones together (Yan et al., CVPR 2021, eq. 5).
    """

    def __init__(self, dim: int) -> None:
        Head.__init__(self, dim, bias=True)
        self.auxiliary = Rows(torch.empty(0, dim), torch.empty(0))

    def size(self) -> list[int]:
        """[K, D, rows and columns of the auxiliary head]."""
        return [len(self.rows.weight), self.dim, *self.auxiliary.weight.shape]

    def numbers(self, *size: int) -> int:
        """Rows and biases of both heads."""
        classes, dim, rows, columns = size
        return classes * (dim + 1) + rows * (columns + 1)

    def resize(self, *size: int) -> None:
        """Grow to K classes, and, where they are named, to D features and an auxiliary head, drawing what is new."""
        classes, *more = size
        dim, rows, columns = more or (self.dim, *self.auxiliary.weight.shape)
        old = self.rows.weight.detach()
        reach = 1 / math.sqrt(max(1, dim))
        wide = torch.empty(len(old), max(0, dim - self.dim), device=old.device).uniform_(-reach, reach)
        self.dim, bias = dim, None if self.rows.bias is None else self.rows.bias.detach()
        self.rows = Rows(torch.cat([old, wide], 1)[:, :dim], bias)
        Head.resize(self, classes)
        if [rows, columns] != list(self.auxiliary.weight.shape):
            drawn = torch.empty(rows, columns, device=old.device).uniform_(-1, 1) / math.sqrt(max(1, columns))
            self.auxiliary = Rows(drawn, torch.zeros(rows, device=old.device))

    def select(self, classes: Tensor) -> None:
        """Keep the rows of these classes; the auxiliary head, which serves one stage's training, goes."""
        Head.select(self, classes)
        self.auxiliary = Rows(self.auxiliary.weight.detach()[:0], torch.empty(0, device=self.rows.weight.device))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        return F.linear(features, self.rows.weight, self.rows.bias)

    def newest(self, features: Tensor) -> Tensor:
        """What the auxiliary head says: [B, D] -> [B, 1 + new], all known classes first."""
        return F.linear(features[:, -self.auxiliary.weight.shape[1] :], self.auxiliary.weight, self.auxiliary.bias)
