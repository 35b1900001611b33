"""The few images that outlive their stage, under a budget.

Shapes: M exemplars, n candidates, D features, C x H x W pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.data.cache import amount
from nacre.data.selection import SELECTIONS
from nacre.data.source import Samples
from nacre.data.stream import Stage
from nacre.errors import NacreError, choose
from nacre.seeds import generator

UNLIMITED = 2**62
"""More images than any class has."""


@dataclass(frozen=True)
class Total:
    """So many exemplars altogether, shared equally among the classes seen; what does not divide is left unused."""

    images: int

    def quota(self, seen: int, image_bytes: int = 1) -> int:
        """Exemplars of one class when `seen` classes share."""
        return self.images // seen

    def __str__(self) -> str:
        return str(self.images)


@dataclass(frozen=True)
class PerClass:
    """So many exemplars of every class: the budget grows with the classes."""

    images: int

    def quota(self, seen: int, image_bytes: int = 1) -> int:
        """Exemplars of one class."""
        return self.images

    def __str__(self) -> str:
        return {0: "none", UNLIMITED: "all"}.get(self.images, f"{self.images}/class")


@dataclass(frozen=True)
class Bytes:
    """So many bytes of uint8 pixels altogether, shared equally among the classes seen."""

    bytes: int

    def quota(self, seen: int, image_bytes: int = 1) -> int:
        """Exemplars of one class when `seen` classes share, of `image_bytes` each."""
        return self.bytes // image_bytes // seen

    def __str__(self) -> str:
        return f"{self.bytes}B"


Budget = Total | PerClass | Bytes
NOTHING = PerClass(0)
EVERYTHING = PerClass(UNLIMITED)


def budget(text: str) -> Budget:
    """Read a budget: `2000` in total, `20/class`, `5MB`, `none` or `all`.

    Raises:
        NacreError: the text is none of these.
    """
    named = {"none": NOTHING, "all": EVERYTHING}
    text = text.strip()
    match = re.fullmatch(r"(\d+)(/class)?", text)
    if match:
        return (PerClass if match[2] else Total)(int(match[1]))
    if text in named:
        return named[text]
    with suppress(NacreError):
        return Bytes(amount(text))
    raise NacreError(f"unknown memory {text!r}: use a total such as 2000, or 20/class, bytes such as 5MB, none, or all.")


class Memory:
    """Exemplars: uint8 images and labels, by class in order of arrival, within a class the most worthy first.

    Beside them, where a method asks for it, `stored` [M, K]: the model's logits when each was remembered, -inf for later classes.

    Args:
        budget: how many may be kept.
        selection: how they are chosen, see `SELECTIONS`.
        shape: channels, height and width of the images.
    """

    def __init__(self, budget: Budget, selection: str, shape: tuple[int, int, int]) -> None:
        self.budget = budget
        self.selection = selection
        self.select = choose("selection", selection, SELECTIONS)
        self.images = torch.empty(0, *shape, dtype=torch.uint8)
        self.labels = torch.empty(0, dtype=torch.long)
        self.stored = torch.empty(0, 0)

    def __len__(self) -> int:
        return len(self.labels)

    def quota(self, seen: int) -> int:
        """Exemplars of one class when `seen` classes share."""
        return self.budget.quota(seen, math.prod(self.images.shape[1:]))

    def samples(self) -> Samples:
        """The exemplars as samples."""
        return Samples.of(self.images, self.labels)

    def update(
        self,
        stage: Stage,
        features_of: Callable[[Samples], Tensor],
        seed: int,
        answers_of: Callable[[Samples], Tensor] | None = None,
        worth: Tensor | None = None,
    ) -> None:
        """Choose exemplars of the classes that the stage brought images of, and cut the others to their new share.

        Args:
            stage: the stage just learnt; images of a known class compete with its exemplars for its share.
            features_of: samples [n] -> features [n, D].
            seed: of the run, for selections that draw.
            answers_of: samples [n] -> logits [n, seen], to be stored beside those that are remembered now; None: nothing is.
            worth: [n + M], of the stage's samples and the exemplars: the smallest are kept; None: the selection chooses.
        """
        quota = self.quota(stage.seen)
        kept = [self.samples().take(torch.empty(0, dtype=torch.long))]
        stored = [self.stored.new_empty(0, self.stored.shape[1])]
        for label in range(stage.seen if quota else 0):
            one = range(label, label + 1)
            mine, fresh = self.samples().among(one), stage.train.among(one)
            if worth is None:
                choice = self._choice(mine, fresh, quota, features_of, seed, stage.index, label)
            else:
                new, old = worth.split([len(stage.train), len(self)])
                choice = torch.cat([old[self.labels == label], new[stage.train.labels == label]]).argsort(stable=True)[:quota]
            kept.append((mine + fresh).take(choice))
            stored.append(F.pad(self.stored[mine.rows], (0, 0, 0, len(fresh)), value=-torch.inf)[choice])
        self.images = torch.cat([samples.pixels() for samples in kept])
        self.labels = torch.cat([samples.labels for samples in kept])
        self.stored = torch.cat(stored)
        if answers_of is not None:
            self.stored = F.pad(self.stored, (0, stage.seen - self.stored.shape[1]), value=-torch.inf)
            new = self.stored.isneginf().all(1)
            self.stored[new] = answers_of(self.samples().take(new)).cpu() if new.any() else self.stored[new]

    def _choice(
        self, mine: Samples, fresh: Samples, quota: int, features_of: Callable[[Samples], Tensor], seed: int, stage: int, label: int
    ) -> Tensor:
        """Positions in `mine + fresh` to keep."""
        count = len(mine) + len(fresh)
        if not len(fresh) or quota == UNLIMITED:
            return torch.arange(min(quota, count))  # chosen before, the most worthy first, or all of them
        candidates = mine + fresh
        return self.select(count, lambda: features_of(candidates), quota, generator(seed, "select", stage, label))

    def take(self, which: Tensor) -> None:
        """Keep the exemplars at `which` alone: positions [m] or a mask [M]."""
        self.images, self.labels, self.stored = self.images[which], self.labels[which], self.stored[which]

    def narrow(self, classes: Tensor) -> None:
        """Keep exemplars of some classes alone, which count from 0 on then: positions [k], ascending."""
        self.take(torch.isin(self.labels, classes))
        self.labels = torch.searchsorted(classes, self.labels)
        if self.stored.shape[1]:
            self.stored = F.pad(self.stored, (0, max(0, int(classes.max()) + 1 - self.stored.shape[1])), value=-torch.inf)[:, classes]

    def state(self) -> dict[str, Tensor]:
        """What a model file keeps of the memory."""
        beside = {"stored": self.stored} if self.stored.shape[1] else {}
        return {"images": self.images, "labels": self.labels, **beside}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Take back what `state` gave.

        Raises:
            NacreError: the images have another shape, or labels are missing.
        """
        images, labels, stored = state["images"], state["labels"], state.get("stored", torch.empty(len(state["labels"]), 0))
        fits = images.shape[1:] == self.images.shape[1:] and images.dtype == torch.uint8
        if not fits or labels.shape != images.shape[:1] or labels.dtype != torch.int64:
            raise NacreError(f"exemplars of shape {tuple(images.shape)} with {tuple(labels.shape)} labels are not of these images")
        if stored.ndim != 2 or len(stored) != len(images):
            raise NacreError(f"what is stored beside {len(images)} exemplars has shape {tuple(stored.shape)}")
        self.images, self.labels, self.stored = images, labels, stored
