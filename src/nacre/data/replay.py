"""How remembered samples join the new ones of a step.

Shapes: M remembered samples, K classes known when they were stored.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nacre.data.source import Samples


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """Remembered samples of which every step draws as many as it has new ones, or several times as many, with replacement."""

    samples: Samples
    """M of them."""
    stored: Tensor | None = None
    """[M, K]: what was remembered beside the images, such as logits; -inf for classes that came later."""
    ratio: int = 1
    """Remembered samples for every new one."""
    apart: bool = False
    """Whether they stand beside the batch instead of in it, for a gradient of their own."""
