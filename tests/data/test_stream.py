"""Sources, views, stages and protocols."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nacre.data.augment import Augment, shifted
from nacre.data.protocols import stage_sizes
from nacre.data.readers import digits, held_out, read
from nacre.data.source import Samples, Source
from nacre.data.stream import Stream
from nacre.errors import NacreError


def test_labels_are_positions_in_order_of_arrival(source: Source) -> None:
    stream = Stream(source, [3, 1, 2], order=[4, 2, 0, 5, 1, 3])
    assert stream.classes == tuple(f"class {i}" for i in (4, 2, 0, 5, 1, 3))
    assert [(stage.known, stage.seen) for stage in stream] == [(0, 3), (3, 4), (4, 6)]
    for stage in stream:
        assert set(stage.train.labels.tolist()) == set(stage.new)
        for label in stage.new:
            mine = stage.train.among(range(label, label + 1)).pixels()
            assert torch.equal(mine, source.train.take(source.train.labels == stream.order[label]).pixels())
    rows = torch.cat([stage.train.rows for stage in stream]).sort().values
    assert torch.equal(rows, torch.arange(len(source.train)))


def test_the_order_comes_from_the_seed(source: Source) -> None:
    assert Stream(source, [6], seed=3).order == Stream(source, [6], seed=3).order
    assert len({Stream(source, [6], seed=seed).order for seed in range(8)}) > 4


@pytest.mark.parametrize("sizes", [[], [6, 0], [2, 2], [7], [8, -2]])
def test_sizes_that_do_not_fit_are_refused(source: Source, sizes: list[int]) -> None:
    with pytest.raises(NacreError, match="sum to 6"):
        Stream(source, sizes)


def test_an_order_that_is_none_is_refused(source: Source) -> None:
    with pytest.raises(NacreError, match="class order"):
        Stream(source, [6], order=[0, 1, 2, 3, 4, 4])


def test_sources_that_are_wrong_are_refused(source: Source) -> None:
    with pytest.raises(NacreError, match="only 5 classes"):
        replace(source, classes=source.classes[:5])
    with pytest.raises(NacreError, match="no training image of extra"):
        replace(source, classes=(*source.classes, "extra"))
    with pytest.raises(NacreError, match="one label"):
        Samples.of(torch.zeros(3, 1, 2, 2, dtype=torch.uint8), torch.zeros(2))


class Counting:
    """Images that count what is read."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.read = images, 0

    @property
    def shape(self) -> torch.Size:
        return self.images.shape

    def __getitem__(self, rows: Tensor) -> Tensor:
        self.read += len(rows)
        return self.images[rows]


def test_views_read_nothing_and_chains_read_each_from_its_place() -> None:
    images = torch.arange(10, dtype=torch.uint8).reshape(10, 1, 1, 1)
    first, second = Counting(images[:6]), Counting(images[6:])
    both = Samples.of(first, torch.arange(6)) + Samples.of(second, torch.arange(6, 10))
    view = both.take(torch.tensor([9, 0, 6, 5])).among(range(5, 10))
    assert first.read == second.read == 0
    assert view.pixels().flatten().tolist() == [9, 6, 5] == view.labels.tolist()
    assert (first.read, second.read) == (1, 2)
    assert both.pixels(torch.tensor([7])).item() == 7


@pytest.mark.parametrize(
    ("protocol", "classes", "sizes"),
    [
        ("b0-inc2", 10, [2] * 5),
        ("b50-inc10", 100, [50] + [10] * 5),
        ("b0-inc4", 10, [4, 4, 2]),
        ("b5-inc5", 5, [5]),
        ("b0-inc1", 3, [1, 1, 1]),
    ],
)
def test_protocols(protocol: str, classes: int, sizes: list[int]) -> None:
    assert stage_sizes(protocol, classes) == sizes


@pytest.mark.parametrize("protocol", ["", "b0", "b0-inc0", "b11-inc1", "b0-inc11", "B0-inc2", "b-1-inc2"])
def test_protocols_that_do_not_fit_are_refused(protocol: str) -> None:
    with pytest.raises(NacreError):
        stage_sizes(protocol, 10)


def test_the_digits_are_all_there() -> None:
    source = digits()
    assert len(source.train) + len(source.test) == 1797
    assert source.train.pixels().dtype == torch.uint8
    assert (int(source.train.pixels().min()), int(source.train.pixels().max())) == (0, 255)
    assert not set(source.train.rows.tolist()) & set(source.test.rows.tolist())
    share = torch.bincount(source.test.labels) / (torch.bincount(source.train.labels) + torch.bincount(source.test.labels))
    assert ((share - 0.2).abs() < 0.005).all()
    assert torch.equal(digits().test.rows, source.test.rows)
    assert not source.augment.flip


def test_a_class_of_one_stays_in_training() -> None:
    kept, out = held_out(torch.tensor([0, 1, 1, 1, 1, 1]), fraction=0.2, seed=0)
    assert 0 in kept.tolist()
    assert len(out) == 1


def test_unknown_data_is_refused() -> None:
    with pytest.raises(NacreError, match="Did you mean 'digits'"):
        read("digitz")


def test_a_shifted_crop_is_the_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (20, 3, 5, 7), dtype=torch.uint8, generator=draw)
    offset = torch.randint(0, 5, (20, 2), generator=draw)
    found = shifted(images, offset, 2)
    for image, (dy, dx), cut in zip(images, offset.tolist(), found, strict=True):
        for y in range(5):
            for x in range(7):
                sy, sx = y + dy - 2, x + dx - 2
                want = image[:, sy, sx] if 0 <= sy < 5 and 0 <= sx < 7 else torch.zeros(3, dtype=torch.uint8)
                assert torch.equal(cut[:, y, x], want)


def test_augmentation_follows_its_numbers() -> None:
    images = torch.randint(0, 256, (2, 1, 4, 4), dtype=torch.uint8)
    middle = torch.tensor([[0.5, 0.5, 0.1], [0.5, 0.5, 0.9]])
    found = Augment(shift=2, flip=True)(images, middle)
    assert torch.equal(found[0], images[0].flip(-1))
    assert torch.equal(found[1], images[1])
    assert torch.equal(Augment()(images, middle), images)
    assert found.dtype == torch.uint8
    with pytest.raises(ValueError, match="shift is -1"):
        Augment(shift=-1)
