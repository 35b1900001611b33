"""Folders of small pictures to teach a model with, and real processes that do it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

QUICK = ["--epochs", "4", "--set", "optim.batch=16", "--set", "backbone=small"]
"""Of a new model: done in a moment."""
SAME = ["--precision", "fp32", "--device", "cpu", "--set", "hardware.layout=contiguous", "--set", "hardware.threads=1"]
"""Chosen by name rather than measured, so that every process computes the same bits."""


def pictures(folder: Path, classes: dict[str, int], *, start: int = 0, size: int = 8, channels: int = 3) -> Path:
    """Write pictures of classes, each a pattern of its own (its number draws it) with noise; `start` numbers the first picture."""
    for name, pattern in classes.items():
        basis = np.random.default_rng(pattern).integers(40, 216, (size, size, channels))
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(start, start + 20):
            noise = np.random.default_rng([pattern, number]).integers(-30, 30, (size, size, channels))
            pixels = (basis + noise).astype(np.uint8)
            Image.fromarray(pixels if channels == 3 else pixels[..., 0]).save(folder / name / f"{number:03d}.png")
    return folder


def nacre(*arguments: str | Path, stdin: IO[str] | None = None) -> subprocess.Popen[str]:
    """A process of its own."""
    command = [sys.executable, "-m", "nacre", *map(str, arguments)]
    return subprocess.Popen(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
