"""What training images go through: batched, on their device, a pure function of pixels and uniform numbers.

The random numbers of a whole epoch are drawn at once on the CPU and travel to the device with the epoch's order, so the
step never waits for them, and every device and every number of processes sees the same augmented images. Only policies and
mixing look at several images of a batch at once, so they alone depend on how a batch is shared out.

Shapes: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.errors import NacreError

GROUP = 8
"""Images that share one draw of a policy."""


@dataclass(frozen=True, eq=False)
class View:
    """A batch as the network sees it."""

    pixels: Tensor
    """[B, C, H, W], uint8."""
    clean: Tensor
    """[B, C, H, W], uint8: the same before anything was cut out or mixed in, what a decoder is asked for."""
    partner: Tensor | None = None
    """[B]: the image of the batch that is mixed into each; None where nothing is mixed."""
    share: Tensor | None = None
    """[B]: what is left of the image itself, in [0.5, 1]."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """The training view of images, in the order of the fields; the test view of an image is the image itself."""

    shift: int = 0
    """Largest shift in pixels to each side."""
    fill: int = 0
    """What a shift brings in at the border, in 0..255: black, or 255 for drawings on white."""
    flip: bool = False
    """Mirror left and right with probability one half; not for digits or letters."""
    crop: float = 0.0
    """Least share of the area that a random resized crop keeps (Szegedy et al., CVPR 2015), in (0, 1]; 0: no such crop."""
    policy: Literal["none", "autoaugment", "autoaugment-cifar", "randaugment", "trivialaugment"] = "none"
    """A learnt (on ImageNet or CIFAR-10) or drawn sequence of distortions, for colour images; needs kornia."""
    brightness: float = 0.0
    """Brightness is multiplied by up to this much more or less, in [0, 1); the field uses 63/255 for CIFAR."""
    cutout: int = 0
    """Side in pixels of a square that takes the image's mean colour (DeVries & Taylor 2017)."""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """Mix pairs of images and their labels (Zhang et al., ICLR 2018; Yun et al., ICCV 2019)."""
    alpha: float = 1.0
    """Of the mix: shares are drawn from Beta(alpha, alpha)."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {getattr(self, name)}, but it must be {wanted}"
            for name, fits, wanted in (
                ("shift", self.shift >= 0, "0 or more pixels"),
                ("fill", 0 <= self.fill <= 255, "in 0..255"),
                ("crop", 0 <= self.crop <= 1, "in [0, 1]"),
                ("brightness", 0 <= self.brightness < 1, "in [0, 1)"),
                ("cutout", self.cutout >= 0, "0 or more pixels"),
                ("alpha", self.alpha > 0, "above 0"),
            )
            if not fits
        ]
        if wrong:
            raise ValueError("; ".join(wrong))

    @property
    def draws(self) -> int:
        """Uniform numbers that one image needs."""
        return sum(self._columns().values())

    def _columns(self) -> dict[str, int]:
        """Uniform numbers of each part, in their order."""
        parts = {
            "frame": (3, True),
            "crop": (4, self.crop > 0),
            "policy": (1, self.policy != "none"),
            "brightness": (1, self.brightness > 0),
            "cutout": (2, self.cutout > 0),
            "mix": (3, self.mix != "none"),
        }
        return {name: count for name, (count, wanted) in parts.items() if wanted}

    def __call__(self, images: Tensor, uniform: Tensor) -> Tensor:
        """Augment a batch.

        Args:
            images: [B, C, H, W], uint8.
            uniform: [B, draws], in [0, 1), on the device of `images`.

        Returns:
            [B, C, H, W], uint8.
        """
        return self.view(images, uniform).pixels

    def view(self, images: Tensor, uniform: Tensor) -> View:
        """Augment a batch, and tell what is mixed and what a decoder is asked for; see `__call__`."""
        names = self._columns()
        draw = dict(zip(names, uniform.split(list(names.values()), dim=1), strict=True))
        if self.shift:
            images = shifted(images, (draw["frame"][:, :2] * (2 * self.shift + 1)).long(), self.shift, self.fill)
        if self.flip:
            images = torch.where(draw["frame"][:, 2, None, None, None] < 0.5, images.flip(-1), images)
        if "crop" in draw:
            images = cropped(images, draw["crop"], self.crop)
        if "policy" in draw:
            images = distorted(images, draw["policy"][:, 0], self.policy)
        if "brightness" in draw:
            factor = 1 + self.brightness * (2 * draw["brightness"][:, 0] - 1)
            images = as_bytes(images * factor[:, None, None, None])
        clean = images
        if "cutout" in draw:
            images = holed(images, draw["cutout"], self.cutout)
        if "mix" not in draw or len(images) < 2:
            return View(images, clean)
        share = torch.maximum(chance := beta(draw["mix"][:, 0], self.alpha), 1 - chance)
        partner = torch.arange(len(images), device=images.device).roll(1)
        if self.mix == "mixup":
            weight = share[:, None, None, None]
            return View(as_bytes(weight * images + (1 - weight) * images[partner]), clean, partner, share)
        inside, share = window(images, draw["mix"][:, 1:], (1 - share).sqrt())
        return View(torch.where(inside, images[partner], images), clean, partner, share)


def natural_augment(images: Tensor) -> Augment:
    """The field's view of images of a kind, some of which [n, C, H, W] are given.

    Grey ones may be letters, so they are never mirrored, and what a shift brings in is black or white as their border is. Small
    colour images: padded crop by 4, mirror, brightness by 63/255, as for CIFAR; large ones: random resized crop and mirror.
    """
    _, channels, height, width = images.shape
    if channels == 1:
        border = torch.cat([images[:, :, 0], images[:, :, -1], images[:, :, :, 0], images[:, :, :, -1]], 2).float().mean()
        return Augment(shift=max(1, min(height, width) // 16), fill=255 if border > 127 else 0)
    if max(height, width) <= 64:
        return Augment(shift=4, flip=True, brightness=63 / 255)
    return Augment(flip=True, crop=0.25)


def as_bytes(values: Tensor) -> Tensor:
    """Pixels in 0..255 of any type as uint8, rounded and clipped."""
    return values.round().clamp(0, 255).to(torch.uint8)


def shifted(images: Tensor, offset: Tensor, reach: int, fill: int = 0) -> Tensor:
    """Cut each image [B, C, H, W] out of itself padded by `reach` with `fill`, at its own offset [B, 2] in 0..2*reach."""
    height, width = images.shape[-2:]
    windows = F.pad(images, (reach,) * 4, value=fill).unfold(2, height, 1).unfold(3, width, 1)  # [B, C, 2r+1, 2r+1, H, W], a view
    return windows[torch.arange(len(images), device=images.device), :, offset[:, 0], offset[:, 1]]


def cropped(images: Tensor, uniform: Tensor, least: float) -> Tensor:
    """Stretch a part of each image [B, C, H, W] over its whole frame: uniform [B, 4] gives area, ratio and place."""
    area = least + (1 - least) * uniform[:, 0]
    ratio = torch.exp((2 * uniform[:, 1] - 1) * math.log(4 / 3)).sqrt()
    size = torch.stack([area.sqrt() * ratio, area.sqrt() / ratio], 1).clamp(max=1)  # [B, 2], share of width and of height
    place = (2 * uniform[:, 2:] - 1) * (1 - size)
    affine = torch.cat([torch.diag_embed(size), place[:, :, None]], 2)  # [B, 2, 3]
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    return as_bytes(F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False))


def holed(images: Tensor, uniform: Tensor, side: int) -> Tensor:
    """Give a square of each image [B, C, H, W], around a place drawn by uniform [B, 2], the image's mean colour."""
    inside = square(images, uniform, torch.full((len(images), 2), float(side), device=images.device))
    return torch.where(inside, as_bytes(images.float().mean((2, 3), keepdim=True)), images)


