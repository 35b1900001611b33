"""Protocols: how many classes each stage brings, in which order they come, and how many images of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from nacre.data.source import Source
from nacre.data.stream import Stream
from nacre.errors import NacreError, nearest
from nacre.seeds import generator

NAMED = {
    "b0-incN": "N classes in every stage, such as b0-inc10; the last stage takes what is left",
    "bB-incN": "B classes in the first stage, then N a stage, such as b50-inc5",
    "arrival.stages": "stages by class name in a recipe, such as stages = [['cat', 'dog'], ['ship']]",
    "arrival.order": "seed (drawn from the run's seed), source (as the data name them), numpy-1993 (the field's order of CIFAR-100), "
    "numpy (the same with the run's seed)",
    "arrival.classes": "only the first so many classes of the data take part",
    "arrival.imbalance": "long-tailed training images: the commonest class has so many times the images of the rarest",
    "arrival.shots": "few-shot stages: so many training images of every class after the first stage",
}
"""What `nacre protocols` prints."""


def stage_sizes(protocol: str, classes: int) -> list[int]:
    """Classes per stage under a protocol of the field.

    Args:
        protocol: `bB-incN`: B classes in the first stage (B = 0: N like every other), then N a stage; a last stage
            takes what is left and may be smaller.
        classes: how many there are.

    Returns:
        Positive numbers that sum to `classes`.

    Raises:
        NacreError: the protocol is not of that form, or does not fit the number of classes.
    """
    match = re.fullmatch(r"b(\d+)-inc(\d+)", protocol)
    if not match:
        raise NacreError(f"unknown protocol {protocol!r}: use bB-incN, such as b0-inc2 or b50-inc10 (B classes first, then N a stage).")
    base, step = int(match[1]), int(match[2])
    if step == 0 or max(base, step) > classes:
        raise NacreError(f"protocol {protocol!r} does not fit {classes} classes: N must be 1 or more, and neither B nor N above {classes}.")
    first = base or step
    full, rest = divmod(classes - first, step)
    return [first, *[step] * full, *([rest] if rest else [])]


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """In which order classes come, and how many images of each; by default in an order of the run's seed, with all images."""

    order: str = "seed"
    """`seed`: drawn from the run's seed; `source`: as the data name them; `numpy-N`: numpy's legacy permutation of seed N, as the
    field's tables use with N = 1993; `numpy`: that permutation with the run's seed."""
    classes: int = 0
    """The first so many classes of the data take part, whatever the order; 0: all."""
    stages: tuple[tuple[str, ...], ...] = ()
    """Class names of every stage; they win over protocol and order, and classes that are not named do not take part."""
    imbalance: float = 1.0
    """Training images of the commonest class over those of the rarest, an exponential in between (Cui et al., CVPR 2019)."""
    tail: Literal["shuffled", "ordered"] = "shuffled"
    """Which classes are rare under imbalance: drawn from the run's seed, or the later the rarer."""
    shots: int = 0
    """Training images of every class after the first stage; 0: all."""

    def __post_init__(self) -> None:
        if self.imbalance < 1 or self.shots < 0 or self.classes < 0:
            raise ValueError(
                f"imbalance is {self.imbalance}, shots {self.shots} and classes {self.classes}, but they must be at least 1, 0 and 0"
            )
        if not re.fullmatch(r"seed|source|numpy|numpy-\d{1,9}", self.order):
            raise ValueError(f"order is {self.order!r}, but it must be seed, source, numpy, or numpy-N such as numpy-1993")

    def stream(self, source: Source, protocol: str, seed: int) -> Stream:
        """A source in stages.

        Args:
            source: the data set.
            protocol: see `stage_sizes`; it does not count where stages are named.
            seed: of the run.

        Raises:
            NacreError: protocol or names do not fit the source.
        """
        if self.stages:
            order, sizes = named(self.stages, source.classes), [len(stage) for stage in self.stages]
            source = restricted(source, sorted(order))
            order = [sorted(order).index(label) for label in order]
        else:
            source = restricted(source, range(min(self.classes or len(source.classes), len(source.classes))))
            sizes = stage_sizes(protocol, len(source.classes))
            order = self._order(len(source.classes), seed)
        if self.imbalance > 1 or self.shots:
            source = replace(source, train=source.train.take(self._kept(source, order, sizes[0], seed)))
        return Stream(source, sizes, order, seed)

    def _order(self, classes: int, seed: int) -> list[int]:
        """Source labels in order of arrival."""
        if self.order == "source":
            return list(range(classes))
        if self.order == "seed":
            return torch.randperm(classes, generator=generator(seed, "class order")).tolist()
        drawn = seed % 2**32 if self.order == "numpy" else int(self.order.removeprefix("numpy-"))
        return np.random.RandomState(drawn).permutation(classes).tolist()  # type: ignore[no-any-return]

    def _kept(self, source: Source, order: Sequence[int], first: int, seed: int) -> Tensor:
        """Positions of the training images that take part, ascending."""
        draw = generator(seed, "long tail")
        count = torch.bincount(source.train.labels, minlength=len(order))
        rank = torch.randperm(len(order), generator=draw) if self.tail == "shuffled" else torch.arange(len(order))
        share = self.imbalance ** (-rank.double() / max(1, len(order) - 1))
        kept = []
        for place, label in enumerate(order):
            most = max(1, round(float(share[place]) * int(count.max())))
            most = min(most, self.shots) if self.shots and place >= first else most
            mine = torch.nonzero(source.train.labels == label).flatten()
            kept.append(mine[torch.randperm(len(mine), generator=draw)[:most]])
        return torch.cat(kept).sort().values


def named(stages: Sequence[Sequence[str]], classes: Sequence[str]) -> list[int]:
    """Labels of class names, stage by stage.

    Raises:
        NacreError: a stage is empty, a name is unknown, or comes twice.
    """
    names = [name for stage in stages for name in stage]
    wrong = [f"unknown class {name!r}.{nearest(name, classes)}" for name in names if name not in classes]
    wrong += [f"class {name!r} comes twice." for name in dict.fromkeys(names) if names.count(name) > 1]
    wrong += ["a stage brings no class." for stage in stages if not stage]
    if wrong:
        raise NacreError("\n".join(f"arrival.stages: {text}" for text in wrong))
    return [list(classes).index(name) for name in names]


def restricted(source: Source, labels: Sequence[int]) -> Source:
    """A source of some of its classes."""
    if list(labels) == list(range(len(source.classes))):
        return source
    position = torch.full((len(source.classes),), -1)
    position[list(labels)] = torch.arange(len(labels))

    parts = [part.take(position[part.labels] >= 0) for part in (source.train, source.test)]
    train, test = (replace(part, labels=position[part.labels]) for part in parts)
    return replace(source, train=train, test=test, classes=tuple(source.classes[label] for label in labels))
