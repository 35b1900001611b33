"""Images per second of a training step in bf16 over those in fp32: as nacre computes it, and as PyTorch's autocast alone does.

The two differ on processors without instructions for bfloat16. The kinds take turns in one process; the median of the paired
ratios counts.

    python benchmarks/precision.py [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from contextlib import AbstractContextManager
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from nacre.data.source import ImageSpec
from nacre.models.model import Model, build_model
from nacre.training.precision import computing, lacks_bf16
from nacre.training.runtime import reformatted

CPU = torch.device("cpu")
KINDS = ("fp32", "nacre", "autocast")


def context(kind: str) -> AbstractContextManager[None]:
    """How one kind computes."""
    if kind == "autocast":
        return torch.autocast("cpu", torch.bfloat16)
    return computing("bf16" if kind == "nacre" else "fp32", CPU)


def prepared(options: argparse.Namespace) -> tuple[Model, Tensor]:
    """A network to train, and a batch."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = reformatted(build_model(options.backbone, "linear", ImageSpec((3, 32, 32))), torch.channels_last).train()
    return model, torch.randn(options.batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)


def step(kind: str, model: Model, images: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    began = time.perf_counter()
    with context(kind):
        features = model(images).features
    torch.autograd.grad(features.square().mean(), list(model.backbone.parameters()))
    return time.perf_counter() - began


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run everything; returns what is printed."""
    model, images = prepared(options)
    turns = [{kind: step(kind, model, images) for kind in KINDS} for _ in range(options.rounds + 1)][1:]  # the first warms up
    ratios = {kind: [turn["fp32"] / turn[kind] for turn in turns] for kind in KINDS[1:]}
    return {
        "images_per_second": {kind: options.batch / median(turn[kind] for turn in turns) for kind in KINDS},
        "over_fp32": {kind: {"median": median(found), "least": min(found), "most": max(found)} for kind, found in ratios.items()},
        "lacks_bf16": lacks_bf16(),
        "backbone": options.backbone,
        "batch": options.batch,
        "rounds": options.rounds,
        "torch": torch.__version__,
    }


def show(found: dict[str, object]) -> None:
    """Print the table."""
    speed, ratios = found["images_per_second"], found["over_fp32"]
    assert isinstance(speed, dict)
    assert isinstance(ratios, dict)
    lacks = "without" if found["lacks_bf16"] else "with"
    table = Table("bf16", "images/s", "over fp32", "least - most", title=f"{found['backbone']}, batch {found['batch']}, {lacks} bf16")
    for kind, ratio in ratios.items():
        table.add_row(kind, f"{speed[kind]:,.0f}", f"{ratio['median']:.2f}", f"{ratio['least']:.2f} - {ratio['most']:.2f}")
    Console().print(table)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3, help="turns that count")
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
