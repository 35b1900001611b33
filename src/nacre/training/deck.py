"""The samples of one fit, dealt step by step.

Shapes: n samples of the fit, B of a step on this process, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from nacre.data.augment import Augment, View
from nacre.data.replay import Rehearsal
from nacre.data.source import Samples
from nacre.losses.loss import Batch
from nacre.models.model import Model
from nacre.seeds import generator
from nacre.training.runtime import Runtime


@dataclass(frozen=True, eq=False)
class Dealt:
    """One step's samples, on the device: first the new ones, then the remembered that were drawn."""

    view: View
    labels: Tensor
    """[B], int64."""
    share: float
    """Makes the mean over processes of the batch means the mean over the batch where that does not divide evenly; 1 in one process."""
    fresh: int
    """How many are new."""
    stored: Tensor | None = None
    """[B - fresh, K]: what was remembered beside the images."""
    apart: bool = False
    """Whether the remembered ones make a batch of their own."""

    def batch(self, model: Model, layout: torch.memory_format) -> Batch:
        """The samples as a model takes them."""
        view, partner = self.view, None if self.view.partner is None else self.labels[self.view.partner]
        images = model.normalise(view.pixels).contiguous(memory_format=layout)
        target = None if view.clean is view.pixels else model.normalise(view.clean).contiguous(memory_format=layout)
        if not self.apart:
            return Batch(images, self.labels, target, partner, view.share, self.fresh, self.stored)
        parts = []
        for part in (slice(self.fresh), slice(self.fresh, None)):
            mixed = (None if partner is None else partner[part], None if view.share is None else view.share[part])
            parts.append(Batch(images[part], self.labels[part], None if target is None else target[part], *mixed))
        return parts[0].beside(parts[1])


class Deck:
    """The samples of one fit: on the device as uint8 where they fit, else read from where they lie, batch by batch.

    Args:
        samples: n of them.
        augment: the training view.
        runtime: of this process, which takes its share of every batch.
        batch: largest number of samples in a step over all processes, remembered ones that join it not counted.
        rehearsal: remembered samples that join every step.
        views: how many views of each new sample a step holds, one set after the other.
    """

    def __init__(
        self, samples: Samples, augment: Augment, runtime: Runtime, batch: int, rehearsal: Rehearsal | None = None, views: int = 1
    ) -> None:
        self.own = len(samples)
        self.views = views
        self.rehearsal = rehearsal if rehearsal is not None and len(rehearsal) else None
        self.samples = samples if self.rehearsal is None else samples + self.rehearsal.samples
        self.augment = augment
        self.runtime = runtime
        self.steps = math.ceil(self.own / batch)
        self.labels = self.samples.labels.to(runtime.device)
        self.stored = None if self.rehearsal is None or self.rehearsal.stored is None else self.rehearsal.stored.to(runtime.device)
        self.resident = None
        if math.prod(samples.images.shape[1:]) * len(self.samples) < runtime.free_bytes() / 4:
            self.resident = runtime.images(self.samples.pixels())

    def epoch(self, seed: int, *place: int) -> Iterator[Dealt]:
        """Yield all steps, on the device, in an order of this epoch's own; all its random numbers are drawn here, at once."""
        device, rank, world = self.runtime.device, self.runtime.rank, self.runtime.world
        draw = generator(seed, "epoch", *place)
        hands = list(torch.randperm(self.own, generator=draw).tensor_split(self.steps))
        drawn = [hand[:0] for hand in hands] if self.rehearsal is None else self.rehearsal.rows(hands, self.samples.labels, draw)
        sizes = [self.views * len(hand) + len(more) for hand, more in zip(hands, drawn, strict=True)]
        uniform = torch.rand(sum(sizes), self.augment.draws, generator=draw).to(device).split(sizes)
        mine = [torch.cat([hand[rank::world].repeat(self.views), more[rank::world]]) for hand, more in zip(hands, drawn, strict=True)]
        on_device = torch.cat(mine).to(device).split([len(hand) for hand in mine])
        with self._pixels(on_device, mine) as dealt:
            for number, (hand, pixels) in enumerate(zip(on_device, dealt, strict=True)):
                whole = len(hands[number])
                own, more = uniform[number].split([self.views * whole, len(drawn[number])])
                mix = torch.cat([own.unflatten(0, (self.views, whole))[:, rank::world].flatten(0, 1), more[rank::world]])
                fresh = self.views * len(hands[number][rank::world])
                yield Dealt(
                    self.augment.view(self.runtime.images(pixels), mix),
                    self.labels[hand],
                    fresh * world / (self.views * whole),
                    fresh,
                    None if self.stored is None else self.stored[hand[fresh:] - self.own],
                    self.rehearsal is not None and self.rehearsal.apart,
                )

    def _pixels(self, hands: Sequence[Tensor], on_host: Sequence[Tensor]) -> AbstractContextManager[Iterator[Tensor]]:
        """The pixels of each step: taken from the device, or read on a thread while the step before is under way."""
        if self.resident is not None:
            resident = self.resident
            return nullcontext(resident[hand] for hand in hands)
        return ahead(self.runtime.pinned(self.samples.pixels(hand)) for hand in on_host)


@contextmanager
def ahead(items: Iterator[Tensor], depth: int = 3) -> Iterator[Iterator[Tensor]]:
    """Make items on a thread, up to `depth` of them before they are asked for; an error comes where its item would have come."""
    # one thread of arithmetic there: a second team of threads would fight with the step's over the cores
    with ThreadPoolExecutor(1, "prefetch", torch.set_num_threads, (1,)) as pool:
        waiting = deque(pool.submit(next, items, None) for _ in range(depth))

        def taken() -> Iterator[Tensor]:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, items, None))
                yield item

        yield taken()
