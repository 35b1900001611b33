"""A term that asks for less."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nacre.losses.loss import Step, Term
from nacre.models.gated import gated


@dataclass(frozen=True)
class UsedWeights(Term):
    """Share of the gated blocks' weights that their gates leave in use (Yan et al., CVPR 2021, eq. 10)."""

    def __call__(self, step: Step) -> Tensor:
        """In (0, 1); of blocks that are open."""
        blocks = [block for block in gated(step.model.backbone) if len(block.gates)]
        each = [block.first.in_channels + block.second.out_channels for block in blocks]
        used = torch.stack([count * block.open().sum() for count, block in zip(each, blocks, strict=True)]).sum()
        return used / sum(count * block.width for count, block in zip(each, blocks, strict=True))
