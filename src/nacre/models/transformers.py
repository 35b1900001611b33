"""Vision transformers in parts, so that methods can put prompts and adapters between them.

Shapes: B images, C channels, H x W pixels; T tokens, of which the first stands for the class, D numbers each; P tokens of a prefix.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.data.source import ImageSpec
from nacre.models.backbones import Backbone


class Transformer(Backbone):
    """Images -> tokens -> blocks -> one vector, which is the only map: [B, D, 1, 1].

    A block has `norm1`, `attn`, `norm2` and `mlp`, and an attention `qkv`, `proj` and `num_heads`, as timm names them.
    """

    blocks: nn.ModuleList

    @abstractmethod
    def embed(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, T, D], with the class token first and places told."""

    @abstractmethod
    def condense(self, tokens: Tensor) -> Tensor:
        """What leaves the last block, [B, T, D] -> [B, D]."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> ([B, D, 1, 1],)."""
        tokens = self.embed(images)
        for block in self.blocks:
            tokens = block(tokens)
        return (self.condense(tokens)[:, :, None, None],)


Prefix = tuple[Tensor, Tensor]
"""Keys and values that stand before those of the tokens: [B, P, D] each."""


def attended(attention: nn.Module, x: Tensor, prefix: Prefix | None = None) -> Tensor:
    """Self-attention with a prefix before keys and values (Li & Liang, ACL 2021): [B, T, D] -> [B, T, D]."""
    heads: int = attention.num_heads  # type: ignore[assignment]
    query, key, value = attention.qkv(x).chunk(3, dim=-1)  # type: ignore[operator]
    if prefix is not None:
        key, value = (torch.cat([before.to(of.dtype), of], 1) for before, of in zip(prefix, (key, value), strict=True))
    split = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value)]
    mixed = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
    return attention.proj(mixed)  # type: ignore[no-any-return, operator]


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al., NeurIPS 2017, section 3.2)."""

    def __init__(self, dim: int, heads: int) -> None:
        nn.Module.__init__(self)
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        return attended(self, x)


class Block(nn.Module):
    """Attention and a hidden layer, each behind a norm and beside a shortcut (Dosovitskiy et al., ICLR 2021, eq. 2-3)."""

    def __init__(self, dim: int, heads: int) -> None:
        nn.Module.__init__(self)
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.mlp = nn.LayerNorm(dim), nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class ViT(Transformer):
    """A small vision transformer for images of any size (Dosovitskiy et al., ICLR 2021).

    Patches are an eighth of the shorter side, two pixels at least; images are filled up with zeros to whole patches.

    Args:
        spec: of the images.
        dim: D.
        depth: number of blocks.
        heads: of each attention; D is a multiple of it.
    """

    def __init__(self, spec: ImageSpec, dim: int, depth: int, heads: int) -> None:
        Backbone.__init__(self)
        self.dim, self.reduction = dim, max(spec.size)
        self.patch = max(2, min(spec.size) // 8)
        rows, columns = (-(-side // self.patch) for side in spec.size)
        self.patches = nn.Conv2d(spec.channels, dim, self.patch, self.patch)
        self.begin = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.places = nn.Parameter(0.02 * torch.randn(1, 1 + rows * columns, dim))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def embed(self, images: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, T, D]."""
        height, width = images.shape[2:]
        whole = F.pad(images, (0, -width % self.patch, 0, -height % self.patch))
        tokens = self.patches(whole).flatten(2).transpose(1, 2)
        return torch.cat([self.begin.expand(tokens.shape[0], -1, -1).to(tokens.dtype), tokens], 1) + self.places

    def condense(self, tokens: Tensor) -> Tensor:
        """The class token: [B, T, D] -> [B, D]."""
        return self.norm(tokens[:, 0])  # type: ignore[no-any-return]


TRANSFORMERS: dict[str, Callable[[ImageSpec], Transformer]] = {
    "vit-tiny": lambda spec: ViT(spec, 64, 4, 4),
    "vit-small": lambda spec: ViT(spec, 192, 8, 6),
}
