"""Data sets that come as arrays, written here as they are published."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nacre.data.readers import Reading, read
from nacre.data.unpickle import unpickled
from nacre.errors import NacreError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
LABELS = np.arange(20) % 4


def message(path: Path, reading: Reading = Reading()) -> str:
    with pytest.raises(NacreError) as caught:
        read(str(path), reading)
    return str(caught.value)


def test_npz_with_a_split(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x_train=IMAGES[:12], y_train=LABELS[:12], x_test=IMAGES[12:], y_test=LABELS[12:, None])
    source = read(str(tmp_path / "set.npz"))
    assert (len(source.train), len(source.test), source.spec.shape) == (12, 8, (3, 32, 32))
    np.testing.assert_array_equal(source.test.pixels().permute(0, 2, 3, 1).numpy(), IMAGES[12:])
    np.testing.assert_array_equal(source.test.labels.numpy(), LABELS[12:])


@pytest.mark.parametrize("names", [("x", "y"), ("X", "Y"), ("images", "labels"), ("data", "target")])
@pytest.mark.parametrize("kind", ["nchw", "nhw", "unit", "float255", "int64"])
def test_npz_without_a_split_in_any_layout_and_type(tmp_path: Path, names: tuple[str, str], kind: str) -> None:
    shown = {
        "nchw": IMAGES.transpose(0, 3, 1, 2),
        "nhw": IMAGES[..., 0],
        "unit": IMAGES / 255,
        "float255": IMAGES.astype(np.float32),
        "int64": IMAGES.astype(np.int64),
    }[kind]
    words = np.array(["ant", "bee", "cat", "dog"])[LABELS]
    np.savez(tmp_path / "set.npz", **{names[0]: shown, names[1]: words})
    source = read(str(tmp_path / "set.npz"))
    assert source.classes == ("ant", "bee", "cat", "dog")
    for part in (source.train, source.test):
        want = IMAGES[part.rows.numpy()].transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(part.pixels().numpy(), want[:, :1] if kind == "nhw" else want)
        np.testing.assert_array_equal(part.labels.numpy(), LABELS[part.rows.numpy()])


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"a": IMAGES}, "it needs images and labels named x and y"),
        ({"x": IMAGES, "y": LABELS[:5]}, "20 images came with 5 labels"),
        ({"x": IMAGES - 300.0, "y": LABELS}, "pixels from -300"),
        ({"x": np.full((20, 8, 8), np.nan), "y": LABELS}, "pixels from nan"),
        ({"x": IMAGES.reshape(20, -1), "y": LABELS}, r"images of shape (20, 3072) are none"),
        ({"x": np.array([object()] * 20), "y": LABELS}, "cannot be read as .npz"),
        ({"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:, :8, :8], "y_test": LABELS}, "differ in shape"),
    ],
)
def test_npz_that_holds_something_else(tmp_path: Path, arrays: dict[str, Any], said: str) -> None:
    np.savez(tmp_path / "set.npz", **arrays)
    assert said in message(tmp_path / "set.npz")


def test_npz_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "set.npz").write_bytes(b"PK\3\4 no")
    assert "cannot be read as .npz" in message(tmp_path / "set.npz")


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_as_mnist_comes(tmp_path: Path, zipped: bool) -> None:
    grey = RNG.integers(0, 256, (20, 28, 28), dtype=np.uint8)
    for name, array in (
        ("train-images-idx3-ubyte", grey[:12]),
        ("train-labels-idx1-ubyte", LABELS[:12].astype(np.uint8)),
        ("t10k-images-idx3-ubyte", grey[12:]),
        ("t10k-labels-idx1-ubyte", LABELS[12:].astype(np.uint8)),
    ):
        data = idx(array)
        (tmp_path / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    source = read(str(tmp_path))
    assert source.spec.shape == (1, 28, 28)
    np.testing.assert_array_equal(source.train.pixels()[:, 0].numpy(), grey[:12])
    np.testing.assert_array_equal(source.test.labels.numpy(), LABELS[12:])
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * zipped)
    path.write_bytes(path.read_bytes()[:-100])
    assert "cannot be read as IDX" in message(tmp_path)


def rows(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def python_two(value: Any) -> bytes:
    """A pickle as Python 2 wrote the published ones: protocol 2, text as bytes."""
    return pickle.dumps(value, protocol=2)


@pytest.mark.parametrize("label", ["", "fine_label", "coarse_label"])
def test_cifar_100_in_its_python_form(tmp_path: Path, label: str) -> None:
    coarse = LABELS // 2
    for name, some in (("train", slice(0, 12)), ("test", slice(12, 20))):
        part = {b"data": rows(IMAGES[some]), b"fine_labels": LABELS[some].tolist(), b"coarse_labels": coarse[some].tolist()}
        (tmp_path / name).write_bytes(python_two({**part, b"filenames": [b"x.png"], b"batch_label": b"1 of 1"}))
    meta = {b"fine_label_names": [b"ant", b"bee", b"cat", b"dog"], b"coarse_label_names": [b"insects", b"pets"]}
    (tmp_path / "meta").write_bytes(python_two(meta))
    source = read(str(tmp_path), Reading(label=label))
    assert source.classes == (("insects", "pets") if label.startswith("coarse") else ("ant", "bee", "cat", "dog"))
    np.testing.assert_array_equal(source.train.pixels().permute(0, 2, 3, 1).numpy(), IMAGES[:12])
    np.testing.assert_array_equal(source.test.labels.numpy(), (coarse if label.startswith("coarse") else LABELS)[12:])
    assert "has no labels 'colour'" in message(tmp_path, Reading(label="colour"))


def test_cifar_10_in_its_python_form(tmp_path: Path) -> None:
    for number in range(1, 4):
        some = slice(4 * number - 4, 4 * number)
        part = {b"data": rows(IMAGES[some]), b"labels": LABELS[some].tolist()}
        (tmp_path / f"data_batch_{number}").write_bytes(python_two(part))
    (tmp_path / "test_batch").write_bytes(python_two({b"data": rows(IMAGES[12:]), b"labels": LABELS[12:].tolist()}))
    (tmp_path / "batches.meta").write_bytes(python_two({b"label_names": [b"ant", b"bee", b"cat", b"dog"]}))
    source = read(str(tmp_path))
    assert source.classes == ("ant", "bee", "cat", "dog")
    np.testing.assert_array_equal(source.train.pixels().permute(0, 2, 3, 1).numpy(), IMAGES[:12])


def test_cifar_in_its_binary_forms(tmp_path: Path) -> None:
    ten, hundred = tmp_path / "ten", tmp_path / "hundred"
    for folder in (ten, hundred):
        folder.mkdir()
    fine, coarse = LABELS[:, None].astype(np.uint8), (LABELS // 2)[:, None].astype(np.uint8)
    np.hstack([fine, rows(IMAGES)])[:8].tofile(ten / "data_batch_1.bin")
    np.hstack([fine, rows(IMAGES)])[8:12].tofile(ten / "data_batch_2.bin")
    np.hstack([fine, rows(IMAGES)])[12:].tofile(ten / "test_batch.bin")
    np.hstack([coarse, fine, rows(IMAGES)])[:12].tofile(hundred / "train.bin")
    np.hstack([coarse, fine, rows(IMAGES)])[12:].tofile(hundred / "test.bin")
    for folder in (ten, hundred):
        source = read(str(folder))
        np.testing.assert_array_equal(source.train.pixels().permute(0, 2, 3, 1).numpy(), IMAGES[:12])
        np.testing.assert_array_equal(source.test.labels.numpy(), LABELS[12:])
    np.testing.assert_array_equal(read(str(hundred), Reading(label="coarse_label")).test.labels.numpy(), LABELS[12:] // 2)
    (ten / "data_batch_2.bin").write_bytes(b"x" * 3000)
    assert "a file is cut short" in message(ten)


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code of the file ran')",))


class Sneaky:
    def __reduce__(self) -> tuple[Any, ...]:
        return (np.load, ("/etc/hostname",))


@pytest.mark.parametrize("value", [Evil(), {b"data": Evil()}, {b"data": Sneaky()}, {b"data": Path("x")}, [1, 2], 5])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_is_more_than_data_is_refused(tmp_path: Path, value: Any, protocol: int) -> None:
    (tmp_path / "file").write_bytes(pickle.dumps(value, protocol=protocol))
    with pytest.raises(NacreError, match=r"no data set that can be read safely|not the dictionary"):
        unpickled(tmp_path / "file")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_arrays_and_containers_come_through(tmp_path: Path, protocol: int) -> None:
    value = {b"data": IMAGES, b"labels": [1, 2], b"names": (b"a", "ü"), b"share": 0.5, b"none": None}
    (tmp_path / "file").write_bytes(pickle.dumps(value, protocol=protocol))
    found = unpickled(tmp_path / "file")
    np.testing.assert_array_equal(found["data"], IMAGES)
    assert found["labels"] == [1, 2]
    assert found["names"] == (b"a", "ü")
