"""The training view against loops over pixels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nacre.data.augment import Augment, beta, natural_augment, shifted
from nacre.errors import NacreError
from nacre.losses.classification import cross_entropy
from nacre.losses.loss import Batch


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


def uniform(view: Augment, count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, view.draws, generator=torch.Generator().manual_seed(seed))


def smooth(count: int, size: int = 16) -> Tensor:
    """Soft colourful pictures [count, 3, size, size]."""
    coarse = torch.randint(0, 256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(1)).float()
    return nn.functional.interpolate(coarse, (size, size), mode="bilinear").round().to(torch.uint8)


def test_what_a_shift_brings_in_is_the_fill() -> None:
    black = torch.zeros(1, 1, 4, 4, dtype=torch.uint8)
    corner = torch.zeros(1, 3)
    assert int((Augment(shift=2, fill=255)(black, corner) == 255).sum()) == 12


@pytest.mark.parametrize(
    "view",
    [
        Augment(crop=0.3, flip=True),
        Augment(brightness=63 / 255),
        Augment(cutout=6),
        Augment(mix="mixup"),
        Augment(mix="cutmix", alpha=0.4),
        Augment(policy="autoaugment"),
        Augment(policy="autoaugment-cifar"),
        Augment(policy="randaugment"),
        Augment(policy="trivialaugment"),
        Augment(shift=2, flip=True, crop=0.5, policy="trivialaugment", brightness=0.2, cutout=5, mix="cutmix"),
    ],
)
def test_every_view_is_a_function_of_its_numbers(view: Augment) -> None:
    images = smooth(24)
    before, numbers = images.clone(), uniform(view, 24)
    found = view.view(images, numbers)
    torch.manual_seed(5)
    again = view.view(images, numbers)
    assert torch.equal(found.pixels, again.pixels)
    assert torch.equal(found.clean, again.clean)
    assert torch.equal(images, before)
    assert (found.pixels.dtype, found.pixels.shape) == (torch.uint8, images.shape)
    assert not torch.equal(view.view(images, uniform(view, 24, seed=1)).pixels, found.pixels)
    assert not torch.equal(found.pixels, images)


def test_a_policy_leaves_torchs_generator_alone() -> None:
    torch.manual_seed(0)
    want = torch.rand(3)
    torch.manual_seed(0)
    view = Augment(policy="randaugment")
    view(smooth(8), uniform(view, 8))
    assert torch.equal(torch.rand(3), want)


def test_a_policy_on_grey_images_is_refused() -> None:
    view = Augment(policy="randaugment")
    with pytest.raises(NacreError, match="needs colour images, but these have 1 channel"):
        view(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), uniform(view, 4))


def test_a_whole_crop_is_the_image() -> None:
    images = smooth(5)
    numbers = torch.rand(5, 7, generator=torch.Generator().manual_seed(0))
    numbers[:, 4] = 0.5  # the ratio: square
    assert torch.equal(Augment(crop=1.0)(images, numbers), images)


def test_a_crop_keeps_the_area_it_is_told() -> None:
    # columns count 0, 1, 2 ...: the range that a crop shows is the width it kept
    ramp = torch.arange(200, dtype=torch.uint8).expand(64, 1, 200, 200).clone()
    view = Augment(crop=0.25)
    found = view(ramp, uniform(view, 64)).float()
    width = (found[:, 0, :, -1] - found[:, 0, :, 0]).mean(1) / 200
    numbers = uniform(view, 64)
    area, ratio = 0.25 + 0.75 * numbers[:, 3], torch.exp((2 * numbers[:, 4] - 1) * np.log(4 / 3))
    want = (area * ratio).sqrt().clamp(max=1)
    assert float((width - want).abs().max()) < 0.02


def test_brightness_multiplies() -> None:
    images = torch.full((3, 3, 2, 2), 100, dtype=torch.uint8)
    numbers = torch.full((3, 4), 0.5)
    numbers[:, 3] = torch.tensor([0.0, 0.5, 1 - 2**-24])
    assert Augment(brightness=63 / 255)(images, numbers)[:, 0, 0, 0].tolist() == [75, 100, 125]
    assert int(Augment(brightness=0.9)(images * 2, numbers).max()) == 255


def test_cutout_takes_a_square_and_the_decoder_is_asked_for_the_whole() -> None:
    images = smooth(50, 20)
    view = Augment(cutout=8)
    numbers = uniform(view, 50)
    found = view.view(images, numbers)
    assert torch.equal(found.clean, images)
    for image, cut, (_, _, _, down, right) in zip(images, found.pixels, numbers.tolist(), strict=True):
        want = image.clone()
        top, left = int(down * 20) - 4, int(right * 20) - 4
        mean = image.float().mean((1, 2)).round().to(torch.uint8)
        want[:, max(0, top) : max(0, top + 8), max(0, left) : max(0, left + 8)] = mean[:, None, None]
        assert torch.equal(cut, want)


def test_mixup_is_the_sum_by_shares_and_the_labels_follow() -> None:
    images = smooth(40)
    view = Augment(mix="mixup", alpha=0.4)
    found = view.view(images, uniform(view, 40))
    assert found.partner is not None
    assert found.share is not None
    assert torch.equal(found.clean, images)
    assert float(found.share.min()) >= 0.5
    share = found.share[:, None, None, None]
    want = share * images.float() + (1 - share) * images[found.partner].float()
    assert float((found.pixels.float() - want).abs().max()) <= 0.5001
    assert (found.partner != torch.arange(40)).all()


def test_cutmix_shares_are_counted_in_pixels() -> None:
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 16, 16).clone()
    view = Augment(mix="cutmix")
    found = view.view(images, uniform(view, 40))
    assert found.partner is not None
    assert found.share is not None
    own = (found.pixels == images).float().mean((1, 2, 3))
    assert torch.allclose(own, found.share)
    other = (found.pixels == images[found.partner]).float().mean((1, 2, 3))
    assert torch.allclose(own + other, torch.ones(40))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_drawn_from_a_beta(alpha: float) -> None:
    from scipy import stats

    draws = beta(torch.rand(20_000, generator=torch.Generator().manual_seed(0)), alpha)
    places = np.linspace(0.02, 0.98, 25)
    np.testing.assert_allclose(np.quantile(draws.numpy(), places), stats.beta(alpha, alpha).ppf(places), atol=0.02)


def test_mixed_labels_weigh_by_their_shares() -> None:
    logits = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    labels, partner, share = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([1, 0, 2, 0, 3, 2]), torch.linspace(0.5, 1, 6)
    batch = Batch(torch.empty(6, 3, 2, 2), labels, partner=partner, share=share)
    soft = torch.zeros(6, 4)
    for i in range(6):
        soft[i, labels[i]] += share[i]
        soft[i, partner[i]] += 1 - share[i]
    want = -(soft * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(cross_entropy(logits, batch), want)


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"crop": 2.0}, "crop is 2.0"), ({"brightness": 1.0}, "brightness is 1.0"), ({"alpha": 0.0}, "alpha is 0.0"), ({"fill": 256}, "fill")],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Augment(**settings)


def test_the_natural_view_of_images() -> None:
    grey = torch.zeros(4, 1, 28, 28, dtype=torch.uint8)
    assert natural_augment(grey) == Augment(shift=1)
    assert natural_augment(255 - grey) == Augment(shift=1, fill=255)
    assert natural_augment(torch.zeros(4, 3, 32, 32, dtype=torch.uint8)) == Augment(shift=4, flip=True, brightness=63 / 255)
    assert natural_augment(torch.zeros(4, 3, 224, 224, dtype=torch.uint8)) == Augment(flip=True, crop=0.25)
