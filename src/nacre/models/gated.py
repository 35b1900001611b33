"""Residual blocks whose inner channels stand behind learnt gates, so that a trained branch can be made smaller.

Shapes: B images, h x w positions, M inner channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.errors import NacreError
from nacre.models.backbones import Backbone, Basic, conv_norm
from nacre.models.growing import Growing


class Gated(Growing):
    """A residual block; while it is open, its inner channels are multiplied by sigmoid(sharpness * gate) (Yan et al., CVPR 2021, eq. 8).

    The paper gates every channel; those that a shortcut carries are left alone here, because all blocks of a depth share them.

    Args:
        block: whose place it takes.
    """

    sharpness: Tensor

    def __init__(self, block: Basic) -> None:
        Growing.__init__(self)
        self.shortcut, self.signed = block.shortcut, block.signed
        self.parts = nn.ModuleList([block.first, block.second])
        self.full = self.width
        self.gates = nn.ParameterList()
        self.register_buffer("sharpness", torch.zeros(()))

    @property
    def width(self) -> int:
        """M."""
        return len(self.first.weight)

    @property
    def first(self) -> nn.Conv2d:
        """Makes the inner channels."""
        return self.parts[0][0]  # type: ignore[index, no-any-return]

    @property
    def second(self) -> nn.Conv2d:
        """Uses them."""
        return self.parts[1][0]  # type: ignore[index, no-any-return]

    def _norm(self, part: int) -> nn.Module:
        """The batch norm behind the first or the second convolution."""
        return self.parts[part][1]  # type: ignore[index, no-any-return]

    def size(self) -> list[int]:
        """[M, 1 while open]."""
        return [self.width, len(self.gates)]

    def numbers(self, *size: int) -> int:
        """Of the two kernels, at least."""
        return 9 * size[0] * (self.first.in_channels + self.second.out_channels)

    def resize(self, *size: int) -> None:
        """Keep the first M inner channels and draw those that are missing; open or close."""
        width, gates = size
        if width != self.width:
            self._rebuild(torch.arange(min(width, self.width)), width)
        self.gates = nn.ParameterList([torch.ones(width, device=self.first.weight.device)] if gates else [])

    @torch.no_grad()
    def prune(self) -> None:
        """Keep the channels whose gate is above zero, one at least, with their gates' values in the kernel behind, and close."""
        if len(self.gates):
            gate, openness = self.gates[0], self.open()
            self.second.weight.mul_(openness[:, None, None])
            self._rebuild((gate >= gate.max().clamp(max=torch.finfo(gate.dtype).tiny)).nonzero()[:, 0])
            self.gates = nn.ParameterList()

    @torch.no_grad()
    def _rebuild(self, kept: Tensor, width: int | None = None) -> None:
        """Have `width` inner channels, of which the first ones are those at positions `kept`."""
        width, count, first, second = width or len(kept), len(kept), self.first, self.second
        old = [self._norm(0), self._norm(1)]
        kept = kept.to(first.weight.device)
        fresh = [conv_norm(first.in_channels, width, first.stride[0]), conv_norm(width, second.out_channels)]
        self.parts = nn.ModuleList(fresh).to(first.weight.device).train(self.training)
        self.first.weight[:count] = first.weight[kept]
        self.second.weight[:, :count] = second.weight[:, kept]
        norm = self._norm(0).state_dict()
        for name, values in old[0].state_dict().items():
            if values.ndim:
                norm[name][:count] = values[kept]
        self._norm(1).load_state_dict(old[1].state_dict())

    def open(self) -> Tensor:
        """How far each inner channel is open, in (0, 1): [M]; 1 while there are no gates."""
        if not len(self.gates):
            return torch.ones(self.width, device=self.first.weight.device)
        return torch.sigmoid(self.sharpness * self.gates[0])

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h / stride, w / stride]."""
        y = F.relu(self.parts[0](x), inplace=True)
        y = y * self.open()[:, None, None].to(y.dtype) if len(self.gates) else y
        y = self.parts[1](y) + self.shortcut(x)
        return y if self.signed else F.relu(y, inplace=True)


def with_gates(backbone: Backbone) -> Backbone:
    """Let a backbone's residual blocks open gates, in place.

    Raises:
        NacreError: it has none.
    """
    for module in list(backbone.modules()):
        for name, block in module.named_children():
            if isinstance(block, Basic):
                setattr(module, name, Gated(block))
    if not gated(backbone):
        raise NacreError(f"{type(backbone).__name__} has no residual block to prune: use resnet20, resnet32 or resnet18.")
    return backbone


def gated(backbone: nn.Module) -> list[Gated]:
    """Its blocks with gates."""
    return [module for module in backbone.modules() if isinstance(module, Gated)]
