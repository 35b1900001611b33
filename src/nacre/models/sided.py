"""Convolutions with a side branch that is trained beside them and then folded into them.

Shapes: B images, h x w positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nacre.errors import NacreError
from nacre.models.backbones import Backbone
from nacre.models.growing import Growing


class Sided(Growing, nn.Conv2d):
    """A 3x3 convolution, and while it is open a 1x1 one beside it, which begins at zero (Zhu et al., CVPR 2022, eq. 8-9: SSRE)."""

    def __init__(self, *form: Any, **more: Any) -> None:
        nn.Conv2d.__init__(self, *form, **more)
        self.side = nn.ModuleList()

    def size(self) -> list[int]:
        """1 while open, 0 while closed."""
        return [len(self.side)]

    def numbers(self, *size: int) -> int:
        """The convolution's, and those of its side."""
        return self.weight.numel() + size[0] * self.in_channels * self.out_channels

    def resize(self, *size: int) -> None:
        """Open, or fold the side into the convolution and close; a 1x1 kernel is a 3x3 one with zeros around."""
        if size[0] and not len(self.side):
            side = nn.Conv2d(self.in_channels, self.out_channels, 1, self.stride[0], bias=False, device=self.weight.device)
            nn.init.zeros_(side.weight)
            self.side.append(side)
        elif not size[0] and len(self.side):
            with torch.no_grad():
                self.weight[:, :, 1, 1] += self.side[0].weight[:, :, 0, 0]  # type: ignore[index]
            self.side = nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h / stride, w / stride]."""
        y = nn.Conv2d.forward(self, x)
        for side in self.side:
            y = y + side(x)
        return y


def with_sides(backbone: Backbone) -> Backbone:
    """Give every 3x3 convolution of a backbone the ability to open, in place.

    Raises:
        NacreError: it has none.
    """
    for module in list(backbone.modules()):
        for name, conv in module.named_children():
            if type(conv) is nn.Conv2d and conv.kernel_size == (3, 3):
                twin = Sided(conv.in_channels, conv.out_channels, 3, conv.stride, conv.padding, bias=conv.bias is not None)
                twin.weight, twin.bias = conv.weight, conv.bias
                setattr(module, name, twin)
    if not sides_of(backbone):
        raise NacreError(f"{type(backbone).__name__} has no 3x3 convolution: use small, resnet20, resnet32 or resnet18.")
    return backbone


def sides_of(backbone: nn.Module) -> list[Sided]:
    """Its convolutions that can open."""
    return [module for module in backbone.modules() if isinstance(module, Sided)]
