"""Images are decoded once: the cache's promises, with real processes that are killed, race, and meet a full disk."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from nacre.data import cache
from nacre.data.cache import amount, decoded, entries, remove
from nacre.data.decode import Form, decode
from nacre.data.listing import Files
from nacre.errors import NacreError
from odd import picture, saved

FORM = Form(3, 32, 32)


def written(root: Path, count: int = 20, side: int = 40) -> Files:
    """So many PNG files."""
    root.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (root / f"{number:05d}.png").write_bytes(saved(picture(number, side, side), "PNG"))
    return Files(sorted(root.iterdir()), str(root), root)


@pytest.fixture
def photographs(tmp_path: Path) -> Files:
    return written(tmp_path / "photographs")


def test_pixels_are_those_of_the_decoder_and_come_from_a_map(photographs: Files) -> None:
    found = decoded(photographs, FORM)
    for row, path in enumerate(photographs.paths):
        np.testing.assert_array_equal(found.images[row].numpy(), decode(path.read_bytes(), FORM))
    assert found.images.dtype == torch.uint8
    assert not found.reasons


def test_a_second_time_nothing_is_decoded(photographs: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    first = decoded(photographs, FORM).images.clone()
    monkeypatch.setattr(cache, "decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(decoded(photographs, FORM, lambda *_: pytest.fail("worked")).images, first)


@pytest.mark.parametrize("change", ["content", "time", "name", "fewer", "form"])
def test_whatever_changes_the_images_makes_a_new_entry(photographs: Files, change: str) -> None:
    decoded(photographs, FORM)
    path = Path(photographs.paths[0])
    if change == "content":
        path.write_bytes(saved(picture(99, 50, 50), "PNG"))
    elif change == "time":
        os.utime(path, ns=(1, 1))
    elif change == "name":
        path.rename(path.with_name("another.png"))
    elif change == "fewer":
        path.unlink()
    again = Files(sorted(photographs.root.iterdir()), photographs.origin, photographs.root)
    found = decoded(again, Form(3, 16, 16) if change == "form" else FORM)
    assert len(entries()) == 2
    assert len(found.images) == len(again)


def test_colour_that_turns_up_late_makes_everything_colour(tmp_path: Path) -> None:
    photographs = written(tmp_path / "mostly grey")
    for path in photographs.paths[:-1]:
        path.write_bytes(saved(picture(1).convert("L"), "PNG"))
    found = decoded(photographs, Form(1, 32, 32))
    assert found.images.shape == (20, 3, 32, 32)
    assert torch.equal(decoded(photographs, Form(1, 32, 32)).images, found.images)


def test_equal_files_have_equal_digests_and_others_have_not(photographs: Files) -> None:
    Path(photographs.paths[3]).write_bytes(Path(photographs.paths[7]).read_bytes())
    digests = decoded(photographs, FORM).digests
    assert digests[3] == digests[7]
    assert len(set(digests.tolist())) == 19


SCRIPT = """
import sys, time
from pathlib import Path
from nacre.data import cache
from nacre.data.decode import Form
from nacre.data.listing import Files
root, log, pause = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
real = cache.decode
def slow(data, form):
    time.sleep(pause)
    with log.open("a") as file:
        file.write("x")
    return real(data, form)
