"""What training images go through: batched, on their device, a pure function of pixels and uniform numbers.

The random numbers of a whole epoch are drawn at once on the CPU and travel to the device with the epoch's order, so the
step never waits for them, and every device and every number of processes sees the same augmented images.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Shifted crop and mirror; the test view of an image is the image itself."""

    shift: int = 0
    """Largest shift in pixels to each side; what comes in at the border is black."""
    flip: bool = False
    """Mirror left and right with probability one half; not for digits or letters."""

    def __post_init__(self) -> None:
        if self.shift < 0:
            raise ValueError(f"shift is {self.shift}, but it must be 0 or more pixels")

    @property
    def draws(self) -> int:
        """Uniform numbers that one image needs."""
        return 3

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: [B, C, H, W], uint8.
            uniform: [B, draws], in [0, 1), on the device of `images`.

        Returns:
            [B, C, H, W], uint8.
        """
        if self.shift:
            images = shifted(images, (uniform[:, :2] * (2 * self.shift + 1)).long(), self.shift)
        if self.flip:
            images = torch.where(uniform[:, 2, None, None, None] < 0.5, images.flip(-1), images)
        return images


def shifted(images: Tensor, offset: Tensor, reach: int) -> Tensor:
    """Cut each image [B, C, H, W] out of itself padded by `reach`, at its own offset [B, 2] in 0..2*reach."""
    height, width = images.shape[-2:]
    windows = F.pad(images, (reach,) * 4).unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2r+1, 2r+1, H, W], a view
    return windows[torch.arange(len(images), device=images.device), :, offset[:, 0], offset[:, 1]]
