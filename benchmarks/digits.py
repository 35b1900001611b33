"""The README's table: every base method on the digits, five stages of two classes, paired by seed.

A seed sets class order, initialisation and sampling. Settings are the defaults of `nacre run`, in fp32 on two threads.

    python benchmarks/digits.py [--json]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student

from nacre.experiment import Experiment, Run
from nacre.methods import METHODS
from nacre.training.method import Decoding
from nacre.training.runtime import Hardware

SILENT = "reconstruction, weight 0"
"""The method without its term: the pair that shows what the term does."""


def run(name: str, seed: int, epochs: int | None) -> dict[str, Any]:
    """One run in a folder of its own; returns its row."""
    method = METHODS["reconstruction" if name == SILENT else name]()
    if name == SILENT:
        method = replace(method, decoding=Decoding(weight=0))
    if epochs is not None:
        method = replace(method, optim=replace(method.optim, epochs=epochs))
    hardware = Hardware(device="cpu", precision="fp32", layout="contiguous", threads=2)
    with tempfile.TemporaryDirectory() as folder:
        session = Run(Experiment(method=method, memory=str(method.budget), seed=seed, hardware=hardware), Path(folder))
        for _ in session.stages():
            pass
        found = session.metrics()
    summary, cost = found["results"]["summary"], found["cost"]
    numbers = {key: summary[key] for key in ("average_incremental", "last", "forgetting", "probe")}
    return {"method": name, "seed": seed, **numbers, "seconds": cost["seconds"], "carried_bytes": cost["carried_bytes"]}


def spread(rows: list[dict[str, Any]], key: str) -> str:
    """Mean and sample standard deviation, in percent."""
    values = [100 * row[key] for row in rows]
    return f"{mean(values):.1f} ± {stdev(values):.1f}" if len(values) > 1 else f"{values[0]:.1f}"


def paired(rows: list[dict[str, Any]], first: str, second: str, key: str) -> str:
    """Mean of first minus second by seed, in points, with its 95 % t interval."""
    by = {(row["method"], row["seed"]): row[key] for row in rows}
    gaps = [100 * (by[first, seed] - by[second, seed]) for seed in sorted({row["seed"] for row in rows})]
    if len(gaps) < 2:
        return f"{gaps[0]:+.1f}"
    half = float(student.ppf(0.975, len(gaps) - 1)) * stdev(gaps) / math.sqrt(len(gaps))
    return f"{mean(gaps):+.1f} ± {half:.1f}"


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as markdown."""
    lines = [
        "| method | average incremental, % | last, % | forgetting, points | bytes carried |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == name]
        numbers = " | ".join(spread(mine, key) for key in ("average_incremental", "last", "forgetting"))
        lines.append(f"| {name} | {numbers} | {mine[0]['carried_bytes']:,} |")
    names = {row["method"] for row in rows}
    if {"reconstruction", SILENT} <= names:
        gaps = [
            f"{label} {paired(rows, 'reconstruction', SILENT, key)}"
            for key, label in (("average_incremental", "average"), ("last", "last"))
        ]
        count = len({row["seed"] for row in rows})
        lines += ["", f"The reconstruction term, paired by seed (points, 95 % t interval, n = {count}): {', '.join(gaps)}."]
    return "\n".join(lines)


def main() -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["finetune", "replay", "reconstruction-plain", "reconstruction", SILENT, "joint"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=None, help="of every stage; by default the method's own")
    parser.add_argument("--json", action="store_true", help="one JSON object with every run's row")
    options = parser.parse_args()
    rows = [run(name, seed, options.epochs) for name in options.methods for seed in range(options.seeds)]
    print(json.dumps({"rows": rows}) if options.json else table(rows))


if __name__ == "__main__":
    main()
