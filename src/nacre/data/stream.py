"""Classes in order of arrival, cut into stages (papers also say task, session, step, phase or experience)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import overload

import torch
from torch import Tensor

from nacre.data.source import Samples, Source
from nacre.errors import NacreError
from nacre.seeds import generator


@dataclass(frozen=True, eq=False)
class Stage:
    """One group of new classes and its images; labels are positions in order of arrival."""

    index: int
    """0 for the first stage."""
    known: int
    """Classes that came before."""
    seen: int
    """Classes after this stage."""
    names: tuple[str, ...]
    """Names of the new classes, in order of arrival."""
    train: Samples
    test: Samples

    @property
    def new(self) -> range:
        """Labels of the classes that this stage brings."""
        return range(self.known, self.seen)

    @property
    def first(self) -> int:
        """The lowest label that an image of the stage may have: `known`, unless it brings further images of known classes."""
        return min(self.known, int(self.train.labels.min())) if len(self.train) else self.known

    @property
    def share_known(self) -> float:
        """Share of known classes among the seen ones, in [0, 1); a half where a stage brings further images of known classes alone."""
        return self.known / self.seen if self.seen > self.known else 0.5


class Stream(Sequence[Stage]):
    """A source's classes in an order, cut into stages.

    Args:
        source: the data set.
        sizes: new classes of each stage; they sum to the source's number of classes.
        order: source labels in order of arrival; by default a permutation drawn from `seed`.
        seed: of the order.

    Raises:
        NacreError: sizes or order do not fit the source.
    """

    def __init__(self, source: Source, sizes: Sequence[int], order: Sequence[int] | None = None, seed: int = 0) -> None:
        count = len(source.classes)
        if not sizes or min(sizes) < 1 or sum(sizes) != count:
            raise NacreError(f"stages of {list(sizes)} classes do not fit: give positive numbers that sum to {count}")
        if order is None:
            order = torch.randperm(count, generator=generator(seed, "class order")).tolist()
        if sorted(order) != list(range(count)):
            raise NacreError(f"the class order must name each of 0..{count - 1} once; it is {list(order)}")
        self.source = source
        self.order = tuple(order)
        self.classes = tuple(source.classes[label] for label in order)
        arrival = torch.empty(count, dtype=torch.long)
        arrival[torch.tensor(self.order)] = torch.arange(count)
        train, test = relabelled(source.train, arrival), relabelled(source.test, arrival)
        edges = [0, *torch.tensor(sizes).cumsum(0).tolist()]
        self._stages = [
            Stage(index, known, seen, self.classes[known:seen], train.among(range(known, seen)), test.among(range(known, seen)))
            for index, (known, seen) in enumerate(pairwise(edges))
        ]

    def __len__(self) -> int:
        return len(self._stages)

    @overload
    def __getitem__(self, index: int) -> Stage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Stage]: ...
    def __getitem__(self, index: int | slice) -> Stage | list[Stage]:
        return self._stages[index]

    @property
    def train(self) -> Samples:
        """All training samples, labelled by arrival: for evaluation, never for a method."""
        return joined([stage.train for stage in self])

    @property
    def test(self) -> Samples:
        """All test samples, labelled by arrival, ordered by stage."""
        return joined([stage.test for stage in self])


def relabelled(samples: Samples, label: Tensor) -> Samples:
    """The same samples with label `label[old]`."""
    return Samples(samples.images, label[samples.labels], samples.rows)


def joined(parts: Sequence[Samples]) -> Samples:
    """Views of one store of images as one view, in their order."""
    return Samples(parts[0].images, torch.cat([p.labels for p in parts]), torch.cat([p.rows for p in parts]))
