"""What a finished run can be measured by: a number from its metrics.json and its log."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import mean
from typing import Any

from nacre.errors import choose

Run = Mapping[str, Any]
"""Content of a metrics.json."""
NAN = float("nan")


@dataclass(frozen=True)
class Measure:
    """One number of a run, and how it is read."""

    title: str
    of: Callable[[Run, str], float]
    """Metrics and the text of log.csv -> number; nan where the run has none."""
    less: bool | None = None
    """Whether less is better; None: neither is."""
    scale: float = 100.0
    """What the number is shown times: shares in percent, other numbers as they are."""


def summary(name: str) -> Callable[[Run, str], float]:
    """Of the run's summary."""
    return lambda run, log: number(run["results"]["summary"].get(name))


def cost(name: str) -> Callable[[Run, str], float]:
    """Of the run's costs."""
    return lambda run, log: number(run["cost"].get(name))


def stages(*path: str) -> Callable[[Run, str], float]:
    """Mean over the stages that have it."""

    def of(run: Run, log: str) -> float:
        found = []
        for stage in run["results"]["stages"]:
            value: Any = stage
            for name in path:
                value = value.get(name) if isinstance(value, Mapping) else None
            found.append(number(value))
        return average(found)

    return of


def after(stage: int, name: str) -> Callable[[Run, str], float]:
    """Of one stage, counted from 1."""

    def of(run: Run, log: str) -> float:
        there = run["results"]["stages"][stage - 1 : stage]
        return number(there[0].get(name)) if there else NAN

    return of


def logged(name: str) -> Callable[[Run, str], float]:
    """Mean over the epochs that have it."""
    return lambda run, log: average([number(row.get(name) or None) for row in csv.DictReader(io.StringIO(log))])


def number(value: Any) -> float:
    """A number that may be text; nan for none."""
    return NAN if value is None else float(value)


def average(values: Iterable[float]) -> float:
    """Mean of what is a number; nan where nothing is."""
    finite = [value for value in values if value == value]
    return mean(finite) if finite else NAN


MEASURES: dict[str, Measure] = {
    "average_incremental": Measure("average incremental accuracy", summary("average_incremental"), less=False),
    "average_incremental_later": Measure("average incremental accuracy after stage 1", summary("average_incremental_later"), less=False),
    "last": Measure("last accuracy", summary("last"), less=False),
    "forgetting": Measure("forgetting", summary("forgetting"), less=True),
    "probe": Measure("feature probe", summary("probe"), less=False),
    "probe_mean": Measure("feature probe, mean over stages", stages("probe"), less=False),
    "drift": Measure("drift of class means", stages("drift", "distance"), scale=1),
    "cka": Measure("likeness to features before (CKA)", stages("drift", "cka"), scale=1),
    "old_to_new": Measure("old taken for new", stages("errors", "old_to_new"), less=True),
    "new_to_old": Measure("new taken for old", stages("errors", "new_to_old"), less=True),
    "old_to_old": Measure("old taken for other old", stages("errors", "old_to_old"), less=True),
    "novelty_reconstruction": Measure(
        "unseen classes told by reconstruction (AUROC)", stages("novelty", "reconstruction", "auroc"), less=False
    ),
    "novelty_energy": Measure("by energy", stages("novelty", "energy", "auroc"), less=False),
    "novelty_softmax": Measure("by softmax", stages("novelty", "softmax", "auroc"), less=False),
    "novelty_mahalanobis": Measure("by Mahalanobis distance", stages("novelty", "mahalanobis", "auroc"), less=False),
    "feature_norm": Measure("feature norm", logged("feature_norm"), scale=1),
    "gradient_ratio": Measure("reconstruction's gradient over classification's", logged("gradient_ratio"), scale=1),
    "gradient_cosine": Measure("cosine of the two gradients", logged("gradient_cosine"), scale=1),
    "seconds": Measure("seconds", cost("seconds"), less=True, scale=1),
    "carried_bytes": Measure("bytes carried", cost("carried_bytes"), less=True, scale=1),
}
"""By name; `measure` knows the probe after each stage too."""
USUAL = ("average_incremental", "last", "forgetting", "probe")
READ = ("average_incremental", "last")
"""Those that another readout than the declared one changes."""


def measure(name: str) -> Measure:
    """A measure by its name; `probe@2` is the probe after stage 2.

    Raises:
        NacreError: there is no such measure.
    """
    kind, _, stage = name.partition("@")
    if kind == "probe" and stage.isdecimal() and int(stage) > 0:
        return Measure(f"feature probe after stage {int(stage)}", after(int(stage), "probe"), less=False)
    return choose("measure", name, MEASURES)


def measured(run: Run, log: str, name: str, readout: str = "") -> float:
    """A number of a run.

    Args:
        run: its metrics.
        log: text of its log.csv.
        name: of the measure.
        readout: whose answers count, such as `nearest_mean`; empty: those the method declares.

    Raises:
        LookupError: the run has no such readout.
    """
    if not readout or name not in READ:
        return measure(name).of(run, log)
    found = [stage["readouts"].get(readout, {}).get("accuracy") for stage in run["results"]["stages"]]
    if None in found:
        raise LookupError(", ".join(run["results"]["stages"][-1]["readouts"]))
    return mean(found) if name == "average_incremental" else float(found[-1])
