"""How remembered samples join the new ones of a step.

Shapes: n new samples of the fit, M remembered samples, K classes known when they were stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

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
    worth: Tensor | None = None
    """[n + M], of new and remembered samples: where it is given, new ones enter the memory after their step, and of every class the
    `quota` of smallest worth are kept, so uniform numbers make a reservoir."""
    quota: int = 0

    def __len__(self) -> int:
        """How many samples a step may draw from at most."""
        return len(self.samples) if self.worth is None else len(self.worth)

    def rows(self, hands: Sequence[Tensor], labels: Tensor, draw: Generator) -> list[Tensor]:
        """What joins each step.

        Args:
            hands: positions in 0..n-1 of the new samples of each step.
            labels: of new and remembered samples, [n + M].
            draw: randomness.

        Returns:
            Positions of each step: `ratio` for every new sample, in n..n+M-1, or below n where new ones are remembered already.
        """
        counts = [self.ratio * len(hand) for hand in hands]
        new = sum(map(len, hands))
        if self.worth is None:
            return list((new + torch.randint(len(self.samples), (sum(counts),), generator=draw)).split(counts))
        held, found = kept(torch.arange(new, len(labels)), labels, self.worth, self.quota), []
        for hand, count in zip(hands, counts, strict=True):
            found.append(held[torch.randint(len(held), (count,), generator=draw)] if len(held) else held)
            held = kept(torch.cat([held, hand]), labels, self.worth, self.quota)
        return found


def kept(rows: Tensor, labels: Tensor, worth: Tensor, quota: int) -> Tensor:
    """Of rows [m], those whose worth is among the `quota` smallest of their class, sorted by class and worth."""
    rows = rows[worth[rows].argsort(stable=True)]
    rows = rows[labels[rows].argsort(stable=True)]
    classes = labels[rows]
    rank = torch.arange(len(rows)) - torch.searchsorted(classes, classes)
    return rows[rank < quota]
