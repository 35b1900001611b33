"""Sources, views and chains: what is refused, and that no pixel is read before it is asked for."""

from __future__ import annotations

import functools
import operator

import pytest
import torch
from torch import Tensor

from nacre.data.augment import Augment
from nacre.data.source import Chain, ImageSpec, Samples, Source
from nacre.data.stream import Stream
from nacre.errors import NacreError


class Spy:
    """Images that record the rows asked of them."""

    def __init__(self, count: int, start: int = 0) -> None:
        self.images = torch.arange(start, start + count, dtype=torch.uint8).reshape(count, 1, 1, 1).repeat(1, 2, 3, 4)
        self.asked: list[list[int]] = []

    @property
    def shape(self) -> torch.Size:
        return self.images.shape

    def __getitem__(self, rows: Tensor) -> Tensor:
        self.asked.append(rows.tolist())
        return self.images[rows]


def values(pixels: Tensor) -> list[int]:
    """The number that every pixel of an image holds."""
    assert (pixels == pixels[:, :1, :1, :1]).all()
    return pixels[:, 0, 0, 0].tolist()


def test_views_and_streams_read_no_pixel() -> None:
    spy = Spy(8)
    samples = Samples.of(spy, torch.arange(8) % 4)
    stream = Stream(Source(samples, samples, ("a", "b", "c", "d")), [2, 2])
    joined = stream.train.take(torch.tensor([5, 1])) + stream[1].test
    assert len(joined) == 6
    assert stream.source.spec.shape == (2, 3, 4)
    assert spy.asked == []


def test_a_batch_reads_its_own_rows_and_no_others() -> None:
    spy = Spy(8)
    late = Samples.of(spy, torch.arange(8)).among(range(4, 8))
    assert values(late.pixels(torch.tensor([3, 0]))) == [7, 4]
    assert values(late.pixels(slice(1, 3))) == [5, 6]
    assert spy.asked == [[7, 4], [5, 6]]


def test_views_of_views_keep_images_and_labels_together() -> None:
    samples = Samples.of(Spy(10), torch.arange(10))
    view = samples.take(torch.tensor([9, 2, 2, 7, 0])).take(torch.tensor([True, True, True, False, True])).among(range(2, 10))
    assert view.labels.tolist() == [9, 2, 2] == values(view.pixels())


def test_a_chain_reads_each_image_from_its_store() -> None:
    first, second, third = Spy(3), Spy(2, start=3), Spy(4, start=5)
    chain = Chain(Chain(first, second), third)
    assert chain.shape == (9, 2, 3, 4)
    rows = [8, 0, 4, 4, 2, 5]
    found = chain[torch.tensor(rows)]
    assert values(found) == rows
    assert found.dtype == torch.uint8
    assert [functools.reduce(operator.iadd, spy.asked, []) for spy in (first, second, third)] == [[0, 2], [1, 1], [3, 0]]


def test_a_sum_of_samples_is_both_in_order() -> None:
    both = Samples.of(Spy(3), torch.tensor([0, 1, 2])).take(torch.tensor([2, 0])) + Samples.of(Spy(2, start=3), torch.tensor([3, 4]))
    assert both.labels.tolist() == [2, 0, 3, 4] == values(both.pixels())


def test_a_sum_with_nothing_holds_on_to_no_images_of_the_empty_side() -> None:
    some, none = Samples.of(Spy(3), torch.zeros(3)), Samples.of(Spy(5), torch.zeros(5)).take(torch.tensor([], dtype=torch.long))
    assert (some + none).images is some.images
    assert (none + some).images is some.images
    assert len(none + none) == 0


def test_a_digest_tells_other_pixels_labels_and_names() -> None:
    pixels, labels = torch.arange(600 * 4).to(torch.uint8).reshape(600, 1, 2, 2), torch.arange(600) % 2

    def digest(
        train: Tensor = pixels, test: Tensor = pixels, labels: Tensor = labels, classes: tuple[str, ...] = ("a", "b"), **how: int
    ) -> str:
        return Source(Samples.of(train, labels), Samples.of(test, labels[: len(test)]), classes).digest(**how)

    def changed(place: int) -> Tensor:
        other = pixels.clone()
        other[place, 0, 1, 1] += 1
        return other

    found = [
        digest(),
        digest(changed(599)),
        digest(test=changed(0)),
        digest(labels=1 - labels),
        digest(classes=("a", "c")),
        digest(sampled=7),
    ]
    assert len(set(found)) == 6
    assert digest(pixels.clone(), chunk=100) == found[0]
    for place in (0, 99, 599):  # of seven among 600, the first, the second and the last
        assert digest(changed(place), sampled=7) != digest(sampled=7)
    assert digest(changed(1), sampled=7) == digest(sampled=7)
    assert digest(test=pixels[:0]) != digest()


def test_each_image_needs_one_label() -> None:
    with pytest.raises(NacreError, match="3 images came with 2 labels"):
        Samples.of(Spy(3), torch.zeros(2))


def test_labels_beyond_the_names_are_refused() -> None:
    few, many = Samples.of(Spy(2), torch.tensor([0, 1])), Samples.of(Spy(3), torch.tensor([0, 1, 4]))
    with pytest.raises(NacreError, match="training label 4 found, but only 2 classes"):
        Source(many, few, ("a", "b"))
    with pytest.raises(NacreError, match="test label 4 found, but only 2 classes"):
        Source(few, many, ("a", "b"))


def test_labels_below_zero_are_refused() -> None:
    few, below = Samples.of(Spy(2), torch.tensor([0, 1])), Samples.of(Spy(3), torch.tensor([0, -1, 1]))
    with pytest.raises(NacreError, match="training label -1 found"):
        Source(below, few, ("a", "b"))


def test_a_class_without_images_is_named() -> None:
    few, all_three = Samples.of(Spy(2), torch.tensor([0, 2])), Samples.of(Spy(3), torch.tensor([0, 1, 2]))
    with pytest.raises(NacreError, match="no training image of middle"):
        Source(few, all_three, ("first", "middle", "end"))
    with pytest.raises(NacreError, match="no test image of middle"):
        Source(all_three, few, ("first", "middle", "end"))


def test_the_spec_tells_shape_and_view() -> None:
    samples = Samples.of(Spy(1), torch.tensor([0]))
    spec = Source(samples, samples, ("a",), Augment(shift=3)).spec
    assert spec == ImageSpec((2, 3, 4), Augment(shift=3))
    assert (spec.channels, spec.size) == (2, (3, 4))
