"""The training view against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from nacre.data.augment import Augment, shifted


@pytest.fixture
def images() -> Tensor:
    return torch.randint(1, 256, (9, 2, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def padded_crop(image: np.ndarray, down: int, right: int, reach: int) -> np.ndarray:
    """The window that begins at (down, right) of an image with `reach` black pixels around it."""
    channels, height, width = image.shape
    big = np.zeros((channels, height + 2 * reach, width + 2 * reach), np.uint8)
    big[:, reach : reach + height, reach : reach + width] = image
    out = np.empty_like(image)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                out[c, y, x] = big[c, y + down, x + right]
    return out


@pytest.mark.parametrize("reach", [1, 3, 7])
def test_a_shifted_crop_is_the_window_of_a_padded_image(images: Tensor, reach: int) -> None:
    offset = torch.randint(0, 2 * reach + 1, (9, 2), generator=torch.Generator().manual_seed(reach))
    offset[0], offset[1] = 0, 2 * reach
    found = shifted(images, offset, reach)
    assert found.dtype == torch.uint8
    for image, (down, right), crop in zip(images.numpy(), offset.tolist(), found.numpy(), strict=True):
        np.testing.assert_array_equal(crop, padded_crop(image, down, right, reach))


def test_uniforms_reach_every_shift_alike_and_none_beyond(images: Tensor) -> None:
    one = images[:1]
    for reach in (1, 2, 4, 8):
        steps = 2 * reach + 1
        for step in range(steps):
            uniform = torch.tensor([[(step + 0.5) / steps, 0.5, 0.0]])
            want = padded_crop(one[0].numpy(), step, reach, reach)
            np.testing.assert_array_equal(Augment(shift=reach)(one, uniform)[0].numpy(), want)
        largest = torch.full((1, 3), 1 - 2**-24)  # the largest float32 that torch.rand returns
        want = padded_crop(one[0].numpy(), 2 * reach, 2 * reach, reach)
        np.testing.assert_array_equal(Augment(shift=reach)(one, largest)[0].numpy(), want)


def test_the_third_uniform_decides_the_mirror(images: Tensor) -> None:
    uniform = torch.full((9, 3), 0.5)
    uniform[:, 2] = torch.tensor([0, 0.1, 0.49, 0.5, 0.51, 0.9, 0.2, 0.8, 0.3])
    found = Augment(flip=True)(images, uniform)
    for i, mirrored in enumerate([1, 1, 1, 0, 0, 0, 1, 0, 1]):
        np.testing.assert_array_equal(found[i].numpy(), images[i].numpy()[..., ::-1] if mirrored else images[i].numpy())


def test_without_shift_and_mirror_images_stay(images: Tensor) -> None:
    uniform = torch.rand(9, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Augment()(images, uniform), images)


def test_shift_and_mirror_leave_what_they_are_given(images: Tensor) -> None:
    before, uniform = images.clone(), torch.rand(9, 3, generator=torch.Generator().manual_seed(1))
    view = Augment(shift=2, flip=True)
    found = view(images, uniform)
    assert (found.dtype, found.shape) == (torch.uint8, images.shape)
    assert torch.equal(images, before)
    assert torch.equal(view(images, uniform), found)
    assert uniform.shape[1] == view.draws


def test_a_negative_shift_is_refused() -> None:
    with pytest.raises(ValueError, match="shift is -1, but it must be 0 or more"):
        Augment(shift=-1)
