"""Runs side by side: arms against a baseline, pair by pair."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from markupsafe import Markup

from nacre import __version__
from nacre.errors import NacreError, nearest
from nacre.evaluation import plots
from nacre.evaluation.paired import Difference, difference, holm
from nacre.evaluation.report import pages, percent, points
from nacre.experiment import METRICS
from nacre.study import Row, Store, Study

MEASURES = {
    "average_incremental": "average incremental",
    "last": "last",
    "forgetting": "forgetting",
    "probe": "probe",
}
"""What is compared, and how it is called; shares in [0, 1]. Of forgetting, less is better."""
READ = ("average_incremental", "last")
"""Those that another readout changes."""


@dataclass(frozen=True)
class Entry:
    """One arm against the baseline."""

    arm: str
    data: str
    seeds: tuple[int, ...]
    """Of the pairs."""
    means: dict[str, tuple[float, float]]
    """By measure: of the arm and of the baseline over these seeds."""
    values: dict[str, tuple[float, ...]]
    """By measure: arm minus baseline, seed by seed."""
    differences: dict[str, Difference]


@dataclass(frozen=True)
class Comparison:
    """All arms against one."""

    title: str
    baseline: str
    readout: str
    """Whose answers count; empty for the one that each method declares."""
    entries: tuple[Entry, ...]
    left_out: tuple[str, ...]
    """Arms without a pair."""


def of_study(study: Study, store: Store, baseline: str = "", readout: str = "") -> Comparison:
    """A study's finished runs.

    Args:
        study: whose arms they are.
        store: of finished runs.
        baseline: an arm; by default the first.
        readout: whose answers count, such as `nearest_mean`.

    Raises:
        NacreError: the baseline is no arm, or runs that should be pairs are not.
    """
    baseline = baseline or next(iter(study.arms))
    if baseline not in study.arms:
        raise NacreError(f"unknown arm {baseline!r}: the study has {', '.join(study.arms)}.{nearest(baseline, study.arms)}")
    return compared(study.name, list(study.arms), store.rows(study.trials()), baseline, readout)


def of_folders(folders: Sequence[Path], baseline: str = "", readout: str = "") -> Comparison:
    """Runs in their folders, grouped by method; the first one's is the baseline unless another is named.

    Raises:
        NacreError: a folder holds no run, there is one method alone, or runs that should be pairs are not.
    """
    rows = [row_of(folder) for folder in folders]
    arms = list(dict.fromkeys(row.arm for row in rows))
    baseline = baseline or arms[0]
    if baseline not in arms or len(arms) < 2:
        raise NacreError(f"found runs of {', '.join(arms)}: give runs of two methods or more, and as --baseline one of them.")
    return compared(" and ".join(dict.fromkeys(str(row.metrics["data"]) for row in rows)), arms, rows, baseline, readout)


def row_of(folder: Path) -> Row:
    """The run in a folder.

    Raises:
        NacreError: there is none.
    """
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        return Row(str(metrics["method"]), "", int(metrics["seed"]), str(folder), metrics, "")
    except (OSError, ValueError, KeyError, TypeError):
        raise NacreError(
            f"{folder} holds no run that can be read: give the folders that `nacre run` filled, or one study's file."
        ) from None


def compared(title: str, arms: Sequence[str], rows: Sequence[Row], baseline: str, readout: str) -> Comparison:
    """Pair rows with the baseline's by data set and seed."""
    ground = {(row.data, row.seed): row for row in rows if row.arm == baseline}
    if not ground:
        raise NacreError(f"no run of the baseline {baseline} is finished: compute one, or name another with --baseline.")
    pairs: dict[tuple[str, str], list[tuple[Row, Row]]] = {}
    for row in rows:
        if row.arm != baseline and (row.data, row.seed) in ground:
            pairs.setdefault((row.data, row.arm), []).append((row, ground[row.data, row.seed]))
    for both in pairs.values():
        twice = [row.seed for row, _ in both]
        if len(set(twice)) < len(twice):
            raise NacreError(f"two runs of {both[0][0].arm} have the same seed {max(twice, key=twice.count)}: give one of each.")
        for row, other in both:
            check(row, other)
    entries = [entry(arm, data, both, readout) for (data, arm), both in pairs.items()]
    left_out = tuple(arm for arm in arms if arm != baseline and not any(found.arm == arm for found in entries))
    return Comparison(title, baseline, readout, tuple(corrected(entries)), left_out)


def check(row: Row, other: Row) -> None:
    """See to it that two runs may be paired.

    Raises:
        NacreError: says what differs.
    """
    for key, what in (("data", "data"), ("protocol", "protocol"), ("classes", "order of classes"), ("test_images", "test images")):
        mine, theirs = (found.metrics.get(key) for found in (row, other))
        if mine != theirs:
            raise NacreError(
                f"{row.arm} and {other.arm} with seed {row.seed} are no pair, their {what} differ: {short(mine)} and {short(theirs)}. "
                "Compare runs that share all but the method."
            )


def short(value: Any) -> str:
    """A value in a line."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def entry(arm: str, data: str, pairs: Sequence[tuple[Row, Row]], readout: str) -> Entry:
    """One arm's differences, before the correction."""
    pairs = sorted(pairs, key=lambda pair: pair[0].seed)
    numbers = {name: [(measured(a, name, readout), measured(b, name, readout)) for a, b in pairs] for name in MEASURES}
    values = {name: tuple(a - b for a, b in both) for name, both in numbers.items()}
    means = {name: (mean(a for a, _ in both), mean(b for _, b in both)) for name, both in numbers.items()}
    return Entry(arm, data, tuple(a.seed for a, _ in pairs), means, values, {name: difference(each) for name, each in values.items()})


