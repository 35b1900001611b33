"""Seconds of a training step whose process keeps the memory that it frees, as nacre's do, over those where glibc decides.

Every turn is a process of its own, because such a setting cannot be taken back; the two kinds take turns, and the median of the
paired ratios counts. Page faults are those of one step. For Linux with glibc; elsewhere the two are the same.

    python benchmarks/allocator.py [--json]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from nacre.training.runtime import keep_freed, peak_memory
from precision import prepared, step

KINDS = ("glibc", "nacre")


def turn(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds and page faults of a step, and this process's peak bytes."""
    if kind == "nacre":
        keep_freed()
    model, images = prepared(options)
    form = "nacre" if options.precision == "bf16" else "fp32"
    for _ in range(3):
        step(form, model, images)  # warms up
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    seconds = sum(step(form, model, images) for _ in range(options.steps))
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    return {"seconds": seconds / options.steps, "faults": faults / options.steps, "peak": float(peak_memory())}


def elsewhere(kind: str) -> dict[str, float]:
    """The same in a process of its own, with the options of this one."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--turn", kind], capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; returns what is printed."""
    turns = [{kind: elsewhere(kind) for kind in KINDS} for _ in range(options.rounds)]
    ratios = [one["nacre"]["seconds"] / one["glibc"]["seconds"] for one in turns]
    return {
        "over_glibc": {"median": median(ratios), "least": min(ratios), "most": max(ratios)},
        **{name: {kind: median(one[kind][name] for one in turns) for kind in KINDS} for name in ("seconds", "faults", "peak")},
        **{name: getattr(options, name) for name in ("backbone", "batch", "precision", "threads", "steps", "rounds")},
        "torch": torch.__version__,
    }


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(
        "memory is kept", "ms a step", "page faults", "peak, MB", title=f"{found['backbone']}, batch {found['batch']}, {found['precision']}"
    )
    for kind, name in zip(KINDS, ("as glibc decides", "by nacre"), strict=True):
        seconds, faults, peak = (found[what][kind] for what in ("seconds", "faults", "peak"))
        table.add_row(name, f"{1000 * seconds:,.0f}", f"{faults:,.0f}", f"{peak / 1e6:,.0f}")
    ratio = found["over_glibc"]
    console = Console()
    console.print(table)
    console.print(f"{ratio['median']:.2f} of the time ({ratio['least']:.2f} - {ratio['most']:.2f}, n = {found['rounds']})")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--backbone", default="resnet20")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of turns")
    parser.add_argument("--turn", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        print(json.dumps(turn(options.turn, options)))
        return
    found = measure(options)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
