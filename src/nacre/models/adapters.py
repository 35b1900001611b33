"""Small modules beside the blocks of a frozen transformer, and features seen through sets of them.

Shapes: B images, C channels, H x W pixels, T tokens, d features of the transformer, S sets of adapters, K classes.
"""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.data.source import ImageSpec
from nacre.errors import NacreError
from nacre.models.backbones import Backbone
from nacre.models.growing import Growing
from nacre.models.heads import Head
from nacre.models.registry import backbone
from nacre.models.transformers import Transformer


class Adapter(nn.Module):
    """A bottleneck that adds s ReLU(x W_down) W_up (Chen et al., NeurIPS 2022, eq. 2); it begins as nothing, since W_up is zero.

    Args:
        dim: d.
        bottleneck: numbers between the two matrices.
        scale: s.
    """

    def __init__(self, dim: int, bottleneck: int, scale: float = 0.1) -> None:
        nn.Module.__init__(self)
        self.scale = scale
        self.down, self.up = nn.Linear(dim, bottleneck), nn.Linear(bottleneck, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        return self.scale * self.up(F.relu(self.down(x)))  # type: ignore[no-any-return]


class Parallel(nn.Module):
    """The sum of two modules."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        nn.Module.__init__(self)
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, d] -> [B, T, d]."""
        return self.first(x) + self.second(x)  # type: ignore[no-any-return]


def beside(block: nn.Module, adapter: nn.Module) -> nn.Module:
    """A block with an adapter in parallel to its hidden layer, behind the same norm (Chen et al., NeurIPS 2022, eq. 3).

    All parameters are the block's own, and the block stays as it is; so it serves any number of adapters.
    """
    twin = copy.copy(block)
    twin._modules = {**block._modules, "mlp": Parallel(cast(nn.Module, block.mlp), adapter)}
    return twin


class Subspaces(Backbone, Growing):
    """A frozen transformer seen through sets of adapters, one adapter per block: the features of all sets side by side.

    Only the newest set learns, and while it learns the others are not asked. Without any set it is the transformer.

    Args:
        trunk: the transformer.
        bottleneck: of the adapters.
        plain: whether the features without adapters stand first.

    Raises:
        NacreError: the backbone is no transformer.
    """

    def __init__(self, trunk: Backbone, bottleneck: int, *, plain: bool = False) -> None:
        nn.Module.__init__(self)
        if not isinstance(trunk, Transformer):
            raise NacreError(f"{type(trunk).__name__} has no blocks for adapters: use --backbone vit-tiny, vit-small or timm:vit_...")
        self.trunk = trunk.requires_grad_(False).eval()
        self.width, self.reduction, self.bottleneck, self.plain = trunk.dim, trunk.reduction, bottleneck, plain
        self.sets = nn.ModuleList()

    @property
    def dim(self) -> int:  # type: ignore[override]
        """D times the number of ways to look at an image."""
        return self.width * max(1, self.plain + len(self.sets))

    def bare(self) -> Backbone:
        """The transformer."""
        return self.trunk.bare()

    def size(self) -> list[int]:
        """[S]."""
        return [len(self.sets)]

    def numbers(self, *size: int) -> int:
        """Those of the adapters."""
        each = (2 * self.width + 1) * self.bottleneck + self.width
        return size[0] * len(self.trunk.blocks) * each

    def resize(self, *size: int) -> None:
        """Add sets, or keep the first ones; all but the newest are frozen."""
        kept = list(self.sets)[: size[0]]
        while len(kept) < size[0]:
            kept.append(nn.ModuleList(Adapter(self.width, self.bottleneck) for _ in self.trunk.blocks))
        for old in kept[:-1]:
            old.requires_grad_(False)
        self.sets = nn.ModuleList(kept)

    def train(self, mode: bool = True) -> Subspaces:
        """Training form for the adapters; the transformer stays in inference form."""
        nn.Module.train(self, mode)
        self.trunk.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> ([B, dim, 1, 1],); in training form ([B, d, 1, 1],), of the newest set alone."""
        tokens = self.trunk.embed(images)
        sets = [list(cast(nn.ModuleList, adapters)) for adapters in self.sets]
        if self.training and sets:
            return (self.through(tokens, sets[-1]),)
        seen = [self.through(tokens, adapters) for adapters in sets]
        if self.plain or not sets:
            seen = [self.through(tokens), *seen]
        return (torch.cat(seen, 1),)

    def through(self, tokens: Tensor, adapters: list[nn.Module] | None = None) -> Tensor:
        """All blocks, with an adapter beside each where there are some: [B, T, d] -> [B, d, 1, 1]."""
        blocks = list(self.trunk.blocks)
        for block in blocks if adapters is None else map(beside, blocks, adapters):
            tokens = block(tokens)
        return self.trunk.condense(tokens)[:, :, None, None]


class Newest(Head):
    """Cosines of class rows with the newest features, which are the last ones, times one learned scale."""

    def __init__(self, dim: int, scale: float = 10.0) -> None:
        Head.__init__(self, dim, bias=False)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D], of which the last d count -> [B, K]."""
        return self.scale * F.linear(F.normalize(features[:, -self.dim :]), F.normalize(self.rows.weight))


def adaptable(name: str, spec: ImageSpec, bottleneck: int, *, plain: bool = False) -> Subspaces:
    """The backbone of that name, frozen, for sets of adapters, of which it has none yet; see `Subspaces`."""
    return Subspaces(backbone(name, spec), bottleneck, plain=plain)
