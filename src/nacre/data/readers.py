"""Where images come from: what a path holds is found out by looking at it, and becomes a Source.

A new format is one function, which gives None for what is not its own, and one line in the registry.

Shapes: n images, C channels, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nacre.data import arrays, cache
from nacre.data.augment import Augment, natural_augment
from nacre.data.cache import Encoded, Progress
from nacre.data.decode import Form, Look, Unreadable, common_form, framed, look
from nacre.data.images import Images
from nacre.data.listing import Listing, folder_listing, legible, list_listing, litter, parquet_listing
from nacre.data.source import Samples, Source
from nacre.data.torchvision import torchvision_arrays
from nacre.errors import NacreError, nearest
from nacre.seeds import derive


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How a data set is read."""

    size: int = 0
    """Height and width in pixels; 0: images up to 64 pixels as they are, larger ones at 224."""
    label: str = ""
    """Column or kind of labels, such as fine_label; empty: found out."""
    skip_unreadable: bool = False
    """Leave out what cannot be used, rather than stop."""
    test: float = 0.2
    """Share of every class that is held out for testing where the data come without a split; 0: none."""
    tune: float = 0.0
    """Share of every class's training images that take the place of the test images, to choose settings by; 0: the test images stay."""

    def __post_init__(self) -> None:
        if self.size < 0 or 0 < self.size < 8:
            raise ValueError(f"size is {self.size}, but it must be 0 or at least 8 pixels")
        if not 0 <= self.test < 1:
            raise ValueError(f"test is {self.test}, but it must be in [0, 1)")
        if not 0 <= self.tune < 1:
            raise ValueError(f"tune is {self.tune}, but it must be in [0, 1)")


def digits() -> Source:
    """The 1,797 scans of handwritten digits that scikit-learn carries: 8 x 8 grey, ten classes.

    They come without a split: a fifth of every class, always the same, is held out as test images (UCI machine learning
    repository, Optical Recognition of Handwritten Digits; Alpaydin & Kaynak 1998).
    """
    from sklearn.datasets import load_digits

    data = load_digits()
    images = torch.from_numpy((data.images * (255 / 16)).round().astype(np.uint8))[:, None]
    samples = Samples.of(images, torch.from_numpy(data.target))
    train, test = held_out(samples.labels, fraction=0.2, seed=0)
    names = tuple(str(name) for name in data.target_names)
    return Source(samples.take(train), samples.take(test), names, Augment(shift=1))


