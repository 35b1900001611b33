"""Several processes share every batch and end where one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SETTINGS = [
    "--method",
    "replay",
    "--epochs",
    "2",
    "--set",
    "optim.batch=100",
    "--precision",
    "fp32",
    "--set",
    "hardware.threads=1",
    "--set",
    "hardware.device=cpu",
]


def run(launcher: list[str], *arguments: str) -> Any:
    done = subprocess.run(
        [*launcher, "-m", "nacre", "run", *SETTINGS, "--quiet", *arguments], capture_output=True, timeout=250, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    folder = Path(arguments[arguments.index("--out") + 1])
    return json.loads((folder / "metrics.json").read_text())


# Few steps, because training is chaotic: rounding that differs in the last bit grows into another, equally good network.


@pytest.mark.slow
def test_two_processes_give_the_matrix_of_one(tmp_path: Path) -> None:
    one = run([sys.executable], "--out", str(tmp_path / "one"))
    two = run([sys.executable], "--processes", "2", "--out", str(tmp_path / "two"))
    assert two["machine"]["hardware"]["processes"] == 2
    assert two["complete"]
    for first, second in zip(one["results"]["summary"]["matrix"], two["results"]["summary"]["matrix"], strict=True):
        assert second == pytest.approx(first, abs=0.03)
    assert two["results"]["summary"]["average_incremental"] == pytest.approx(one["results"]["summary"]["average_incremental"], abs=0.01)


@pytest.mark.slow
def test_torchrun_is_understood(tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    two = run(launcher, "--out", str(tmp_path / "two"))
    assert two["machine"]["hardware"]["processes"] == 2
    assert two["complete"]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_a_process_counts_its_own_memory_and_not_that_of_its_parent() -> None:
    large = bytearray(b"x") * 2**30
    script = "from nacre.training.runtime import Hardware, Runtime; print(Runtime(Hardware(device='cpu')).peak_bytes())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 2**26 < int(done.stdout) < len(large)


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="needs Linux's /proc")
def test_beside_busy_cores_a_runtime_says_how_many_threads_are_left() -> None:
    script = """
from nacre.training.runtime import Hardware, Runtime
for threads in (0, 1, 2):
    print(Runtime(Hardware(device="cpu", threads=threads)).notes)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    try:
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    finally:
        for process in busy:
            process.kill()
            process.wait()
    unasked, one, chosen = done.stdout.splitlines()
    assert unasked.startswith(f"['{len(busy)} of {len(busy)} cores")
    assert "OMP_NUM_THREADS=1 before the command" in unasked
    assert (one, chosen) == ("[]", "[]")
