"""Folders, lists and Parquet files: what is found out by looking at them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from nacre.data.listing import Parquets, folder_listing, natural
from nacre.data.readers import Reading, read
from nacre.data.source import Source
from nacre.errors import NacreError
from odd import photographs, picture, readable, saved, tree, unreadable

SMALL = Reading(size=16)


def put(root: Path, *names: str) -> Path:
    """Small pictures at these places, each another one."""
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(saved(picture(number, 20, 20), "PNG"))
    return root


def counts(source: Source) -> dict[str, tuple[int, int]]:
    train, test = (torch.bincount(part.labels, minlength=len(source.classes)).tolist() for part in (source.train, source.test))
    return dict(zip(source.classes, zip(train, test, strict=True), strict=True))


def message(path: Path, reading: Reading = SMALL) -> str:
    with pytest.raises(NacreError) as caught:
        read(str(path), reading)
    return str(caught.value)


def test_a_folder_without_a_split_holds_out_a_fifth_of_every_class(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)))
    source = read(str(tmp_path), SMALL)
    assert counts(source) == {"cat": (8, 2), "dog": (8, 2)}
    again = read(str(tmp_path), SMALL)
    assert torch.equal(source.test.rows, again.test.rows)
    third = read(str(tmp_path), Reading(size=16, test=0.3))
    assert counts(third) == {"cat": (7, 3), "dog": (7, 3)}


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("train", "val"), ("Training", "Testing"), ("train", "validation")])
def test_folders_with_a_split_keep_it(tmp_path: Path, train: str, test: str) -> None:
    put(tmp_path, f"{train}/cat/1.png", f"{train}/cat/2.png", f"{train}/dog/1.png", f"{test}/cat/1.png", f"{test}/dog/1.png")
    assert counts(read(str(tmp_path), SMALL)) == {"cat": (2, 1), "dog": (1, 1)}


def test_of_test_and_val_the_test_images_count(tmp_path: Path) -> None:
    put(tmp_path, "train/a/1.png", "val/a/1.png", "val/a/2.png", "test/a/1.png")
    assert counts(read(str(tmp_path), SMALL)) == {"a": (1, 1)}


def test_train_alone_is_split(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/a/{number}.png" for number in range(5)))
    assert counts(read(str(tmp_path), SMALL)) == {"a": (4, 1)}


def test_deeper_folders_name_their_classes_by_path(tmp_path: Path) -> None:
    put(tmp_path, *(f"{alphabet}/{letter}/{n}.png" for alphabet in ("greek", "latin") for letter in ("01", "02") for n in range(2)))
    assert list(read(str(tmp_path), SMALL).classes) == ["greek/01", "greek/02", "latin/01", "latin/02"]


def test_class_ten_comes_behind_class_nine(tmp_path: Path) -> None:
    put(tmp_path, *(f"class {number}/{n}.png" for number in range(12) for n in range(2)))
    assert list(read(str(tmp_path), SMALL).classes) == [f"class {number}" for number in range(12)]
    assert sorted(["a10b", "a9b", "a9", "b1", "é"], key=natural) == ["a9", "a9b", "a10b", "b1", "é"]


def test_links_are_followed_but_never_in_a_circle(tmp_path: Path) -> None:
    put(tmp_path / "set", "cat/1.png", "cat/2.png", "dog/1.png", "dog/2.png")
    put(tmp_path, "elsewhere/1.png", "elsewhere/2.png")
    (tmp_path / "set" / "cat" / "again").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "cat" / "self").symlink_to("self")
    (tmp_path / "set" / "bird").symlink_to(tmp_path / "elsewhere")
    said = message(tmp_path / "set")
    assert said.splitlines()[1:-1] == ["cat/self: a link to nowhere"]
    (tmp_path / "set" / "cat" / "self").unlink()
    found = folder_listing(tmp_path / "set")
    assert found.classes == ("bird", "cat", "dog")
    assert len(found.encoded) < 20


def test_a_folder_of_nothing_says_what_is_wanted(tmp_path: Path) -> None:
    assert "give a folder with one sub-folder per class" in message(tmp_path)
    put(tmp_path, "loose.png")
    assert "give a folder with one sub-folder per class" in message(tmp_path)
    assert "unknown data" in message(tmp_path / "nowhere")


def test_every_odd_photograph_is_read_and_nothing_of_the_users_is_touched(tmp_path: Path) -> None:
    root = photographs(tmp_path / "photographs")  # 10 classes of 22
    before = tree(root)
    source = read(str(root), Reading(size=32))
    assert len(source.train) + len(source.test) == 10 * len(readable()) == 220
    assert source.spec.shape == (3, 32, 32)
    assert not source.notes
    assert tree(root) == before


def test_everything_that_cannot_be_used_is_named_at_once(tmp_path: Path) -> None:
    root = photographs(tmp_path / "photographs", classes=3)
    for name, (data, _) in unreadable().items():
        (root / "class 1" / name).write_bytes(data)
    (root / "nothing in it").mkdir()
    put(root, "only one/1.png")
    before = tree(root)
    said = message(root, Reading(size=32)).splitlines()
    assert said[0] == f"{len(unreadable()) + 2} things in {root.resolve()} cannot be used:"
    for name, (_, reason) in unreadable().items():
        (line,) = [line for line in said if line.startswith(f"class 1/{name}: ")]
        assert reason in line
    assert "class nothing in it: no image" in said
    assert any(line.startswith("class only one: one image only") for line in said)
    assert said[-1].endswith("--skip-unreadable.")
    assert len(said) == len(unreadable()) + 4
    source = read(str(root), Reading(size=32, skip_unreadable=True))
    assert list(source.classes) == ["class 0", "class 1", "class 2"]
    assert len(source.train) + len(source.test) == 3 * len(readable())
    assert source.notes[0] == f"{len(unreadable()) + 2} left out of {root.resolve()}"
    assert tree(root) == before


def test_the_same_file_in_two_classes_is_told(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png")
    (tmp_path / "dog" / "copy.png").write_bytes((tmp_path / "cat" / "1.png").read_bytes())
    (tmp_path / "cat" / "twin.png").write_bytes((tmp_path / "cat" / "2.png").read_bytes())  # twice in one class is no matter
    (note,) = read(str(tmp_path), SMALL).notes
    assert note == "the same image lies in several classes: cat/1.png (cat), dog/copy.png (dog)"


def test_names_that_no_terminal_can_take_are_made_legible(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "a/2.png")
    (tmp_path / "b\x1b[31m").mkdir()
    for number in (3, 4):
        (tmp_path / "b\x1b[31m" / f"{number}.png").write_bytes(saved(picture(number, 20, 20), "PNG"))
    bad = Path(str(tmp_path) + "/a/bad\udcff\x07.png")
    bad.write_bytes(b"x")
    said = message(tmp_path)
    assert "a/bad\ufffd\ufffd.png: not an image" in said
    assert read(str(tmp_path), Reading(size=16, skip_unreadable=True)).classes == ("a", "b\ufffd[31m")


def test_grey_photographs_stay_grey_and_size_is_found(tmp_path: Path) -> None:
    for number in range(4):
        for name in "ab":
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{number}.png").write_bytes(saved(picture(number, 28, 28).convert("L"), "PNG"))
    assert read(str(tmp_path)).spec.shape == (1, 28, 28)
    assert read(str(tmp_path), Reading(size=10)).spec.shape == (1, 10, 10)
    for number in range(4):
        for name in "ab":
            (tmp_path / name / f"{number}.png").write_bytes(saved(picture(number, 70, 300), "JPEG"))
    assert read(str(tmp_path)).spec.shape == (3, 224, 224)


def test_a_list_names_paths_labels_and_the_split(tmp_path: Path) -> None:
    put(tmp_path, *(f"images/{number}.png" for number in range(6)))
    lines = ["path,label,split", *(f"images/{n}.png,{'cat' if n % 2 else 'dog'},{'test' if n > 3 else 'train'}" for n in range(6))]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    assert counts(read(str(tmp_path / "list.csv"), SMALL)) == {"cat": (2, 1), "dog": (2, 1)}
    (tmp_path / "list.tsv").write_text("\n".join(lines).replace(",", "\t"), encoding="utf-8-sig")
    assert counts(read(str(tmp_path / "list.tsv"), SMALL)) == {"cat": (2, 1), "dog": (2, 1)}
    table = pa.table({"path": [f"images/{n}.png" for n in range(6)], "label": [n % 2 for n in range(6)]})
    parquet.write_table(table, tmp_path / "list.parquet")
    assert counts(read(str(tmp_path / "list.parquet"), SMALL)) == {"0": (2, 1), "1": (2, 1)}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lists nothing"),
        ("path,label\n", "lists nothing"),
        ("picture,label\n1.png,a\n", "no column of paths: name one path or"),
        ("path,kind,other\n1.png,a,b\n", "name one by --label: kind, other"),
        ("path,label\n1.png,a,b\n", "lines of different lengths"),
        ("path,label\nnot there.png,a\nnor.png,a\n", "not there.png: no such file"),
    ],
)
def test_a_list_that_is_none_gets_its_reason(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    assert said in message(tmp_path / "list.csv")


def hub(root: Path, names: bool = True) -> Path:
    """A data set as data hubs lay it out: two parts in three files, images inside, class names in the file's header."""
    root.mkdir()
    for part, rows in (("train-00000-of-00002", 6), ("train-00001-of-00002", 4), ("test-00000-of-00001", 4)):
        start = rows * 100
        images = [{"bytes": saved(picture(start + n, 32, 32), "PNG"), "path": None} for n in range(rows)]
        table = pa.table(
            {
                "img": pa.array(images, pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                "fine_label": [n % 2 for n in range(rows)],
                "coarse_label": [0] * rows,
            }
        )
        info = {"info": {"features": {"fine_label": {"names": ["apple", "pear"], "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)} if names else {})
        parquet.write_table(table, root / f"{part}.parquet", row_group_size=3)
    return root


def test_parquet_files_of_a_hub(tmp_path: Path) -> None:
    root = hub(tmp_path / "data")
    source = read(str(root))
    assert counts(source) == {"apple": (5, 2), "pear": (5, 2)}
    assert source.spec.shape == (3, 32, 32)
    np.testing.assert_array_equal(source.test.pixels()[0].permute(1, 2, 0).numpy(), np.asarray(picture(400, 32, 32)))
    assert counts(read(str(tmp_path), Reading(label="coarse_label"))) == {"0": (10, 4)}
    said = message(root, Reading(label="fine_lable"))
    assert "has no column 'fine_lable': use one of fine_label, coarse_label." in said
    assert "Did you mean 'fine_label'" in said


def test_class_names_beside_the_parquet_files(tmp_path: Path) -> None:
    root = hub(tmp_path / "data", names=False)
    assert read(str(root)).classes == ("0", "1")
    (root / "fine_label_names.txt").write_text("apfel\nbirne\n")
    assert read(str(root)).classes == ("apfel", "birne")
    (root / "fine_label_names.txt").write_text("apfel\n")
    assert "label 1 found, but only 1 classes are named" in message(root, Reading())


def test_rows_of_row_groups_are_found_in_any_slice(tmp_path: Path) -> None:
    root = hub(tmp_path / "data")
    rows = Parquets.of(sorted(root.glob("train*")), "img", "here")
    everything = rows.read(0, 10)
    assert len(rows) == 10
    for start in range(10):
        for stop in range(start, 11):
            assert rows.read(start, stop) == everything[start:stop]
    assert rows.name(0) == "train-00000-of-00002.parquet row 0"
    assert rows.name(7) == "train-00001-of-00002.parquet row 1"


def test_a_parquet_file_that_is_cut_short(tmp_path: Path) -> None:
    root = hub(tmp_path / "data")
    path = root / "test-00000-of-00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert "cannot be read as Parquet" in message(root)
    path.unlink()
    damaged = pa.table({"image": [b"no image", Image.new("RGB", (8, 8)).tobytes(), None], "label": [0, 1, 1]})
    parquet.write_table(damaged, tmp_path / "one.parquet")
    said = message(tmp_path / "one.parquet")
    assert "one.parquet row 0: not an image" in said
    assert "one.parquet row 2: no image in this row" in said
