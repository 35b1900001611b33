"""How the samples of a fit are dealt: every one once, the same for any number of processes; remembered ones join."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nacre.data.augment import Augment
from nacre.data.replay import Rehearsal
from nacre.data.source import ImageSpec, Samples
from nacre.models.model import build_model
from nacre.training.deck import Deck


def deck(n: int, batch: int, *, rank: int = 0, world: int = 1, memory: int = 2**30, augment: Augment | None = None) -> Deck:
    """A deck of n images 2 x 2 that hold their own number."""
    images = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).repeat(1, 1, 2, 2)
    runtime: Any = SimpleNamespace(
        device=torch.device("cpu"), rank=rank, world=world, images=lambda x: x, pinned=lambda x: x, free_bytes=lambda: memory
    )
    return Deck(Samples.of(images, torch.arange(n)), augment or Augment(), runtime, batch)


def epoch(cards: Deck, *place: int, seed: int = 0) -> list[tuple[Tensor, list[int], float]]:
    return [(dealt.view.pixels, dealt.labels.tolist(), dealt.share) for dealt in cards.epoch(seed, *place)]


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 9))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_every_sample_comes_once_in_near_equal_batches(n: int, batch: int, seed: int) -> None:
    steps = epoch(deck(n, batch), 1, 2, seed=seed)
    assert sorted(label for _, labels, _ in steps for label in labels) == list(range(n))
    sizes = [len(labels) for _, labels, _ in steps]
    assert max(sizes) <= batch
    assert max(sizes) - min(sizes) <= 1
    assert batch * (len(steps) - 1) < n  # no fewer steps would do
    for pixels, labels, share in steps:
        assert pixels.dtype == torch.uint8
        assert pixels[:, 0, 0, 0].tolist() == labels
        assert share == 1


@given(st.integers(8, 60), st.integers(8, 20), st.integers(1, 4), st.integers(0, 9))
@settings(max_examples=30, derandomize=True, deadline=None)
def test_ranks_part_every_batch_and_their_shares_average_exactly(n: int, batch: int, world: int, seed: int) -> None:
    whole = epoch(deck(n, batch), 0, seed=seed)
    parts = [epoch(deck(n, batch, rank=rank, world=world), 0, seed=seed) for rank in range(world)]
    worth = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for number, (_, labels, _) in enumerate(whole):
        mine = [part[number] for part in parts]
        assert sorted(label for _, some, _ in mine for label in some) == sorted(labels)
        sizes = [len(some) for _, some, _ in mine]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 0  # batches of these sizes hold four samples or more
        mean = sum(float(worth[some].mean()) * share for _, some, share in mine) / world
        assert mean == pytest.approx(float(worth[labels].mean()))


def test_ranks_see_the_same_augmented_images() -> None:
    view = Augment(shift=1, flip=True)
    whole = epoch(deck(30, 10, augment=view), 0)
    parts = [epoch(deck(30, 10, rank=rank, world=3, augment=view), 0) for rank in range(3)]
    for number, (pixels, labels, _) in enumerate(whole):
        drawn = dict(zip(labels, pixels, strict=True))
        for part in parts:
            some, theirs, _ = part[number]
            assert all(torch.equal(drawn[label], image) for label, image in zip(theirs, some, strict=True))


def test_an_epoch_depends_on_seed_and_place_alone() -> None:
    def order(*place: int, seed: int = 0) -> list[int]:
        torch.rand(3)  # torch's own generator does not count
        return [label for _, labels, _ in epoch(deck(40, 7), *place, seed=seed) for label in labels]

    assert order(0, 1) == order(0, 1)
    assert len({tuple(order(*place, seed=seed)) for place in ((0, 1), (1, 0), (0, 2)) for seed in (0, 1)}) == 6


def test_what_does_not_fit_is_read_batch_by_batch_and_is_the_same() -> None:
    view = Augment(shift=1)
    resident, streamed = deck(20, 6, augment=view), deck(20, 6, memory=8, augment=view)
    assert (resident.resident is None, streamed.resident is None) == (False, True)
    for (a, labels, _), (b, same, _) in zip(epoch(resident, 0), epoch(streamed, 0), strict=True):
        assert labels == same
        assert torch.equal(a, b)


def rehearsing(ratio: int = 1, *, apart: bool = False, rank: int = 0, world: int = 1) -> Deck:
    """20 new samples 0..19 in steps of 8, and 6 remembered ones 100..105 with their numbers stored beside them."""
    cards = deck(20, 8, rank=rank, world=world)
    remembered = Samples.of(
        torch.arange(100, 106, dtype=torch.uint8)[:, None, None, None].expand(-1, *cards.samples.images.shape[1:]), torch.arange(100, 106)
    )
    rehearsal = Rehearsal(remembered, torch.arange(100.0, 106.0)[:, None], ratio, apart)
    return Deck(cards.samples, Augment(), cards.runtime, 8, rehearsal)


@pytest.mark.parametrize("ratio", [1, 2])
def test_remembered_samples_join_every_step(ratio: int) -> None:
    steps = list(rehearsing(ratio).epoch(0, 0))
    assert sorted(label for step in steps for label in step.labels[: step.fresh].tolist()) == list(range(20))
    for step in steps:
        drawn = step.labels[step.fresh :]
        assert len(drawn) == ratio * step.fresh
        assert (drawn >= 100).all()
        assert torch.equal(step.view.pixels[step.fresh :, 0, 0, 0].long(), drawn)
        assert step.stored is not None
        assert torch.equal(step.stored[:, 0], drawn.float())
    assert {int(label) for step in steps for label in step.labels[step.fresh :]} == set(range(100, 106))


def test_processes_share_what_joins() -> None:
    whole = list(rehearsing(2).epoch(0, 0))
    parts = [list(rehearsing(2, rank=rank, world=2).epoch(0, 0)) for rank in range(2)]
    for one, *shares in zip(whole, *parts, strict=True):
        assert sorted(one.labels.tolist()) == sorted(label for part in shares for label in part.labels.tolist())


def test_what_stands_apart_is_a_batch_of_its_own() -> None:
    model = build_model("small", "linear", ImageSpec((1, 4, 4)))
    for step in rehearsing(apart=True).epoch(0, 0):
        batch = step.batch(model, torch.contiguous_format)
        assert batch.remembered is not None
        assert (batch.labels < 20).all()
        assert (batch.remembered.labels >= 100).all()
        assert len(batch.images) == len(batch.remembered.images) == step.fresh


def test_an_empty_memory_joins_nothing() -> None:
    cards = deck(20, 8)
    nothing = Rehearsal(cards.samples.take(torch.empty(0, dtype=torch.long)))
    alone = Deck(cards.samples, Augment(), cards.runtime, 8, nothing)
    for a, b in zip(cards.epoch(0, 0), alone.epoch(0, 0), strict=True):
        assert torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("world", [1, 2])
def test_two_views_of_every_sample_stand_one_set_after_the_other(world: int) -> None:
    cards = [deck(20, 8, augment=Augment(shift=1), rank=rank, world=world) for rank in range(world)]
    twice = [Deck(card.samples, Augment(shift=1), card.runtime, 8, views=2) for card in cards]
    for steps in zip(*(card.epoch(0, 0) for card in twice), strict=True):
        for step in steps:
            half = len(step.labels) // 2
            assert step.labels[:half].tolist() == step.labels[half:].tolist()
            assert step.fresh == 2 * half
        assert sum(step.share for step in steps) == pytest.approx(world)
    labels = [label for step in twice[0].epoch(0, 0) for label in step.labels.tolist()]
    assert len(labels) == 2 * (20 if world == 1 else 10 + 1)
    pixels = torch.cat([step.view.pixels.unflatten(0, (2, -1)) for step in twice[0].epoch(0, 0)], 1)
    assert not torch.equal(pixels[0], pixels[1])
