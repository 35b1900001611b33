"""Named protocols: sizes worked out by hand, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nacre.data.protocols import Arrival, stage_sizes
from nacre.data.source import Samples, Source
from nacre.data.stream import Stream
from nacre.errors import NacreError


@pytest.mark.parametrize(
    ("protocol", "classes", "sizes"),
    [
        ("b0-inc10", 100, [10] * 10),
        ("b50-inc5", 100, [50] + [5] * 10),
        ("b0-inc3", 10, [3, 3, 3, 1]),
        ("b4-inc4", 10, [4, 4, 2]),
        ("b3-inc5", 10, [3, 5, 2]),
        ("b7-inc3", 7, [7]),
        ("b0-inc1", 1, [1]),
    ],
)
def test_sizes_by_hand(protocol: str, classes: int, sizes: list[int]) -> None:
    assert stage_sizes(protocol, classes) == sizes


@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_only_the_first_and_the_last_stage_differ(base: int, step: int, classes: int) -> None:
    if max(base, step) > classes:
        with pytest.raises(NacreError, match=f"does not fit {classes} classes"):
            stage_sizes(f"b{base}-inc{step}", classes)
        return
    first, *rest = stage_sizes(f"b{base}-inc{step}", classes)
    assert first == (base or step)
    assert first + sum(rest) == classes
    assert all(size == step for size in rest[:-1])
    assert all(0 < size <= step for size in rest[-1:])


@pytest.mark.parametrize("protocol", ["", "10", "b0inc2", "b0-inc", "b-inc2", "b0-inc2.5", "b0-inc-2", "B0-INC2", " b0-inc2", "b0-inc2\n"])
def test_other_names_are_refused_with_an_example(protocol: str) -> None:
    with pytest.raises(NacreError, match="such as b0-inc2"):
        stage_sizes(protocol, 10)


@pytest.mark.parametrize("protocol", ["b0-inc0", "b5-inc0", "b11-inc1", "b0-inc11"])
def test_names_that_do_not_fit_the_classes_are_refused(protocol: str) -> None:
    with pytest.raises(NacreError, match="does not fit 10 classes"):
        stage_sizes(protocol, 10)


def plain(classes: int = 100, images: int = 50) -> Source:
    """A source whose pixels are its labels."""

    def part(count: int) -> Samples:
        labels = torch.arange(classes).repeat_interleave(count)
        return Samples.of(labels.to(torch.uint8)[:, None, None, None], labels)

    return Source(part(images), part(2), tuple(f"class {number}" for number in range(classes)))


def pixels_of(stream: Stream) -> list[list[int]]:
    """Source labels of every stage, seen through the pixels."""
    return [sorted(set(stage.train.pixels().flatten().tolist())) for stage in stream]


def test_the_fields_order_of_cifar() -> None:
    stream = Arrival(order="numpy-1993").stream(plain(), "b50-inc10", seed=7)
    np.random.seed(1993)
    order = np.random.permutation(100)
    assert order[:5].tolist() == [68, 56, 78, 8, 23]  # as PyCIL and others print it
    assert pixels_of(stream) == [sorted(order[:50].tolist()), *(sorted(order[i : i + 10].tolist()) for i in range(50, 100, 10))]
    assert stream[0].names[:2] == ("class 68", "class 56")


def test_numpys_order_of_the_runs_seed() -> None:
    stream = Arrival(order="numpy").stream(plain(), "b50-inc10", seed=1993)
    assert list(stream.order) == np.random.RandomState(1993).permutation(100).tolist()
    assert (
        list(Arrival(order="numpy").stream(plain(), "b0-inc10", seed=2**40 + 5).order) == np.random.RandomState(5).permutation(100).tolist()
    )


def test_only_the_first_classes_take_part_whatever_the_order() -> None:
    for order in ("seed", "source", "numpy"):
        stream = Arrival(order=order, classes=20).stream(plain(), "b0-inc4", seed=3)
        assert len(stream) == 5
        assert sorted(stream.classes) == sorted(plain().classes[:20])
    assert len(Arrival(classes=500).stream(plain(), "b0-inc10", seed=0)) == 10


def test_the_sources_own_order_and_the_seeds() -> None:
    assert pixels_of(Arrival(order="source").stream(plain(6), "b0-inc2", 0)) == [[0, 1], [2, 3], [4, 5]]
    first, again, other = (pixels_of(Arrival().stream(plain(20), "b0-inc5", seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_stages_by_name() -> None:
    arrival = Arrival(stages=(("class 4", "class 2"), ("class 0",)))
    stream = arrival.stream(plain(6), "b0-inc3", 0)
    assert pixels_of(stream) == [[2, 4], [0]]
    assert stream[0].names == ("class 4", "class 2")
    assert stream[0].train.labels.unique().tolist() == [0, 1]
    assert stream[0].train.among(range(1)).pixels().unique().tolist() == [4]


def test_all_that_is_wrong_with_named_stages_is_said() -> None:
    with pytest.raises(NacreError) as caught:
        Arrival(stages=(("class 4", "clas 2"), (), ("class 4",))).stream(plain(6), "b0-inc3", 0)
    said = str(caught.value)
    assert "unknown class 'clas 2'. Did you mean 'class 2'" in said
    assert "class 'class 4' comes twice" in said
    assert "a stage brings no class" in said


@pytest.mark.parametrize("tail", ["shuffled", "ordered"])
def test_a_long_tail_is_exponential(tail: str) -> None:
    stream = Arrival(imbalance=10, tail=tail, order="source").stream(plain(10, 100), "b0-inc5", 3)  # type: ignore[arg-type]
    counts = torch.cat([torch.bincount(stage.train.labels, minlength=10)[stage.known : stage.seen] for stage in stream]).tolist()
    want = [round(100 * 10 ** (-i / 9)) for i in range(10)]
    assert sorted(counts, reverse=True) == want
    assert (counts == want) == (tail == "ordered")
    assert all(len(stage.test) == 2 * (stage.seen - stage.known) for stage in stream)


def test_few_shots_after_the_first_stage() -> None:
    stream = Arrival(shots=5).stream(plain(10, 100), "b4-inc3", 3)
    assert [len(stage.train) for stage in stream] == [400, 15, 15]
    again = Arrival(shots=5).stream(plain(10, 100), "b4-inc3", 3)
    assert torch.equal(stream[1].train.rows, again[1].train.rows)


@pytest.mark.parametrize("settings", [{"imbalance": 0.5}, {"shots": -1}, {"order": "numpy-"}, {"order": "1993"}, {"classes": -1}])
def test_other_arrivals_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Arrival(**settings)  # type: ignore[arg-type]
