"""The data sets that nacre reads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from nacre.data.readers import Reading, digits, held_out, read
from nacre.errors import NacreError


def test_digits_are_scikit_learns_in_uint8() -> None:
    source, raw = digits(), load_digits()
    assert len(source.train) + len(source.test) == 1797
    rows = torch.cat([source.train.rows, source.test.rows])
    assert sorted(rows.tolist()) == list(range(1797))
    for part in (source.train, source.test):
        pixels = part.pixels()
        assert (pixels.dtype, pixels.shape[1:]) == (torch.uint8, (1, 8, 8))
        np.testing.assert_allclose(pixels[:, 0].numpy() / 255 * 16, raw.images[part.rows.numpy()], atol=16 / 255 / 2 + 1e-9)
        np.testing.assert_array_equal(part.labels.numpy(), raw.target[part.rows.numpy()])
    assert source.classes == tuple("0123456789")


def test_digits_hold_out_a_fifth_of_every_class() -> None:
    source = digits()
    for label, count in enumerate(np.bincount(load_digits().target).tolist()):
        assert abs(int((source.test.labels == label).sum()) - count / 5) <= 0.5


def test_digits_are_the_same_every_time_whatever_torchs_seed() -> None:
    torch.manual_seed(1)
    first = digits()
    torch.manual_seed(2)
    np.random.seed(3)
    second = digits()
    assert torch.equal(first.test.rows, second.test.rows)
    assert torch.equal(first.train.pixels(), second.train.pixels())


def test_the_digits_views_suit_digits() -> None:
    assert not digits().augment.flip


def test_a_split_is_a_partition_and_depends_on_its_seed() -> None:
    labels = torch.tensor([0] * 10 + [3] * 20 + [1] * 2 + [7])
    kept, out = held_out(labels, fraction=0.3, seed=0)
    assert sorted(kept.tolist() + out.tolist()) == list(range(33))
    assert kept.tolist() == sorted(kept.tolist())
    assert out.tolist() == sorted(out.tolist())
    assert [int((labels[out] == label).sum()) for label in (0, 3, 1, 7)] == [3, 6, 1, 0]
    assert not torch.equal(held_out(labels, fraction=0.3, seed=1)[1], out)


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_each_side_of_a_split_has_an_image_of_every_class(fraction: float) -> None:
    labels = torch.tensor([0, 0, 1, 1, 1])
    kept, out = held_out(labels, fraction=fraction, seed=0)
    assert set(labels[kept].tolist()) == {0, 1} == set(labels[out].tolist())


def test_unknown_data_gets_the_nearest_name() -> None:
    assert len(read("digits").classes) == 10
    with pytest.raises(NacreError, match=r"unknown data 'digit': give a path .* use one of digits.*\. Did you mean 'digits'"):
        read("digit")


def test_settings_are_chosen_on_training_images_alone() -> None:
    whole, tuned = read("digits"), read("digits", Reading(tune=0.25))
    assert len(tuned.train) + len(tuned.test) == len(whole.train)
    assert abs(len(tuned.test) - len(whole.train) / 4) < 10
    train = {image.numpy().tobytes() for image in whole.train.pixels()}
    assert all(image.numpy().tobytes() in train for image in tuned.test.pixels())
    assert not set(tuned.train.rows.tolist()) & set(tuned.test.rows.tolist())
    assert torch.equal(read("digits", Reading(tune=0.25)).test.rows, tuned.test.rows)
    with pytest.raises(ValueError, match=r"tune is 1\.0"):
        Reading(tune=1.0)
