"""Data sets that come as arrays of pixels: .npz, IDX, and the two forms of CIFAR.

Shapes: n images, H x W pixels, C channels (absent for grey).
"""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nacre.data.listing import LABELS, numbered
from nacre.data.unpickle import unpickled
from nacre.errors import NacreError, nearest

Pair = tuple[NDArray[Any], Sequence[Any]]
"""Images [n, H, W], [n, H, W, C] or [n, C, H, W], and n labels."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set in memory."""

    train: Pair
    test: Pair | None
    """None where the data come without a split."""
    names: Sequence[str] | None
    """Of the classes, where labels count in them."""


PAIRS = (("x", "y"), ("X", "Y"), ("images", "labels"), ("image", "label"), ("data", "targets"), ("data", "target"), ("data", "labels"))


def npz(path: Path, label: str) -> Arrays | None:
    """A .npz file with `x_train`, `y_train`, `x_test`, `y_test`, or with `x`, `y`, or with such words as images and labels."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise NacreError(f"{path} cannot be read as .npz ({error}): write it with numpy.savez, numbers only.") from None
    names = next((arrays[name].tolist() for name in ("classes", "class_names", "names") if name in arrays), None)
    train = pair(arrays, ("_train", "train_", ""), label)
    if train is None:
        raise NacreError(f"{path} holds {', '.join(arrays)}: it needs images and labels named x and y, or x_train and y_train.")
    return Arrays(train, pair(arrays, ("_test", "test_", "_val", "val_"), label), names)


def pair(arrays: Mapping[str, NDArray[Any]], affixes: Sequence[str], label: str) -> Pair | None:
    """The first images and labels whose names fit."""
    for affix in affixes:
        for x, y in [*((x, label) for x, _ in PAIRS if label), *PAIRS]:
            both = (affix + x, affix + y) if affix.endswith("_") else (x + affix, y + affix)
            if all(name in arrays for name in both):
                return arrays[both[0]], arrays[both[1]].reshape(-1).tolist()
    return None


IDX_TYPES: dict[int, np.dtype[Any]] = {
    8: np.dtype(">u1"),
    9: np.dtype(">i1"),
    11: np.dtype(">i2"),
    12: np.dtype(">i4"),
    13: np.dtype(">f4"),
    14: np.dtype(">f8"),
}


def idx(path: Path, label: str) -> Arrays | None:
    """A folder with IDX files as MNIST and its kin come: names with `train` and with `t10k` or `test`, `.gz` or not."""
    if not path.is_dir():
        return None
    found = {file.name.lower(): file for file in sorted(path.iterdir()) if "idx" in file.name.lower() and "ubyte" in file.name.lower()}
    parts: dict[str, Pair] = {}
    for part, words in (("train", ("train",)), ("test", ("t10k", "test"))):
        images = [file for name, file in found.items() if "images" in name and any(word in name for word in words)]
        labels = [file for name, file in found.items() if "labels" in name and any(word in name for word in words)]
        if images and labels:
            if len({file.name.removesuffix(".gz") for file in images}) > 1:
                raise NacreError(f"{path} holds several data sets ({', '.join(file.name for file in images)}): put each in a folder.")
            parts[part] = read_idx(images[0]), read_idx(labels[0]).reshape(-1).tolist()
    return Arrays(parts["train"], parts.get("test"), None) if "train" in parts else None


def read_idx(path: Path) -> NDArray[Any]:
    """The array in an IDX file.

    Raises:
        NacreError: it is cut short, or no IDX file.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
        if data[:2] != b"\0\0" or data[2] not in IDX_TYPES:
            raise ValueError("it does not begin as one")
        shape = np.frombuffer(data, ">u4", data[3], 4).astype(np.int64)
        values: NDArray[Any] = np.frombuffer(data, IDX_TYPES[data[2]], int(shape.prod()), 4 + 4 * data[3])
        return values.reshape(shape)
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise NacreError(f"{path} cannot be read as IDX ({error}): use the file as it was published.") from None


