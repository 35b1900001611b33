"""The fraction of variance unexplained: 1 for the mean image, 0 for a copy, the same at every size and for every number of channels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from nacre.data.source import Samples
from nacre.losses.loss import Batch, Step
from nacre.losses.reconstruction import Reconstruction, unexplained
from nacre.models.model import Normalise

SHAPES = [(1, 8, 8), (3, 8, 8), (1, 5, 7), (3, 33, 17)]


def step(images: Tensor, reconstruction: Tensor | None) -> Step:
    found: Any = SimpleNamespace(out=SimpleNamespace(reconstruction=reconstruction), batch=Batch(images, torch.zeros(len(images))))
    return cast(Step, found)


def normalised(shape: tuple[int, ...], n: int = 12) -> Tensor:
    """Training images as the network sees them, of uneven brightness per channel."""
    draw = torch.Generator().manual_seed(0)
    spread = torch.tensor([20, 90, 250])[: shape[0], None, None]
    images = (torch.rand(n, *shape, generator=draw) * spread).to(torch.uint8)
    normalise = Normalise(shape[0])
    normalise.learn(Samples.of(images, torch.zeros(n)))
    return normalise(images)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_mean_image_leaves_all_variance_and_a_copy_none(shape: tuple[int, ...]) -> None:
    images = normalised(shape)
    assert float(Reconstruction()(step(images, torch.zeros_like(images)))) == pytest.approx(1, abs=1e-4)
    assert float(Reconstruction()(step(images, images.clone()))) == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_half_the_contrast_leaves_a_quarter_of_the_variance_at_every_size(shape: tuple[int, ...]) -> None:
    images = normalised(shape)
    assert float(unexplained(images / 2, images)) == pytest.approx(0.25, abs=1e-4)


def test_channels_weigh_alike_however_bright() -> None:
    images = normalised((3, 8, 8))
    for channel in range(3):
        copy = images.clone()
        copy[:, channel] = 0
        assert float(unexplained(copy, images)) == pytest.approx(1 / 3, abs=1e-4)


def test_it_is_squared_error_over_variance_in_pixels() -> None:
    rng = np.random.default_rng(0)
    pixels, guess = rng.integers(0, 256, (6, 3, 4, 5)).astype(np.uint8), rng.integers(0, 256, (6, 3, 4, 5)).astype(np.uint8)
    normalise = Normalise(3)
    normalise.learn(Samples.of(torch.from_numpy(pixels), torch.zeros(6)))
    shares = []
    for channel in range(3):
        true, drawn = pixels[:, channel].astype(float), guess[:, channel].astype(float)
        shares.append(((drawn - true) ** 2).mean() / true.var())
    found = unexplained(normalise(torch.from_numpy(guess)), normalise(torch.from_numpy(pixels)))
    assert float(found) == pytest.approx(np.mean(shares), rel=1e-4)


def test_it_asks_for_a_reconstruction() -> None:
    assert Reconstruction().decodes
    with pytest.raises(AssertionError, match="decoder"):
        Reconstruction()(step(torch.zeros(1, 1, 2, 2), None))


@pytest.mark.parametrize(
    ("mean", "progress", "warns"), [(1.0, 0.1, True), (1.7, 0.9, True), (0.999, 0.9, False), (1.7, 0.09, False), (0.2, 0.5, False)]
)
def test_a_decoder_no_better_than_the_mean_is_a_concern_after_a_tenth(mean: float, progress: float, warns: bool) -> None:
    concern = Reconstruction().concern(mean, progress)
    assert (concern is not None) is warns
    if concern is not None:
        assert f"{mean:.2f}" in concern
        assert "lower the learning rate" in concern
