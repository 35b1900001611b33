"""The deck of a fit and lent trainability; no process is started here."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nacre.data.augment import Augment
from nacre.data.source import ImageSpec, Samples
from nacre.models.model import Model, build_model
from nacre.training.phases import Deck, trainable


def deck(n: int, batch: int, *, rank: int = 0, world: int = 1, memory: int = 2**30, augment: Augment | None = None) -> Deck:
    """A deck of n images 2 x 2 that hold their own number."""
    images = torch.arange(n, dtype=torch.uint8).reshape(n, 1, 1, 1).repeat(1, 1, 2, 2)
    runtime: Any = SimpleNamespace(
        device=torch.device("cpu"), rank=rank, world=world, images=lambda x: x, pinned=lambda x: x, free_bytes=lambda: memory
    )
    return Deck(Samples.of(images, torch.arange(n)), augment or Augment(), runtime, batch)


def epoch(cards: Deck, *place: int, seed: int = 0) -> list[tuple[Tensor, list[int], float]]:
    return [(view.pixels, labels.tolist(), share) for view, labels, share in cards.epoch(seed, *place)]


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


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    model = build_model("small", "linear", ImageSpec((1, 8, 8)))
    model.grow(3)
    return model


def flags(model: Model) -> dict[str, bool]:
    return {name: parameter.requires_grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("part", ["all", "head"])
@pytest.mark.parametrize("raises", [True, False])
def test_trainability_is_lent_and_all_given_back(model: Model, training: bool, part: str, raises: bool) -> None:
    model.train(training)
    cast(Any, model.backbone).stages[0].requires_grad_(False)
    before, modes = flags(model), {name: module.training for name, module in model.named_modules()}
    try:
        with trainable(model, None if part == "all" else [model.head]) as parameters:
            sum(parameter.sum() for parameter in parameters).backward()  # type: ignore[union-attr]
            if raises:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert flags(model) == before
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(parameter.grad is None for parameter in model.parameters())


def test_all_that_is_trainable_trains_where_no_part_is_named(model: Model) -> None:
    first = cast(Any, model.backbone).stages[0]
    first.requires_grad_(False)
    held = {id(parameter) for parameter in first.parameters()}
    with trainable(model, None) as parameters:
        assert {id(p) for p in parameters} == {id(p) for p in model.parameters()} - held
        assert all(module.training for module in model.modules())


def test_the_rest_of_the_model_holds_still(model: Model) -> None:
    model(torch.randn(4, 1, 8, 8))
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    with trainable(model, [model.head]) as parameters:
        assert [id(p) for p in parameters] == [id(p) for p in model.head.parameters()]
        assert not any(module.training for module in model.backbone.modules())
        assert model.head.training
        model(torch.randn(4, 1, 8, 8) + 5).logits.sum().backward()
        assert all(p.grad is not None for p in parameters)
        assert all(p.grad is None for p in model.backbone.parameters())
    after = model.backbone.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())  # running statistics too