cache.decode = slow
cache.CHUNK = 2
found = cache.decoded(Files(sorted(root.iterdir()), str(root), root), Form(3, 32, 32))
print(int(found.images.long().sum()))
"""


def decoding(root: Path, log: Path, pause: float) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(root), str(log), str(pause)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_killed_it_goes_on_where_it_stopped(tmp_path: Path) -> None:
    photographs, log = written(tmp_path / "photographs", 80), tmp_path / "log"
    process = decoding(photographs.root, log, 0.02)
    limit = time.monotonic() + 60
    while not log.exists() or log.stat().st_size < 30:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = log.stat().st_size
    (half,) = entries()
    assert not half.finished
    found = decoding(photographs.root, log, 0)
    answer, errors = found.communicate(timeout=60)
    assert found.returncode == 0, errors
    assert log.stat().st_size - before <= 80 - before + 4 * cache.cores() * 2  # only what was under way is decoded twice
    assert log.stat().st_size - before < 80
    want = sum(int(decode(path.read_bytes(), FORM).astype(int).sum()) for path in photographs.paths)
    assert int(answer) == want
    assert [entry.finished for entry in entries()] == [True]


def test_two_processes_that_want_the_same_decode_it_once(tmp_path: Path) -> None:
    photographs, log = written(tmp_path / "photographs", 40), tmp_path / "log"
    both = [decoding(photographs.root, log, 0.01) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert log.stat().st_size == 40


@pytest.mark.skipif(os.name != "posix", reason="needs file size limits")
def test_a_full_disk_is_one_message_and_leaves_nothing(tmp_path: Path, own_cache: Path) -> None:
    photographs = written(tmp_path / "photographs", 60)
    limited = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limited += "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
    command = [sys.executable, "-c", limited + SCRIPT, str(photographs.root), str(tmp_path / "log"), "0"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "NacreError: the disk is full: 0 MB are needed in" in process.stderr
    assert "--size" in process.stderr
    assert "NACRE_CACHE" in process.stderr
    assert not entries()
    assert [path.suffix for path in (own_cache / "images").iterdir()] == [".lock"]
    assert not (tmp_path / "log").exists()  # it was noticed before anything was decoded


@pytest.mark.skipif(os.geteuid() != 0 if hasattr(os, "geteuid") else True, reason="only root may mount a small disk")
def test_a_disk_that_is_really_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(small)], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount")
    try:
        monkeypatch.setenv("NACRE_CACHE", str(small))
        monkeypatch.setenv("NACRE_CACHE_LIMIT", "1GB")
        with pytest.raises(NacreError, match="the disk is full: 0 MB are needed"):
            decoded(written(tmp_path / "photographs", 100), FORM)
        assert not entries()
        assert sum(path.stat().st_size for path in (small / "images").iterdir()) == 0
        assert len(decoded(written(tmp_path / "fewer", 20), FORM).images) == 20
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def test_the_least_lately_used_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = [written(tmp_path / name, 20) for name in "abc"]
    size = 20 * FORM.bytes
    monkeypatch.setenv("NACRE_CACHE_LIMIT", f"{2.5 * size:.0f}B")
    keys = {}
    for number in (0, 1):
        decoded(sets[number], FORM)
        keys[number] = next(entry.key for entry in entries() if entry.key not in keys.values())
    for number, used in ((0, 2000), (1, 1000)):
        os.utime(cache.folder() / "images" / keys[number] / cache.ABOUT, (used, used))
    mapped = decoded(sets[0], FORM).images  # used now; so b goes
    os.utime(cache.folder() / "images" / keys[0] / cache.ABOUT, (3000, 3000))
    decoded(sets[2], FORM)
    there = {entry.key for entry in entries()}
    assert keys[0] in there
    assert keys[1] not in there
    assert len(there) == 2
    assert remove(keys[0])
    assert int(mapped.long().sum()) > 0  # what a run has mapped stays readable to it


def test_a_data_set_above_the_limit_is_refused(photographs: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACRE_CACHE_LIMIT", "10KB")
    with pytest.raises(NacreError, match="limited to 0 MB: raise the environment variable NACRE_CACHE_LIMIT"):
        decoded(photographs, FORM)


def test_an_entry_that_was_damaged_is_made_anew(photographs: Files) -> None:
    first = decoded(photographs, FORM).images.clone()
    (entry,) = entries()
    about = cache.folder() / "images" / entry.key / cache.ABOUT
    about.write_text("{")
    assert torch.equal(decoded(photographs, FORM).images, first)
    assert json.loads(about.read_text())["images"] == 20


@pytest.mark.parametrize(("text", "number"), [("500", 500), ("5MB", 5_000_000), ("1.5 GiB", 3 * 2**29), ("2kb", 2000)])
def test_bytes_are_read_with_their_units(text: str, number: int) -> None:
    assert amount(text) == number


@pytest.mark.parametrize("text", ["", "MB", "-5MB", "5 XB", "1e9"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(NacreError, match="no number of bytes"):
        amount(text)
