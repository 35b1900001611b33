"""What a model answers, in one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Output:
    """A model's answer to B images of C x H x W pixels, over K classes."""

    maps: tuple[Tensor, ...]
    """Feature maps by depth, [B, D_i, h_i, w_i]; the last one, of D channels, is what features and decoder start from."""
    features: Tensor
    """[B, D], float32: the last map, averaged over its positions."""
    logits: Tensor
    """[B, K], float32."""
    reconstruction: Tensor | None = None
    """[B, C, H, W], float32, in units of the normalised image; None where no decoder was asked."""
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    """What else a backbone or head gives to terms of its own method."""
