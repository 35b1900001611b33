"""What a data set holds before anything is decoded: encoded images, what each shows, and which part it belongs to."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from nacre.data.cache import Encoded
from nacre.data.decode import Unreadable
from nacre.errors import NacreError, nearest

TRAIN, TEST = ("train", "training"), ("test", "testing", "val", "valid", "validation")
"""Names of the parts of a data set; of several for test images the first counts."""
LITTER = frozenset({"thumbs.db", "desktop.ini", "__macosx", "icon\r"})
"""What systems leave in folders, in lower case; names with a leading dot are litter too."""
PATHS = ("path", "file", "filename", "file_name", "image", "image_path")
LABELS = ("label", "fine_label", "class", "target", "labels")
SPLITS = ("split", "part", "set", "subset")
"""Names of columns, the likeliest first."""


@dataclass(frozen=True, eq=False)
class Listing:
    """N encoded images with their labels."""

    encoded: Encoded
    labels: Sequence[int]
    """[N]: positions in `classes`."""
    classes: tuple[str, ...]
    test: Sequence[bool] | None
    """[N]: which images are test images; None where the data come without a split."""


@dataclass(frozen=True, eq=False)
class Files:
    """Image files."""

    paths: Sequence[Path]
    origin: str
    root: Path

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, start: int, stop: int) -> list[bytes | Unreadable]:
        """The files' bytes."""
        return [content(path) for path in self.paths[start:stop]]

    def stamp(self) -> str:
        """A digest of all paths, sizes and times."""
        total = hashlib.sha256(os.fsencode(self.root.resolve()))
        for path in self.paths:
            try:
                about = path.stat()
                text = f"|{about.st_size}|{about.st_mtime_ns}\n"
            except OSError as error:
                text = f"|{error.errno}\n"
            total.update(os.fsencode(path) + text.encode())
        return total.hexdigest()

    def name(self, row: int) -> str:
        """The path below the data set's folder."""
        path = self.paths[row]
        return legible(path.relative_to(self.root) if path.is_relative_to(self.root) else path)


def content(path: Path) -> bytes | Unreadable:
    """A file's bytes, or why it has none."""
    try:
        if not path.is_file():  # a pipe or a device would never end
            return Unreadable("a link to nowhere" if path.is_symlink() else "not a file" if path.exists() else "no such file")
        return path.read_bytes()
    except OSError as error:
        return Unreadable(error.strerror or str(error))


def legible(path: Path | str) -> str:
    """A path as text that any terminal and file can take: undecodable bytes and control characters replaced."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def walk(folder: Path, seen: frozenset[tuple[int, int]] = frozenset()) -> Iterator[tuple[Path, list[Path]]]:
    """Yield every folder below and its files, sorted, litter left out; links are followed, but never in a circle."""
    about = folder.stat()
    here = (about.st_dev, about.st_ino)
    if here in seen:
        return
    try:
        entries = sorted((entry for entry in os.scandir(folder) if not litter(entry.name)), key=lambda entry: entry.name)
    except OSError as error:
        raise NacreError(f"cannot read the folder {legible(folder)}: {error.strerror}.") from None
    inside = [entry for entry in entries if leads_to_a_folder(entry)]
    yield folder, [Path(entry.path) for entry in entries if entry not in inside]
    for entry in inside:
        yield from walk(Path(entry.path), seen | {here})


def leads_to_a_folder(entry: os.DirEntry[str]) -> bool:
    """Whether it is a folder or a link to one; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def litter(name: str) -> bool:
    """Whether a system, not a person, made a file of this name."""
    return name.startswith(".") or name.lower() in LITTER