def square(images: Tensor, uniform: Tensor, size: Tensor) -> Tensor:
    """Which pixels lie in a window of `size` [B, 2] around a drawn place, cut at the border: [B, 1, H, W], bool."""
    frame = torch.tensor(images.shape[-2:], device=images.device)
    low = ((uniform * frame).floor() - (size / 2).floor()).clamp(min=0)
    high = torch.minimum((uniform * frame).floor() - (size / 2).floor() + size.round(), frame)
    y, x = (torch.arange(length, device=images.device)[None] for length in images.shape[-2:])
    rows, columns = (y >= low[:, :1]) & (y < high[:, :1]), (x >= low[:, 1:]) & (x < high[:, 1:])
    return (rows[:, :, None] & columns[:, None, :])[:, None]


def window(images: Tensor, uniform: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
    """CutMix's box: [B, 1, H, W], whose sides are `reach` [B] of the frame's; and the share of pixels outside it, [B]."""
    frame = torch.tensor(images.shape[-2:], device=images.device)
    inside = square(images, uniform, reach[:, None] * frame)
    return inside, 1 - inside.float().mean((1, 2, 3))


@lru_cache(maxsize=8)
def beta_table(alpha: float) -> Tensor:
    """Quantiles of Beta(alpha, alpha) at 1025 even places: [1025]."""
    from scipy.special import betaincinv

    return torch.as_tensor(betaincinv(alpha, alpha, torch.linspace(0, 1, 1025, dtype=torch.float64).numpy()), dtype=torch.float32)


def beta(uniform: Tensor, alpha: float) -> Tensor:
    """Uniform numbers [B] as draws from Beta(alpha, alpha), by its quantiles."""
    table = beta_table(alpha).to(uniform.device)
    place = uniform * (len(table) - 1)
    low = place.long().clamp(max=len(table) - 2)
    return torch.lerp(table[low], table[low + 1], place - low)


def distorted(images: Tensor, uniform: Tensor, policy: str) -> Tensor:
    """Apply a policy to uint8 images [B, C, H, W], drawn anew for every few of them.

    Kornia draws from torch's default generator, so that is seeded by `uniform` [B] here and given back.

    Raises:
        NacreError: the images are grey, or kornia is not there.
    """
    if images.shape[1] != 3:
        raise NacreError(f"augment.policy {policy!r} needs colour images, but these have {images.shape[1]} channel: set it to none.")
    apply = policies()[policy]
    seeds = (uniform[::GROUP].double() * 2**53).long().tolist()
    with torch.random.fork_rng(devices=[images.device] if images.device.type == "cuda" else []):
        parts = [seeded_policy(apply, part, seed) for part, seed in zip((images / 255).split(GROUP), seeds, strict=True)]
    return as_bytes(torch.cat(parts) * 255)


def seeded_policy(apply: Callable[[Tensor], Tensor], images: Tensor, seed: int) -> Tensor:
    """A policy under a seed."""
    torch.manual_seed(seed)
    return apply(images)


@lru_cache(maxsize=1)
def policies() -> dict[str, Any]:
    """Kornia's policies by name.

    Raises:
        NacreError: kornia is not there.
    """
    try:
        from kornia.augmentation import auto
        from kornia.augmentation.auto.rand_augment import rand_augment
        from kornia.augmentation.auto.trivial_augment import trivial_augment
    except ImportError:
        raise NacreError("augment.policy needs kornia: pip install 'nacre[policies]', or set augment.policy=none.") from None
    rand, trivial = (gentler(module.default_policy) for module in (rand_augment, trivial_augment))
    return {
        "autoaugment": auto.AutoAugment("imagenet"),
        "autoaugment-cifar": auto.AutoAugment("cifar10"),
        "randaugment": auto.RandAugment(n=2, m=9, policy=rand),
        "trivialaugment": auto.TrivialAugment(policy=trivial),
    }


def gentler(policy: Sequence[Sequence[tuple[str, float, Any]]]) -> Any:
    """A policy that leaves an image to be seen: kornia adds brightness where the papers multiply by it, and keeps 0 bits."""
    ranges = {"brightness": (0.7, 1.3), "posterize": (2.0, 8.0)}
    return [[(name, *ranges.get(name, (low, high))) for name, low, high in step] for step in policy]