def held_out(labels: Tensor, *, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split sample positions within every class.

    Args:
        labels: [n], int64.
        fraction: share of every class that is held out, in [0, 1); above 0, at least one sample of a class stays on each
            side where it has two or more.
        seed: of the split.

    Returns:
        Kept and held-out positions, each ascending, int64.
    """
    rng = np.random.default_rng(derive(seed, "held out"))
    kept, out = [], []
    order = labels.argsort(stable=True).numpy()
    for group in np.split(order, np.unique(labels.numpy()[order], return_index=True)[1][1:]):
        members = rng.permutation(group)
        count = min(max(1, round(fraction * len(members))), len(members) - 1) if fraction else 0
        out.append(members[:count])
        kept.append(members[count:])
    return torch.from_numpy(np.sort(np.concatenate(kept))), torch.from_numpy(np.sort(np.concatenate(out)))


Found = Listing | arrays.Arrays
"""What a format's reader finds at a path."""


def parquets(path: Path, label: str) -> Listing | None:
    """A Parquet file, or a folder of them as data hubs lay it out, with images inside or paths to them."""
    fits = path.suffix.lower() == ".parquet" if path.is_file() else any(not litter(file.name) for file in path.glob("**/*.parquet"))
    return parquet_listing(path, label) if fits else None


def lists(path: Path, label: str) -> Listing | None:
    """A CSV list of path and label."""
    return list_listing(path, label) if path.is_file() and path.suffix.lower() in (".csv", ".tsv", ".txt") else None


def folders(path: Path, label: str) -> Listing | None:
    """A folder with one sub-folder per class."""
    return folder_listing(path, label) if path.is_dir() else None


FORMATS: dict[str, Callable[[Path, str], Found | None]] = {
    "npz": arrays.npz,
    "cifar-python": arrays.cifar_python,
    "cifar-binary": arrays.cifar_binary,
    "idx": arrays.idx,
    "parquet": parquets,
    "list": lists,
    "folder": folders,
}
"""Readers of what may lie at a path, the most particular first."""
READERS: dict[str, Callable[[], Source]] = {"digits": digits}
"""Data sets that come with the package's dependencies."""


def read(data: str, reading: Reading = Reading(), progress: Progress | None = None, form: Form | None = None) -> Source:
    """The data set that `data` names.

    Args:
        data: a name in `READERS`, `torchvision:NAME`, or a path.
        reading: how to read it.
        progress: hears how decoding goes, where there is something to decode.
        form: what the images at a path become; by default what suits them.

    Raises:
        NacreError: there is no such data set, or something in it cannot be used.
    """
    if data in READERS:
        return tuned(READERS[data](), reading.tune)
    path = Path(data)
    found = torchvision_arrays(data) if data.startswith("torchvision:") else found_at(path, reading.label)
    source = from_listing(found, reading, progress, form) if isinstance(found, Listing) else from_arrays(found, path, reading, form)
    return tuned(source, reading.tune)


def tuned(source: Source, share: float) -> Source:
    """A source whose test images are a share of every class's training images, always the same; the real ones stay unseen."""
    if not share:
        return source
    kept, held = held_out(source.train.labels, fraction=share, seed=1)
    return replace(source, train=source.train.take(kept), test=source.train.take(held))


def found_at(path: Path, label: str) -> Found:
    """What lies at a path.

    Raises:
        NacreError: nothing, or nothing that any format's reader knows.
    """
    if not path.exists():
        close = nearest(str(path), READERS) if len(path.parts) == 1 else ""
        names = ", ".join(READERS)
        raise NacreError(f"unknown data {legible(path)!r}: give a path that is there, or use one of {names}, torchvision:NAME.{close}")
    for reader in FORMATS.values():
        found = reader(path, label)
        if found is not None:
            return found
    known = ", ".join(FORMATS)
    raise NacreError(f"{legible(path)} is of no format that can be read: give a folder with one sub-folder per class, or one of {known}.")


def from_arrays(found: arrays.Arrays, where: Path, reading: Reading, form: Form | None = None) -> Source:
    """A source of what lies in memory."""
    pixels, labels, classes, test = arrays.parts_of(found, where)
    _, channels, height, width = pixels.shape
    form = form or common_form([Look("L" if channels == 1 else "RGB", height, width)], reading.size)
    source = divided(torch.from_numpy(resized(pixels, form)), torch.tensor(labels), classes, test, reading)
    return replace(source, margin=form.margin)


def resized(pixels: NDArray[np.uint8], form: Form) -> NDArray[np.uint8]:
    """Images [n, C, H, W] in a form."""
    if pixels.shape[1:] == form.shape:
        return pixels

    def one(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
        picture = framed(picture.convert("L" if form.channels == 1 else "RGB"), form)
        return np.asarray(picture).reshape(form.height, form.width, -1).transpose(2, 0, 1)

    with ThreadPoolExecutor(cache.cores()) as pool:
        return np.stack(list(pool.map(one, pixels)))


def from_listing(listing: Listing, reading: Reading, progress: Progress | None, form: Form | None = None) -> Source:
    """A source of encoded images, decoded once.

    Raises:
        NacreError: something cannot be used, and was not to be left out.
    """
    encoded = listing.encoded
    if not len(encoded):
        raise NacreError(f"{encoded.origin} holds no image: give a folder with one sub-folder of images per class.")
    form = form or probed_form(encoded, reading.size)
    found = cache.decoded(encoded, form, progress)
    labels = torch.tensor(listing.labels)
    bad = {row: f"{encoded.name(row)}: {reason}" for row, reason in sorted(found.reasons.items())}
    usable = torch.ones(len(encoded), dtype=torch.bool)
    usable[list(bad)] = False
    kept, empty = filled_classes(labels, usable, listing, tested=reading.test > 0)
    unusable = list(bad.values()) + empty
    if unusable and not reading.skip_unreadable:
        count = f"{len(unusable)} thing{'s' * (len(unusable) > 1)} in {encoded.origin} cannot be used:"
        raise NacreError("\n".join([count, *unusable, "Mend or remove them, or leave them out by --skip-unreadable."]))
    notes = [f"{len(unusable)} left out of {encoded.origin}"] * bool(unusable) + [f"left out {text}" for text in unusable]
    notes += contradictions(found.digests, labels, listing, usable)
    rows = torch.nonzero(usable & torch.isin(labels, kept)).flatten()
    if len(kept) == 0 or len(rows) == 0:
        raise NacreError(f"{encoded.origin} holds no class with images that can be used.")
    position = torch.full((len(listing.classes),), -1).index_put((kept,), torch.arange(len(kept)))
    test = None if listing.test is None else torch.tensor(listing.test)[rows].tolist()
    classes = tuple(listing.classes[label] for label in kept.tolist())
    source = divided(found.images, position[labels[rows]], classes, test, reading, rows, tuple(notes))
    return replace(source, margin=form.margin)


def probed_form(encoded: Encoded, size: int, probes: int = 128) -> Form:
    """The form that the headers of some images, evenly spread, speak for."""
    looks = []
    step = max(1, len(encoded) // probes)
    for row in range(0, len(encoded), step):
        (data,) = encoded.read(row, row + 1)
        try:
            looks += [] if isinstance(data, Unreadable) else [look(data)]
        except Unreadable:
            continue
    return common_form(looks or [Look("L", size or 8, size or 8)], size)


def contradictions(digests: NDArray[np.uint64], labels: Tensor, listing: Listing, usable: Tensor) -> list[str]:
    """Images that lie in two classes, in words; published data sets have some, so they are kept."""
    rows = torch.nonzero(usable).flatten().numpy()
    pairs = np.unique(np.stack([digests[rows], labels.numpy()[rows].astype(np.uint64)]), axis=1)  # sorted by digest
    twice = np.unique(pairs[0][1:][pairs[0][1:] == pairs[0][:-1]])
    found = []
    for same in (rows[digests[rows] == digest] for digest in twice):
        places = ", ".join(f"{listing.encoded.name(row)} ({listing.classes[int(labels[row])]})" for row in same[:4])
        found.append(f"the same image lies in several classes: {places}")
    return found


def filled_classes(labels: Tensor, usable: Tensor, listing: Listing, *, tested: bool) -> tuple[Tensor, list[str]]:
    """Classes with images to train and, where they are tested, to test on; and what is wrong with the others."""
    count = torch.bincount(labels[usable], minlength=len(listing.classes))
    wrong: dict[int, str] = {int(label): "no image" for label in torch.nonzero(count == 0)}
    if listing.test is None:
        ones = torch.nonzero(count == 1) if tested else ()
        wrong |= {int(label): "one image only, but one to train on and one to test on are needed" for label in ones}
    else:
        is_test = torch.tensor(listing.test)
        for part, inside in (("training", ~is_test), *([("test", is_test)] if tested else [])):
            some = torch.bincount(labels[usable & inside], minlength=len(listing.classes))
            wrong |= {int(label): f"no {part} image" for label in torch.nonzero((some == 0) & (count > 0))}
    kept = torch.tensor([label for label in range(len(listing.classes)) if label not in wrong], dtype=torch.long)
    return kept, [f"class {listing.classes[label]}: {reason}" for label, reason in sorted(wrong.items())]


def divided(
    images: Images,
    labels: Tensor,
    classes: tuple[str, ...],
    test: list[bool] | None,
    reading: Reading,
    rows: Tensor | None = None,
    notes: tuple[str, ...] = (),
) -> Source:
    """Training and test samples; without a split, a share of every class is held out, always the same."""
    samples = Samples(images, labels.long(), torch.arange(len(labels)) if rows is None else rows)
    if test is None:
        train_at, test_at = held_out(labels, fraction=reading.test, seed=0)
    else:
        is_test = torch.tensor(test)
        train_at, test_at = torch.nonzero(~is_test).flatten(), torch.nonzero(is_test).flatten()
    return Source(
        samples.take(train_at),
        samples.take(test_at),
        classes,
        natural_augment(samples.pixels(torch.linspace(0, len(samples) - 1, 256).long())),
        notes,
    )
