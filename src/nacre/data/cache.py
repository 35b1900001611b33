"""Images decoded once: a memory-mapped file of uint8 pixels per data set and form, in the user's cache folder.

An entry is a folder named by a digest of where its images come from, their sizes and times, and the form they were given.
It is filled under a lock, remembers which rows are done, and counts once `about.json` is there; so two processes that want
the same one make it once, a killed one is gone on with, and a full disk leaves nothing behind.

Shapes: N images, C channels, H x W pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from torch import Tensor

from nacre import files
from nacre.data.decode import Colourful, Form, Unreadable, decode
from nacre.data.images import Images
from nacre.errors import NacreError
from nacre.limits import free_memory

FORMAT = 1
"""Of an entry, and of what decoding gives: entries of other numbers are made anew."""
ABOUT, PIXELS, DONE, DIGESTS, REASONS = "about.json", "pixels", "done", "digests", "reasons.json"
CHUNK = 64
"""Images that a thread decodes at a time."""
Progress = Callable[[int, int], None]
"""Hears how many of how many images are decoded."""


class Encoded(Protocol):
    """N images as they lie on disk."""

    def __len__(self) -> int:
        """N."""

    def read(self, start: int, stop: int) -> list[bytes | Unreadable]:
        """The encoded images of some rows, or why one cannot be read."""

    def stamp(self) -> str:
        """Text that changes whenever any image does: places, sizes and times."""

    def name(self, row: int) -> str:
        """How to call one image in a message."""

    @property
    def origin(self) -> str:
        """Where they come from, for people."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """N decoded images."""

    images: Images
    """[N, C, H, W], uint8, mapped from disk; rows that could not be read are black."""
    reasons: Mapping[int, str]
    """Why a row could not be read."""
    digests: NDArray[np.uint64]
    """[N]: of the encoded images; equal for equal files."""


def folder() -> Path:
    """Where nacre keeps what it can make again: `$NACRE_CACHE`, else the user's cache folder."""
    if "NACRE_CACHE" in os.environ:
        return Path(os.environ["NACRE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "nacre"


def limit() -> int:
    """Bytes that all entries together may take: `$NACRE_CACHE_LIMIT`, such as `20GB`, else half of what the disk has."""
    if "NACRE_CACHE_LIMIT" in os.environ:
        return amount(os.environ["NACRE_CACHE_LIMIT"])
    folder().mkdir(parents=True, exist_ok=True)
    return shutil.disk_usage(folder()).total // 2


UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def amount(text: str) -> int:
    """Read a number of bytes, such as `5MB` or `1.5 GiB`.

    Raises:
        NacreError: it is none.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text.strip())
    if not match or match[2].upper() not in UNITS:
        raise NacreError(f"{text!r} is no number of bytes: write one such as 500MB or 20GB.")
    return int(float(match[1]) * UNITS[match[2].upper()])


def decoded(encoded: Encoded, form: Form, progress: Progress | None = None) -> Decoded:
    """Decode images, or find them decoded.

    Args:
        encoded: N images.
        form: what they become; made colour where one of them turns out to be.
        progress: hears how it goes, where there is something to do.

    Raises:
        NacreError: the disk is full, or the cache's limit is too small.
    """
    stamp = encoded.stamp()
    while True:
        place = folder() / "images" / key(stamp, form)
        place.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(place.with_suffix(".lock")), emptied_where_full(place, len(encoded) * form.bytes):
            about = read_about(place) or fill(place, encoded, form, progress)
        if not about["colourful"]:
            os.utime(place / ABOUT)  # the time of last use
            return load(place, len(encoded), form)
        form = Form(3, form.height, form.width, form.margin)


def key(stamp: str, form: Form) -> str:
    """Name of an entry."""
    return hashlib.sha256(f"{FORMAT}|{form}|{stamp}".encode()).hexdigest()[:24]


def read_about(place: Path) -> dict[str, Any] | None:
    """What a finished entry says of itself; None for one that is not finished."""
    with suppress(OSError, ValueError, KeyError):
        about = json.loads((place / ABOUT).read_text())
        if isinstance(about, dict) and (about["colourful"] or (place / PIXELS).exists()):
            return about
    return None


@contextmanager
def emptied_where_full(place: Path, size: int) -> Iterator[None]:
    """Turn a full disk into one clear message, and leave no half entry behind."""
    try:
        yield
    except (OSError, files.NoRoom) as error:
        if isinstance(error, OSError) and error.errno not in files.FULL:
            raise
        shutil.rmtree(place, ignore_errors=True)
        raise NacreError(
            f"the disk is full: {size / 1e6:,.0f} MB are needed in {folder()}. Make room (`nacre cache` shows what is there), choose a "
            "smaller --size, or name another disk by the environment variable NACRE_CACHE."
        ) from None


def fill(place: Path, encoded: Encoded, form: Form, progress: Progress | None) -> dict[str, Any]:
    """Decode what is not decoded yet, and finish the entry."""
    count = len(encoded)
    place.mkdir(exist_ok=True)
    make_room(place, count * form.bytes)
    for name, size in ((PIXELS, count * form.bytes), (DIGESTS, 8 * count), (DONE, count)):
        reserve(place / name, size)
    done = np.memmap(place / DONE, np.uint8, "r+", shape=(count,))
    reasons = {int(row): reason for row, reason in json.loads((place / REASONS).read_text()).items()} if (place / REASONS).exists() else {}
    colourful = False
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks on odd files; what matters comes as an exception
            for rows, found in chunks(place, encoded, form, done):
                reasons |= found
                if found:
                    files.write(place / REASONS, json.dumps(reasons))
                done[rows.start : rows.stop] = 1
                if progress is not None:
                    progress(int(done.sum()), count)
    except Colourful:
        colourful = True
    done.flush()
    del done
    about = {"origin": encoded.origin, "images": count, "form": list(form.shape), "colourful": colourful}
    if colourful:
        for name in (PIXELS, DIGESTS, DONE):
            (place / name).unlink(missing_ok=True)
    files.write(place / ABOUT, files.as_json(about))
    return about


def reserve(path: Path, size: int) -> None:
    """Make a file of a size, with its room on the disk taken at once so that writing to it cannot fail later."""
    if path.exists() and path.stat().st_size == size:
        return
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, max(1, size))
        file.truncate(size or 1)


def chunks(place: Path, encoded: Encoded, form: Form, done: NDArray[np.uint8]) -> Iterator[tuple[range, dict[int, str]]]:
    """Decode on all cores what is not done; yield each chunk of rows when its pixels are written, with what was unreadable."""
    count = len(encoded)
    pixels = np.memmap(place / PIXELS, np.uint8, "r+", shape=(max(1, count), *form.shape))
    digests = np.memmap(place / DIGESTS, np.uint64, "r+", shape=(max(1, count),))

    def work(rows: range) -> dict[int, str]:
        reasons = {}
        for row, data in zip(rows, encoded.read(rows.start, rows.stop), strict=True):
            try:
                if isinstance(data, Unreadable):
                    raise data
                pixels[row] = decode(data, form)
                digests[row] = int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")
            except Unreadable as error:
                reasons[row] = str(error)
        return reasons

    size = min(CHUNK, max(1, count // (4 * cores())))
    todo = (range(start, min(start + size, count)) for start in range(0, count, size) if not done[start : start + size].all())
    pool = ThreadPoolExecutor(cores())
    under_way: dict[Future[dict[int, str]], range] = {}
    try:
        for rows in todo:
            under_way[pool.submit(work, rows)] = rows
            while len(under_way) > 2 * cores():
                yield from collected(under_way)
        while under_way:
            yield from collected(under_way)
        pixels.flush()
        digests.flush()
    finally:
        pool.shutdown(cancel_futures=True)


def collected(under_way: dict[Future[dict[int, str]], range]) -> Iterator[tuple[range, dict[int, str]]]:
    """Wait for the first chunks to end, and yield them."""
    for future in wait(under_way, return_when=FIRST_COMPLETED).done:
        rows = under_way.pop(future)
        yield rows, future.result()


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def load(place: Path, count: int, form: Form) -> Decoded:
    """Map a finished entry."""
    reasons = json.loads((place / REASONS).read_text()) if (place / REASONS).exists() else {}
    with (place / PIXELS).open("rb") as file:
        room = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    pixels = np.frombuffer(room, np.uint8, count * form.bytes).reshape(count, *form.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing writes into images
        images = torch.from_numpy(pixels)
    return Decoded(
        Fetched(images, room) if count * form.bytes > free_memory() / 2 and hasattr(mmap, "MADV_WILLNEED") else images,
        {int(row): reason for row, reason in reasons.items()},
        np.fromfile(place / DIGESTS, np.uint64, count),
    )


class Fetched:
    """Mapped images that memory cannot hold: those that are asked for are read together, and nothing that lies beside them.

    Left to itself the system reads page after page, each when the one before has come, and much around it that pushes out
    what is wanted.

    Args:
        images: [N, C, H, W], uint8, mapped.
        room: the map.
    """

    def __init__(self, images: Tensor, room: mmap.mmap) -> None:
        self.images = images
        self.room = room
        self.shape = images.shape
        room.madvise(mmap.MADV_RANDOM)

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """The images of `rows` [n]: [n, C, H, W], uint8."""
        size = math.prod(self.shape[1:])
        for row in rows.tolist():
            start = row * size // mmap.PAGESIZE * mmap.PAGESIZE
            self.room.madvise(mmap.MADV_WILLNEED, start, (row + 1) * size - start)
        return self.images[rows]


@dataclass(frozen=True)
class Entry:
    """One data set in the cache, for people."""

    key: str
    origin: str
    images: int
    form: tuple[int, ...]
    bytes: int
    used: float
    """Seconds since the epoch."""
    finished: bool


def entries() -> list[Entry]:
    """What is in the cache, the latest used first."""
    root = folder() / "images"
    found = []
    for place in sorted(root.iterdir()) if root.is_dir() else []:
        if place.is_dir():
            about = read_about(place)
            size = sum(path.stat().st_blocks * 512 for path in place.iterdir()) if os.name == "posix" else tree_size(place)
            used = (place / ABOUT if about else place).stat().st_mtime
            said = about or {"origin": "unfinished", "images": 0, "form": ()}
            found.append(Entry(place.name, said["origin"], said["images"], tuple(said["form"]), size, used, about is not None))
    return sorted(found, key=lambda entry: -entry.used)


def tree_size(place: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in place.iterdir())


def remove(name: str) -> bool:
    """Take an entry away, unless a process is filling it; one that is mapped by a run stays readable to that run."""
    place = folder() / "images" / name
    try:
        with FileLock(place.with_suffix(".lock"), timeout=0):
            shutil.rmtree(place, ignore_errors=True)
    except Timeout:
        return False
    return True


def make_room(place: Path, needed: int) -> None:
    """Take away the entries that were not used for longest, until the new one fits under the limit.

    Raises:
        NacreError: it alone is above the limit.
    """
    if needed > limit():
        raise NacreError(
            f"these images take {needed / 1e6:,.0f} MB decoded, but the cache is limited to {limit() / 1e6:,.0f} MB: raise the environment "
            "variable NACRE_CACHE_LIMIT, or choose a smaller --size."
        )
    others = [entry for entry in entries() if entry.key != place.name]
    spare = limit() - needed - sum(entry.bytes for entry in others)
    for entry in reversed(others):
        if spare >= 0:
            break
        if time.time() - entry.used > 1 and remove(entry.key):
            spare += entry.bytes
