"""The benchmarks run and print what they promise."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from nacre.data.source import ImageSpec
from nacre.methods import METHODS
from nacre.models.sided import sides_of

FOLDER = Path(__file__).parent.parent / "benchmarks"


def run(name: str, *arguments: str) -> Any:
    done = subprocess.run([sys.executable, FOLDER / name, *arguments, "--json"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_precision() -> None:
    found = run("precision.py", "--backbone", "small", "--batch", "4", "--rounds", "1")
    assert set(found["images_per_second"]) == {"fp32", "nacre", "autocast"}
    assert all(ratio["median"] > 0 for ratio in found["over_fp32"].values())


@pytest.mark.slow
def test_allocator() -> None:
    found = run("allocator.py", "--backbone", "small", "--batch", "64", "--precision", "fp32", "--steps", "4", "--rounds", "1")
    assert found["over_glibc"]["median"] > 0
    assert found["faults"]["nacre"] < found["faults"]["glibc"]


def test_loop() -> None:
    found = run(
        "loop.py", "--device", "cpu", "--precision", "fp32", "--backbone", "resnet20", "--batch", "8", "--steps", "2", "--rounds", "1"
    )
    names = {"first_stage", "first_stage_decoder", "distillation_stage", "distillation_stage_decoder"}
    assert set(found["ratios"]) == names
    assert set(found["images_per_second"]) == names | {f"{name}_bare" for name in names}
    assert found["first_stage"] > 0
    assert found["distillation_stage"] > 0
    assert found["decoder_cost"] > -1
    assert found["peak_bytes"] > 0


@pytest.mark.slow
def test_data() -> None:
    found = run("data.py", "--device", "cpu", "--precision", "fp32", "--images", "8", "--sizes", "64", "--steps", "1", "--rounds", "1")
    assert found["decoding"]["images_per_second"] > 0
    assert set(found["loading"]) == {"64_resident", "64_mapped"}
    assert found["loading"]["64_mapped"]["over_resident"] > 0
    assert all(row["loop_over_step"] > 0 and row["loader_over_step"] > 0 for row in found["loading"].values())


@pytest.mark.slow
def test_predict() -> None:
    found = run("predict.py", "--images", "8", "--rounds", "1", "--threads", "1", "--networks", "32/resnet20")
    row = found["networks"]["32/resnet20"]
    assert set(row["images_per_second"]) == {"files", "decoding", "arrays", "forward", "onnx"}
    assert all(value > 0 for value in [*row["images_per_second"].values(), row["files_over_reachable"], *found["start_up"].values()])


def test_methods() -> None:
    names = ["replay", "lwf", "er-ace", "der++", "agem", "der", "pass", "slda"]
    quick = ["--backbone", "resnet20", "--batch", "8", "--steps", "2", "--rounds", "1", "--size", "8", "--no-memory"]
    quick += ["--epochs", "1000"]  # so that only the fits count
    found = run("methods.py", *quick, "--methods", *names)
    rows = {row["method"]: row for row in found["rows"]}
    assert list(rows) == names
    assert all(row["images_per_second"] > 0 and row["least"] <= row["ratio"] <= row["most"] for row in rows.values())
    forwards = {"replay": 3, "lwf": 4, "er-ace": 6, "der++": 9, "agem": 6, "der": 4, "pass": 16}  # a step of replay is three
    assert {name: 3 / rows[name]["expected"] for name in forwards} == pytest.approx(forwards, rel=0.01)
    assert rows["slda"]["expected"] == pytest.approx(3, rel=0.05)  # features once, and covariances that are small beside them
    assert all(row["beside"] > 0 and row["expected_memory"] > 0 for row in found["rows"])
    assert rows["slda"]["memory"] is None


def test_operations_on_matrices_are_counted_by_their_textbook_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    algebra = importlib.import_module("methods").ALGEBRA
    square, sides = torch.eye(30, dtype=torch.float64), torch.ones(30, 7, dtype=torch.float64)

    def counted(compute: Callable[[], object]) -> float:
        with FlopCounterMode(display=False, custom_mapping=algebra) as counter:
            compute()
        return counter.get_total_flops()

    assert counted(lambda: square.float() @ sides.float()) == 2 * 30 * 30 * 7
    assert counted(lambda: square @ sides) == 2 * 2 * 30 * 30 * 7
    assert counted(lambda: square.bfloat16() @ sides.bfloat16()) == 30 * 30 * 7
    assert counted(lambda: nn.functional.linear(sides.T.float(), square.float(), torch.ones(30))) == 2 * 7 * 30 * 30
    assert counted(lambda: torch.linalg.cholesky(square)) == 2 * 30**3 // 3
    assert counted(lambda: torch.cholesky_solve(sides, square)) == 2 * 2 * 30**2 * 7
    assert counted(lambda: torch.linalg.solve(square, sides)) == 2 * (2 * 30**3 // 3 + 2 * 30**2 * 7)
    assert counted(lambda: torch.linalg.inv(square)) == 2 * 2 * 30**3
    images, kernel, gradient = torch.ones(2, 6, 5, 5), torch.ones(9, 2, 3, 3), torch.ones(2, 9, 5, 5)
    weights = counted(lambda: nn.grad.conv2d_weight(images, [9, 2, 3, 3], gradient, padding=1, groups=3))
    learnt = images.clone().requires_grad_(), kernel.clone().requires_grad_()
    assert counted(lambda: nn.functional.conv2d(*learnt, padding=1, groups=3).sum().backward()) == 3 * weights
    assert weights == counted(lambda: nn.functional.conv2d(images, kernel, padding=1, groups=3)) == 2 * gradient.numel() * 2 * 3 * 3


def test_maps_are_counted_as_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    counting = importlib.import_module("methods")
    images, whole, half, quarter = 3 * 64, 64, 16, 4  # of three channels and 8 x 8 positions
    model = METHODS["ssre"](backbone="small").whole(ImageSpec((3, 8, 8)))
    closed = counting.cost(model, decode=False).kept
    given = images + 32 * whole + 64 * half + 64 * half + 64 * quarter  # to convolutions; heads are expected to cost nothing
    normed = 32 * whole + 2 * 64 * half + 2 * 64 * quarter
    assert closed == given + normed
    for conv in sides_of(model.backbone):
        conv.resize(1)  # what it is given is there already, and what it gives is added to what is there
    assert counting.cost(model, decode=False).kept == closed
    assert counting.cost(model.requires_grad_(False), decode=False).kept == 0
    assert counting.passing(model) >= images + 2 * 32 * whole  # before and after the first batch norm
    assert counting.passing(model) <= images + 4 * 32 * whole


@pytest.mark.slow
def test_every_method() -> None:
    rows = run("methods.py", "--backbone", "small", "--batch", "8", "--steps", "2", "--rounds", "1", "--no-memory")["rows"]
    assert [row["method"] for row in rows] == [name for name, cls in METHODS.items() if "pre-training" not in cls.needs]
    assert all(row["images_per_second"] > 0 for row in rows)


@pytest.mark.slow
def test_the_memory_of_methods() -> None:
    found = run("methods.py", "--methods", "er-ace", "--backbone", "small", "--batch", "64", "--steps", "1", "--rounds", "1")
    assert found["replay_peak_bytes"] > 0
    assert found["rows"][0]["memory"] > 0
