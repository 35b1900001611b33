"""Where pixels lie.

Shapes: N images in store, n asked for, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Images(Protocol):
    """Where pixels lie: a uint8 tensor [N, C, H, W], in memory or mapped from disk, or several of them in a row."""

    @property
    def shape(self) -> torch.Size:
        """[N, C, H, W]."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """The images of `rows` [n], int64: [n, C, H, W], uint8."""


@dataclass(frozen=True, eq=False)
class Chain:
    """Two stores of images read as one."""

    first: Images
    second: Images

    @property
    def shape(self) -> torch.Size:
        """[N, C, H, W] of both together."""
        return torch.Size((self.first.shape[0] + self.second.shape[0], *self.first.shape[1:]))

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """The images of `rows`, each from the store it lies in: [n, C, H, W], uint8."""
        edge = self.first.shape[0]
        late = rows >= edge
        out = torch.empty(len(rows), *self.shape[1:], dtype=torch.uint8)
        out[~late] = self.first[rows[~late]]
        out[late] = self.second[rows[late] - edge]
        return out