def cifar_python(path: Path, label: str) -> Arrays | None:
    """The folders `cifar-100-python` and `cifar-10-batches-py`, which are pickles (see `nacre.data.unpickle`)."""
    hundred = all((path / name).is_file() for name in ("meta", "train", "test"))
    ten = (path / "batches.meta").is_file() and (path / "data_batch_1").is_file()
    if not hundred and not ten:
        return None
    meta = unpickled(path / ("meta" if hundred else "batches.meta"))
    files = [path / "train"] if hundred else sorted(path.glob("data_batch_?"))
    train, test = [unpickled(file) for file in files], unpickled(path / ("test" if hundred else "test_batch"))
    columns = [name for name in (*LABELS, "fine_labels", "coarse_labels") if name in train[0]]
    column = label if label in train[0] else f"{label}s" if label else ("fine_labels" if hundred else "labels")
    if column not in train[0]:
        raise NacreError(f"{path} has no labels {label!r}: use one of {', '.join(columns)}.{nearest(label, columns)}")
    texts = meta.get(column.removesuffix("s") + "_names")
    names = None if texts is None else [text.decode() if isinstance(text, bytes) else str(text) for text in texts]
    try:
        pixels = np.concatenate([np.asarray(part["data"], np.uint8) for part in train]).reshape(-1, 3, 32, 32)
        labels = [int(number) for part in train for number in part[column]]
        return Arrays((pixels, labels), (np.asarray(test["data"], np.uint8).reshape(-1, 3, 32, 32), list(test[column])), names)
    except (KeyError, ValueError, TypeError) as error:
        raise NacreError(f"{path} is not CIFAR as it was published ({error}).") from None


def cifar_binary(path: Path, label: str) -> Arrays | None:
    """The binary versions of CIFAR-10 (a label byte before each image) and CIFAR-100 (a coarse one, then a fine one)."""
    hundred, ten = [path / "train.bin"], sorted(path.glob("data_batch_*.bin"))
    files, test, bytes_before = (hundred, path / "test.bin", 2) if hundred[0].is_file() else (ten, path / "test_batch.bin", 1)
    if not files or not test.is_file():
        return None
    coarse = bytes_before == 2 and label.startswith("coarse")
    lists = (path / "batches.meta.txt", path / ("coarse_label_names.txt" if coarse else "fine_label_names.txt"))
    names = next((file.read_text().split() for file in lists if file.is_file()), None)

    def records(paths: Sequence[Path]) -> Pair:
        data = np.concatenate([np.fromfile(file, np.uint8) for file in paths])
        if len(data) % (bytes_before + 3072):
            raise NacreError(f"{path} is not CIFAR as it was published: a file is cut short.")
        rows = data.reshape(-1, bytes_before + 3072)
        return rows[:, bytes_before:].reshape(-1, 3, 32, 32), rows[:, 0 if coarse else bytes_before - 1].tolist()

    return Arrays(records(files), records([test]), names)


def pixels_of(images: NDArray[Any], where: Path) -> NDArray[np.uint8]:
    """Images as uint8 [n, C, H, W]: the channel axis is the one of size 1 or 3, and floats in [0, 1] are stretched.

    Raises:
        NacreError: shape or values are none of images.
    """
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or not {1, 3} & {images.shape[1], images.shape[3]}:
        raise NacreError(f"{where}: images of shape {images.shape} are none: use [n, H, W], [n, H, W, 3] or [n, 3, H, W].")
    if images.shape[1] not in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    low, high = (float(images.min()), float(images.max())) if images.size else (0.0, 0.0)
    if not (low >= 0 and high <= 255):
        raise NacreError(f"{where}: pixels from {low:g} to {high:g} are none: use whole numbers in 0..255, or floats in 0..1.")
    if images.dtype.kind == "f":
        images = np.rint(images * (255 if high <= 1 else 1))
    return np.ascontiguousarray(images, dtype=np.uint8)


def parts_of(arrays: Arrays, where: Path) -> tuple[NDArray[np.uint8], list[int], tuple[str, ...], list[bool] | None]:
    """Both parts as one: images [n, C, H, W], labels as positions in the class names, and which are test images.

    Raises:
        NacreError: images and labels do not fit one another.
    """
    pairs = [arrays.train] + ([arrays.test] if arrays.test is not None else [])
    for images, labels in pairs:
        if len(images) != len(labels):
            raise NacreError(f"{where}: {len(images)} images came with {len(labels)} labels: each image needs one.")
    pixels = [pixels_of(images, where) for images, _ in pairs]
    if len({part.shape[1:] for part in pixels}) > 1:
        raise NacreError(f"{where}: training and test images differ in shape: {' and '.join(str(part.shape[1:]) for part in pixels)}.")
    labels, classes = numbered([label for _, part in pairs for label in part], arrays.names, where)
    test = [number >= len(pixels[0]) for number in range(len(labels))] if len(pairs) > 1 else None
    return np.concatenate(pixels), labels, classes, test
