"""Real processes killed for real: a run that goes on ends bit-equal to one that was never disturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from nacre import files

# the layout is named, because two runs that measure it for themselves may choose differently
SETTINGS = [
    "--epochs",
    "2",
    "--precision",
    "fp32",
    "--set",
    "hardware.layout=contiguous",
    "--set",
    "checkpoint=0",
    "--set",
    "hardware.threads=1",
    "--quiet",
]


def nacre(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "nacre", "run", *arguments], stderr=subprocess.PIPE)


def finish(*arguments: str) -> None:
    process = nacre(*arguments)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors.decode()


def results(folder: Path) -> tuple[Any, dict[str, torch.Tensor], list[list[str]]]:
    measured = json.loads((folder / "metrics.json").read_text())
    tensors, _ = files.read_tensors(folder / "model.nacre")
    lines = [line.split(",") for line in (folder / "log.csv").read_text().splitlines()]
    time_taken = lines[0].index("seconds")
    return measured["results"], tensors, [line[:time_taken] + line[time_taken + 1 :] for line in lines]


def journal(folder: Path, name: str) -> Callable[[], bool]:
    return lambda: any(path.name.startswith(name) and not path.name.startswith(".") for path in (folder / "journal").glob("*"))


def killed_when(moment: Callable[[], bool], *arguments: str) -> None:
    process = nacre(*arguments)
    limit = time.monotonic() + 120
    while not moment():
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < limit
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "run"
    os.environ["NACRE_CACHE"] = str(folder.parent)
    finish(*SETTINGS, "--out", str(folder))
    return folder


@pytest.mark.slow
def test_killed_again_and_again_it_ends_bit_equal(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    resume = ("--resume", str(folder), "--quiet")
    killed_when((folder / "config.toml").exists, *SETTINGS, "--out", str(folder))
    killed_when(journal(folder, "stage0-fit0"), *resume)
    killed_when(journal(folder, "stage1-fit0"), *resume)
    killed_when(journal(folder, "stage2-phase0"), *resume)
    killed_when(journal(folder, "stage3-phase2"), *resume)
    finish(*resume)
    (first, weights, log), (again, weights_again, log_again) = results(undisturbed), results(folder)
    assert (undisturbed / "config.toml").read_text() == (folder / "config.toml").read_text()
    assert first == again
    assert weights.keys() == weights_again.keys()
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)
    assert log == log_again
    assert (folder / "report.html").exists()
    assert not (folder / "journal").exists()


def test_a_finished_run_resumed_changes_nothing(undisturbed: Path) -> None:
    before = results(undisturbed)
    finish("--resume", str(undisturbed), "--quiet")
    after = results(undisturbed)
    assert before[0] == after[0]
    assert before[2] == after[2]


def test_the_configuration_reproduces_the_run(undisturbed: Path, tmp_path: Path) -> None:
    finish(str(undisturbed / "config.toml"), "--quiet", "--out", str(tmp_path / "again"))
    (first, weights, _), (again, weights_again, _) = results(undisturbed), results(tmp_path / "again")
    assert first == again
    assert all(torch.equal(weights[name], weights_again[name]) for name in weights)


def test_an_interrupt_says_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = nacre(*(setting for setting in SETTINGS if setting != "--quiet"), "--epochs", "4", "--out", str(folder))
    limit = time.monotonic() + 120
    while not journal(folder, "stage0-fit0")() and not (folder / "model.nacre").exists():
        assert time.monotonic() < limit
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"nacre run --resume {folder}" in errors.decode().replace("\n", "")
    assert "Traceback" not in errors.decode()