def folder_listing(root: Path, label: str = "") -> Listing:
    """A folder with one sub-folder per class, below `train/` and `test/` or `val/` where there are such.

    Classes are the folders at the least depth at which any folder holds files, named by their path; what lies deeper belongs
    to them. So alphabet/character/drawing.png makes a class of every character.
    """
    tree = [(folder.relative_to(root).parts, paths) for folder, paths in walk(root)]
    parts = {where[0].lower(): where[0] for where, _ in tree if len(where) == 1}
    train = next((parts[name] for name in TRAIN if name in parts), None)
    test = next((parts[name] for name in TEST if name in parts), None) if train else None
    depth = 1 if train else 0
    tree = [(where, paths) for where, paths in tree if len(where) > depth and (not train or where[0] in (train, test))]
    level = min((len(where) for where, paths in tree if paths), default=depth + 1)
    found = [(legible("/".join(where[depth:level])), bool(test) and where[0] == test, path) for where, paths in tree for path in paths]
    folders = {legible("/".join(where[depth:level])) for where, _ in tree if len(where) >= level}
    classes = tuple(sorted(folders, key=natural))
    if not classes:
        raise NacreError(f"{legible(root)} holds no sub-folder with images: give a folder with one sub-folder per class.")
    position = {name: number for number, name in enumerate(classes)}
    return Listing(
        Files([path for _, _, path in found], legible(root.resolve()), root),
        [position[name] for name, _, _ in found],
        classes,
        [is_test for _, is_test, _ in found] if test else None,
    )


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Sorts class 10 behind class 9."""
    parts, digits = [], ""
    for character in [*name, ""]:
        if character.isascii() and character.isdigit():
            digits += character
            continue
        if digits:
            parts.append((False, int(digits), ""))
            digits = ""
        parts.append((True, 0, character))
    return parts


@dataclass(frozen=True, eq=False)
class Parquets:
    """Encoded images in a column of Parquet files, as data hubs keep them."""

    paths: Sequence[Path]
    column: str
    origin: str
    edges: Sequence[int] = field(default_factory=list)
    """First row of every row group, over all files, and the number of rows."""
    groups: Sequence[tuple[int, int]] = field(default_factory=list)
    """File and row group of each."""

    @classmethod
    def of(cls, paths: Sequence[Path], column: str, origin: str) -> Parquets:
        """Look at the files' row groups."""
        edges, groups = [0], []
        for number, path in enumerate(paths):
            about = opened_parquet(path).metadata
            for group in range(about.num_row_groups):
                groups.append((number, group))
                edges.append(edges[-1] + about.row_group(group).num_rows)
        return cls(paths, column, origin, edges, groups)

    def __len__(self) -> int:
        return self.edges[-1]

    def read(self, start: int, stop: int) -> list[bytes | Unreadable]:
        """The images' bytes."""
        found: list[bytes | Unreadable] = []
        for (file, group), low, high in zip(self.groups, self.edges, self.edges[1:], strict=False):
            if low < stop and high > start:
                column = row_group(self.paths[file], group, self.column)
                piece = column.slice(max(start, low) - low, min(stop, high) - max(start, low)).to_pylist()
                found += [Unreadable("no image in this row") if data is None else data for data in piece]
        return found

    def stamp(self) -> str:
        """The files' paths, sizes and times, and the column."""
        files = [(os.fsencode(path.resolve()).hex(), path.stat().st_size, path.stat().st_mtime_ns) for path in self.paths]
        return f"{files}{self.column}"

    def name(self, row: int) -> str:
        """File and row."""
        group = next(number for number, high in enumerate(self.edges[1:]) if row < high)
        file = self.groups[group][0]
        first = next(low for (number, _), low in zip(self.groups, self.edges, strict=False) if number == file)
        return f"{legible(self.paths[file].name)} row {row - first}"


def opened_parquet(path: Path) -> Any:
    """Open a Parquet file.

    Raises:
        NacreError: it is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.ParquetFile(path, memory_map=True)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise NacreError(f"{legible(path)} cannot be read as Parquet ({error}): use a copy that is whole.") from None


@lru_cache(maxsize=8)
def row_group(path: Path, group: int, column: str) -> Any:
    """The encoded images of a row group, as an Arrow array of bytes."""
    found = opened_parquet(path).read_row_group(group, [column]).column(column).combine_chunks()
    return found.field("bytes") if structured(found.type) else found


def parquet_listing(root: Path, label: str = "") -> Listing:
    """Parquet files with a column of encoded images and one of labels, split by the files' names.

    Args:
        root: a file, or a folder with files such as `train-00000-of-00002.parquet`, in `data/` perhaps.
        label: column of the labels; by default the likeliest name.

    Raises:
        NacreError: there is no such column.
    """
    paths = [root] if root.is_file() else sorted(path for path in root.rglob("*.parquet") if not litter(path.name))
    parts = {path: part_of(path.name) for path in paths}
    has_test = "test" in parts.values() or "val" in parts.values()
    if has_test and "train" in parts.values():
        test_name = "test" if "test" in parts.values() else "val"
        paths = [path for path in paths if parts[path] in ("train", test_name)]
    schema = opened_parquet(paths[0]).schema_arrow
    binary = [item.name for item in schema if holds_images(item.type)]
    if not binary:
        return list_listing(root, label)
    name = chosen(label, [item.name for item in schema if item.name not in binary], root)
    values, test = [], []
    for path in paths:
        column = opened_parquet(path).read([name]).column(name).to_pylist()
        values += column
        test += [parts[path] in ("test", "val")] * len(column)
    labels, classes = numbered(values, class_names(schema, name, paths[0].parent), root)
    return Listing(Parquets.of(paths, binary[0], legible(root.resolve())), labels, classes, test if any(test) and not all(test) else None)


def holds_images(kind: Any) -> bool:
    """Whether a column's Arrow type is bytes, or a structure with bytes in it."""
    from pyarrow import types

    inner = [child.type for child in kind if child.name == "bytes"] if structured(kind) else [kind]
    return any(types.is_binary(each) or types.is_large_binary(each) for each in inner)


