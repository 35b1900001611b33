"""From the last feature map back to the image.

Shapes: B images, D channels in the map, h x w its size, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from nacre.models.backbones import conv_norm


class Decoder(nn.Module):
    """Doubles the map until the image's size is reached; no skips, so all it draws must be in the features.

    1x1 convolution to a bottleneck and batch norm; then nearest up-sampling and a 3x3 convolution, batch norm and ReLU per
    doubling, half as wide after the last one, where most of the work is; a linear 3x3 convolution to the image's channels.
    Works for any size and number of channels; for ResNet-32 it has 16,467 parameters.

    Args:
        dim: D.
        start: h and w.
        shape: C, H and W.
        width: channels of the bottleneck and of every map after it but the last.
        tap: which of a backbone's maps is the first, 1 for the deepest.
    """

    def __init__(self, dim: int, start: tuple[int, int], shape: tuple[int, int, int], width: int = 32, tap: int = 1) -> None:
        nn.Module.__init__(self)
        self.dim, self.tap = dim, tap
        self.sizes = doublings(start, shape[1:])
        self.enter = conv_norm(dim, width, kernel=1)
        widths = [width] * len(self.sizes) + [width // 2 if self.sizes else width]
        self.steps = nn.ModuleList(nn.Sequential(conv_norm(a, b), nn.ReLU(inplace=True)) for a, b in pairwise(widths))
        self.leave = nn.Conv2d(widths[-1], shape[0], 3, padding=1)

    def of(self, maps: Sequence[Tensor]) -> Tensor:
        """A backbone's maps -> image [B, C, H, W]; where several branches are joined, from the newest."""
        image: Tensor = self(maps[-self.tap][:, -self.dim :])
        return image

    def forward(self, features: Tensor) -> Tensor:
        """Map [B, D, h, w] -> image [B, C, H, W], in units of the normalised image."""
        x = self.enter(features)
        for size, step in zip(self.sizes, self.steps, strict=True):
            x = step(F.interpolate(x, size=size))
        return self.leave(x)  # type: ignore[no-any-return]


def doublings(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """Sizes on the way from `start` to `end`, each at most twice the one before it."""
    sizes: list[tuple[int, int]] = []
    while start != end:
        start = (min(2 * start[0], end[0]), min(2 * start[1], end[1]))
        sizes.append(start)
    return sizes