def measured(row: Row, name: str, readout: str) -> float:
    """A number of a run, by the readout that is asked.

    Raises:
        NacreError: the run has no such readout.
    """
    if not readout or name not in READ:
        return row.number(name)
    stages: Sequence[Mapping[str, Any]] = row.metrics["results"]["stages"]
    found = [stage["readouts"].get(readout, {}).get("accuracy") for stage in stages]
    if None in found:
        raise NacreError(f"{row.arm}, seed {row.seed}, has no readout {readout!r}: it has {', '.join(stages[-1]['readouts'])}.")
    return mean(found) if name == "average_incremental" else float(found[-1])


def corrected(entries: Sequence[Entry]) -> list[Entry]:
    """With Holm's correction over the arms of each data set, for each measure."""
    found = list(entries)
    for data in dict.fromkeys(one.data for one in entries):
        places = [index for index, one in enumerate(found) if one.data == data]
        for name in MEASURES:
            adjusted = holm([found[index].differences[name].p for index in places])
            for index, p in zip(places, adjusted, strict=True):
                old = found[index].differences
                found[index] = replace(found[index], differences={**old, name: replace(old[name], adjusted=p)})
    return found


def interval(found: Difference) -> str:
    """A difference of shares in points, with its 95 % interval where it has one."""
    middle = points(found.mean)
    return middle if found.n == 1 else f"{middle} [{points(found.low)}, {points(found.high)}]"


def chance(found: Difference) -> str:
    """The corrected p; a dash for a single pair."""
    if found.n == 1:
        return "–"  # noqa: RUF001 - a typographic dash
    return "1" if found.adjusted == 1 else f"{found.adjusted:.{2 if found.adjusted >= 0.1 else 3}f}".lstrip("0")


def markdown(found: Comparison) -> str:
    """The table as it stands in a page."""
    several = len({one.data for one in found.entries}) > 1
    heads = ["arm", *(["data"] if several else []), "pairs"]
    heads += [text for name in MEASURES.values() for text in (f"{name}, %", "difference, points", "p")]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for one in found.entries:
        cells = [f"`{one.arm}`", *([one.data] if several else []), str(len(one.seeds))]
        for name in MEASURES:
            cells += [f"{100 * one.means[name][0]:.1f}", interval(one.differences[name]), chance(one.differences[name])]
        lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(found: Comparison) -> str:
    """The report: HTML that needs no other file; everything from outside is escaped."""
    groups = []
    for data in dict.fromkeys(one.data for one in found.entries):
        entries = [one for one in found.entries if one.data == data]
        groups.append(
            {
                "data": data,
                "pictures": [picture(entries, found, name, data) for name in MEASURES],
                "rows": [{"arm": one.arm, "n": len(one.seeds), "cells": cells(one)} for one in entries],
                "pairs": [
                    {"arm": one.arm, "seed": seed, "differences": [one.values[name][place] for name in MEASURES]}
                    for one in entries
                    for place, seed in enumerate(one.seeds)
                ],
            }
        )
    return (
        pages()
        .get_template("comparison.html.j2")
        .render(
            title=found.title,
            baseline=found.baseline,
            readout=f"answers of {found.readout.replace('_', ' ')}" if found.readout else "each method's declared readout",
            date=time.strftime("%Y-%m-%d %H:%M"),
            version=__version__,
            measures=list(MEASURES.values()),
            groups=groups,
            left_out=found.left_out,
        )
    )


def picture(entries: Sequence[Entry], found: Comparison, name: str, data: str) -> dict[str, Any]:
    """The forest plot of one measure."""
    less = name == "forgetting"
    rows = [(one.arm, one.differences[name].mean, one.differences[name].low, one.differences[name].high) for one in entries]
    side = "Left" if less else "Right"
    return {
        "heading": {"probe": "Feature probe", "last": "Last accuracy", "forgetting": "Forgetting"}.get(
            name, "Average incremental accuracy"
        ),
        "note": f"{side} of the line is better than {found.baseline}. Bars are 95 % intervals; grey ones reach across zero, "
        "a diamond is a single pair.",
        "svg": Markup(plots.forest(rows, f"forest-{name}-{data}".replace(" ", "-"), "difference, points", less)),
    }


def cells(one: Entry) -> list[dict[str, str]]:
    """What the table says of each measure."""
    return [
        {"mean": percent(one.means[name][0]), "difference": interval(one.differences[name]), "p": chance(one.differences[name])}
        for name in MEASURES
    ]


def plain(found: Comparison) -> dict[str, Any]:
    """The same as JSON; shares in [0, 1]."""
    return {
        "title": found.title,
        "baseline": found.baseline,
        "readout": found.readout,
        "left_out": list(found.left_out),
        "arms": [
            {
                "arm": one.arm,
                "data": one.data,
                "seeds": list(one.seeds),
                "measures": {
                    name: {"mean": one.means[name][0], "baseline": one.means[name][1], "values": list(one.values[name]), **asdict(gap)}
                    for name, gap in ((name, one.differences[name]) for name in MEASURES)
                },
            }
            for one in found.entries
        ],
    }
