"""Labelled uint8 images and views of them; nothing here copies a pixel before it is asked for one.

Shapes: N images in store, n samples in a view, C channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nacre import settings
from nacre.data.augment import Augment
from nacre.data.decode import Form
from nacre.data.images import Chain, Images
from nacre.errors import NacreError


@dataclass(frozen=True, eq=False)
class Samples:
    """Labelled images: a view by row numbers, so that a stage, a class or a batch costs no pixels."""

    images: Images
    """[N, C, H, W], uint8."""
    labels: Tensor
    """[n], int64: the class of each sample."""
    rows: Tensor
    """[n], int64: where each sample lies in `images`."""

    @classmethod
    def of(cls, images: Images, labels: Tensor) -> Samples:
        """All of `images`, in their order, with one label each."""
        if len(labels) != images.shape[0]:
            raise NacreError(f"{images.shape[0]} images came with {len(labels)} labels: each image needs one label")
        return cls(images, labels.long(), torch.arange(len(labels)))

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: Samples) -> Samples:
        """These samples, then the others; of an empty side nothing is kept, not even its images."""
        if not len(other):
            return self
        if not len(self):
            return other
        images = Chain(self.images, other.images)
        rows = torch.cat([self.rows, other.rows + self.images.shape[0]])
        return Samples(images, torch.cat([self.labels, other.labels]), rows)

    def take(self, which: Tensor) -> Samples:
        """The samples at `which`: positions [m] or a mask [n]."""
        return Samples(self.images, self.labels[which], self.rows[which])

    def among(self, classes: range) -> Samples:
        """The samples whose label lies in `classes`."""
        return self.take((self.labels >= classes.start) & (self.labels < classes.stop))

    def pixels(self, which: Tensor | slice = slice(None)) -> Tensor:
        """Read the images of the samples at `which`: [m, C, H, W], uint8."""
        return self.images[self.rows[which]]


@dataclass(frozen=True)
class ImageSpec:
    """What a model must know of the images it will see."""

    shape: tuple[int, int, int]
    """Channels, height, width in pixels."""
    augment: Augment = field(default_factory=Augment)
    """The training view that suits these images."""
    margin: float = 1.0
    """How much of an image file's centre is shown, see `nacre.data.decode.Form`."""

    @property
    def form(self) -> Form:
        """What any image file becomes."""
        return Form(*self.shape, self.margin, strict=False)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for colour."""
        return self.shape[0]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.shape[1:]


@dataclass(frozen=True, eq=False)
class Source:
    """A data set: training and test samples of the same classes, labelled by position in `classes`."""

    train: Samples
    test: Samples
    classes: tuple[str, ...]
    augment: Augment = field(default_factory=Augment)
    notes: tuple[str, ...] = ()
    """What is odd about the data: what was left out because it cannot be used, and images that lie in two classes."""
    margin: float = 1.0
    """How much of an image file's centre is shown, see `nacre.data.decode.Form`."""

    def __post_init__(self) -> None:
        for part, samples in (("training", self.train), ("test", self.test)):
            strange = samples.labels[(samples.labels < 0) | (samples.labels >= len(self.classes))]
            if len(strange):
                raise NacreError(f"{part} label {int(strange[0])} found, but only {len(self.classes)} classes are named, from 0 on")
            count = torch.bincount(samples.labels, minlength=len(self.classes))
            empty = [self.classes[i] for i in torch.nonzero(count == 0).flatten().tolist()]
            if empty and len(samples):
                raise NacreError(f"no {part} image of {', '.join(empty[:5])}: every class needs at least one")

    def viewed(self, changes: Mapping[str, Any]) -> Source:
        """The same images under a training view that is changed in some fields of `Augment`.

        Raises:
            NacreError: there is no such field, or a value does not fit.
        """
        return replace(self, augment=settings.build(Augment, {**settings.plain(self.augment), **changes}, "augment."))

    @property
    def spec(self) -> ImageSpec:
        """Shape and training view of the images."""
        _, channels, height, width = self.train.images.shape
        return ImageSpec((channels, height, width), self.augment, self.margin)

    def digest(self, beside: object = None, sampled: int | None = None, chunk: int = 256) -> str:
        """What tells these images from others: a digest of class names, labels and pixels, and of what else is to count.

        Args:
            beside: what else, as JSON.
            sampled: images of each part whose pixels are read, spread evenly, at least 2; all by default.
            chunk: images read at once.
        """
        total = hashlib.sha256(json.dumps([list(self.classes), beside]).encode())
        for samples in (self.train, self.test):
            total.update(samples.labels.numpy().tobytes())
            count = len(samples)  # whole numbers alone, so that every processor chooses the same images
            some = torch.arange(count) if sampled is None or count <= sampled else torch.arange(sampled) * (count - 1) // (sampled - 1)
            for rows in some.split(chunk):
                total.update(samples.pixels(rows).contiguous().numpy().data)
        return total.hexdigest()
