"""Real `nacre learn` processes killed, interrupted, and starved of room: the model is whole, and going on ends with the same bits."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from classroom import SAME, nacre, pictures
from nacre import files, modelfile
from nacre.holding import beside

SETTINGS = [*SAME, "--set", "checkpoint=0", "--quiet"]
LENGTHY = ["--epochs", "12", "--set", "optim.batch=4", "--set", "backbone=small"]


def contents(model: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """A model's tensors, and its header without what a clock wrote."""
    tensors, header = files.read_tensors(model)
    for lesson in header["more"]["lessons"]:
        del lesson["date"], lesson["seconds"]
    return tensors, header


def same(one: Path, other: Path) -> bool:
    (tensors, header), (others, other_header) = contents(one), contents(other)
    return header == other_header and tensors.keys() == others.keys() and all(torch.equal(tensors[n], others[n]) for n in tensors)


def finish(*arguments: str | Path) -> None:
    process = nacre(*arguments)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model of stage 1, images of stage 2, and what learning them undisturbed gives."""
    folder = tmp_path_factory.mktemp("home")
    os.environ["NACRE_CACHE"] = str(folder / "cache")
    pictures(folder / "first", {"cat": 1, "dog": 2})
    pictures(folder / "second", {"emu": 3, "fox": 4})
    finish("learn", folder / "old.nacre", folder / "first", *LENGTHY, *SETTINGS)
    shutil.copy(folder / "old.nacre", folder / "new.nacre")
    finish("learn", folder / "new.nacre", folder / "second", *SETTINGS)
    return folder


@pytest.fixture(autouse=True)
def shared_cache(own_cache: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NACRE_CACHE", str(home / "cache"))


def begun(model: Path, process: subprocess.Popen[str]) -> None:
    """Wait until a lesson is under way."""
    while not beside(model, "learning").exists() and process.poll() is None:
        time.sleep(0.002)


def kill_again_and_again(home: Path, folder: Path, times: int, seed: int) -> None:
    """Kill lessons at random moments; whenever one has come to its end, begin again with the old model."""
    draw, model = random.Random(seed), folder / "m.nacre"
    shutil.copy(home / "old.nacre", model)
    ended = 0
    for _ in range(times):
        process = nacre("learn", model, home / "second", *SETTINGS)
        if draw.random() < 0.8:
            begun(model, process)
            time.sleep(draw.random() * 1.5)
        else:
            time.sleep(draw.random() * 3)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        learner, _ = modelfile.load(model)  # whole, whatever happened
        if len(learner.classes) == 4:
            assert same(model, home / "new.nacre")
            shutil.copy(home / "old.nacre", model)
            ended += 1
        else:
            assert same(model, home / "old.nacre")
    finish("learn", model, home / "second", *SETTINGS)
    assert same(model, home / "new.nacre")
    assert {path.name for path in folder.iterdir()} <= {"m.nacre", "m.nacre.prev", ".m.nacre.lock", ".m.nacre.holder"}


def test_killed_twice_it_ends_with_the_same_model(home: Path, tmp_path: Path) -> None:
    kill_again_and_again(home, tmp_path, 2, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_fifty_times_it_ends_with_the_same_model(home: Path, tmp_path: Path) -> None:
    kill_again_and_again(home, tmp_path, 50, seed=2)


def test_killed_between_the_new_file_and_the_end_it_is_done(home: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.nacre"
    shutil.copy(home / "new.nacre", model)
    beside(model, "learning").mkdir()
    (beside(model, "learning") / "lesson.json").write_text("{}")
    finish("learn", model, home / "second", *SETTINGS)
    assert model.read_bytes() == (home / "new.nacre").read_bytes()
    assert not beside(model, "learning").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_the_epoch_and_says_how_to_go_on(number: signal.Signals, home: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.nacre"
    shutil.copy(home / "old.nacre", model)
    process = nacre("learn", model, home / "second", *(setting for setting in SETTINGS if setting != "--quiet"))
    while not list((beside(model, "learning") / "journal").glob("stage1-fit*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number, errors
    assert "run the same command again to go on" in errors.replace("\n", " ")
    assert "Traceback" not in errors
    assert same(model, home / "old.nacre")
    assert list((beside(model, "learning") / "journal").glob("stage1-*"))
    finish("learn", model, home / "second", *SETTINGS)
    assert same(model, home / "new.nacre")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder with room for a few models."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", place], capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow
def test_a_full_disk_loses_nothing(home: Path, small_disk: Path) -> None:
    model, ballast = small_disk / "m.nacre", small_disk / "ballast"
    shutil.copy(home / "old.nacre", model)
    for spare in (0, 700_000, 1_500_000, 2_200_000):  # no room for the journal, for the end of a phase, for the new file
        room = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(max(0, room - spare)))
        process = nacre("learn", model, home / "second", *SETTINGS)
        _, errors = process.communicate(timeout=100)
        if process.returncode == 0:
            break
        assert process.returncode == 2, errors
        assert "no room on the disk" in errors
        assert "Traceback" not in errors
        assert same(model, home / "old.nacre")
        assert not list(small_disk.glob("*.part"))
        ballast.unlink()
    ballast.unlink(missing_ok=True)
    finish("learn", model, home / "second", *SETTINGS)
    assert same(model, home / "new.nacre")