def structured(kind: Any) -> bool:
    """Whether a column's Arrow type is a structure of named parts."""
    from pyarrow import types

    return bool(types.is_struct(kind))


def part_of(name: str) -> str:
    """Which part of a data set a file name stands for; the empty string where it does not say."""
    first = name.lower().replace("_", "-").replace(".", "-").split("-")[0]
    return "train" if first in TRAIN else "test" if first in TEST[:2] else "val" if first in TEST else ""


def chosen(label: str, columns: Sequence[str], where: Path) -> str:
    """The column of labels.

    Raises:
        NacreError: the one that was asked for is not there, or none is likely.
    """
    if label:
        if label not in columns:
            raise NacreError(f"{legible(where)} has no column {label!r}: use one of {', '.join(columns)}.{nearest(label, columns)}")
        return label
    likely = next((name for name in LABELS if name in columns), None) or (columns[0] if len(columns) == 1 else None)
    if likely is None:
        raise NacreError(f"{legible(where)} has no column that is named like a label: name one by --label: {', '.join(columns)}.")
    return likely


def class_names(schema: Any, column: str, folder: Path) -> list[str] | None:
    """Class names of a column of numbers: from what data hubs write into the file, or from a text file beside it."""
    about = (schema.metadata or {}).get(b"huggingface")
    if about is not None:
        feature = json.loads(about).get("info", {}).get("features", {}).get(column, {})
        names = feature.get("names") or feature.get("feature", {}).get("names")
        if names:
            return [str(name) for name in names]
    for path in (folder / f"{column}_names.txt", folder / "label_names.txt", folder / "classes.txt"):
        if path.is_file():
            return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return None


def numbered(values: Sequence[Any], names: Sequence[str] | None, where: Path) -> tuple[list[int], tuple[str, ...]]:
    """Labels as positions in class names.

    Args:
        values: labels as they are found: numbers, or text.
        names: of the classes, where numbers count in them.
        where: they come from, for messages.

    Raises:
        NacreError: a label is missing, or has no name.
    """
    if any(value is None for value in values):
        raise NacreError(f"{legible(where)}: row {[value is None for value in values].index(True)} has no label: every image needs one.")
    distinct = sorted(set(values), key=lambda value: natural(str(value)))
    if names is not None and all(isinstance(value, int) for value in distinct):
        if distinct[-1] >= len(names) or min(distinct) < 0:
            raise NacreError(f"{legible(where)}: label {max(distinct)} found, but only {len(names)} classes are named.")
        names = [legible(name) for name in names]
        distinct = [value for value in range(len(names)) if value in set(distinct)]
        position = {value: number for number, value in enumerate(distinct)}
        return [position[value] for value in values], tuple(names[value] for value in distinct)
    position = {value: number for number, value in enumerate(distinct)}
    return [position[value] for value in values], tuple(legible(str(value)) for value in distinct)


def list_listing(root: Path, label: str = "") -> Listing:
    """A CSV or Parquet list of path and label, and a split where a column is named so; paths count from the list's folder.

    Raises:
        NacreError: columns are missing.
    """
    table = columns_of(root)
    paths = next((name for name in PATHS if name in table and name != label), None)
    if paths is None:
        raise NacreError(f"{legible(root)} has no column of paths: name one {' or '.join(PATHS)}. It has: {', '.join(table)}.")
    split = next((name for name in SPLITS if name in table), None)
    labels, classes = numbered(table[chosen(label, [name for name in table if name not in (paths, split)], root)], None, root)
    test = None
    if split is not None:
        test = [str(value).lower() in TEST for value in table[split]]
    base = root.parent
    files = Files([base / str(path) for path in table[paths]], legible(root.resolve()), base)
    return Listing(files, labels, classes, test if test and any(test) and not all(test) else None)


def columns_of(path: Path) -> Mapping[str, list[Any]]:
    """A table's columns by lower-case name."""
    if path.suffix.lower() == ".parquet":
        found = opened_parquet(path).read().to_pydict()
        return {name.lower(): values for name, values in found.items()}
    try:
        text = path.read_text(encoding="utf-8-sig")
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        rows = list(csv.DictReader(text.splitlines(), delimiter=delimiter, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise NacreError(f"{legible(path)} cannot be read as a list of path and label ({error}).") from None
    if not rows:
        raise NacreError(f"{legible(path)} lists nothing: write a line of column names, such as path,label, and a line for every image.")
    if any(None in row or None in row.values() for row in rows):
        raise NacreError(f"{legible(path)} has lines of different lengths: every line needs as many values as there are columns.")
    return {name.strip().lower(): [row[name].strip() for row in rows] for name in rows[0]}
