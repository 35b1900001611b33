"""Runs side by side: arms against a baseline, pair by pair."""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from nacre.errors import NacreError, choose
from nacre.evaluation.measures import MEASURES, USUAL, measured
from nacre.evaluation.paired import Difference, difference, holm
from nacre.experiment import CONFIG, METRICS
from nacre.study import Row, Store, Study

SHARED = ("seed", "checkpoint", "hardware", "data", "protocol", "reading", "arrival")
"""Parts of a configuration that tell no group of runs from another: pairs share them, or they change no result on purpose."""
CIRCUMSTANCES = {
    "precision": "hardware.precision",
    "processes": "hardware.processes",
    "processor": "processor",
    "torch": "versions.torch",
    "nacre": "versions.nacre",
}
"""What a run says of where it was computed, and where in its metrics."""


@dataclass(frozen=True)
class Asked:
    """What is compared."""

    measures: tuple[str, ...] = USUAL
    """Of `nacre.evaluation.measures.MEASURES`."""
    readout: str = ""
    """Whose answers count; empty for those that each method declares."""
    arms: tuple[str, ...] = ()
    """Only these are compared, and Holm's correction counts no others; empty for all."""
    seeds: tuple[int, ...] = ()
    """Only pairs of these seeds count; empty for all."""

    def __post_init__(self) -> None:
        for name in self.measures:
            choose("measure", name, MEASURES)


@dataclass(frozen=True)
class Entry:
    """One arm against the baseline."""

    arm: str
    against: str
    """The arm that it is compared with."""
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
    """Of every arm that has none of its own."""
    asked: Asked
    entries: tuple[Entry, ...]
    left_out: tuple[str, ...]
    """Arms without a pair."""
    unlike: dict[str, int]
    """In how many pairs the two runs were computed under other circumstances, by circumstance."""

    def name(self, entry: Entry) -> str:
        """An entry's arm, with the one it is compared with where that is not the baseline."""
        return entry.arm if entry.against == self.baseline else f"{entry.arm} over {entry.against}"


def of_studies(plans: Sequence[tuple[Study, Store]], baseline: str = "", asked: Asked = Asked()) -> Comparison:
    """The finished runs of studies, as if they were one study's.

    Args:
        plans: each with where its finished runs are. Arms of one name that are not set alike are told apart by their study's name.
        baseline: an arm, for all; by default the first, but for arms that a study sets against another one.
        asked: what is compared.

    Raises:
        NacreError: the baseline or an arm that is asked for is none, or runs that should be pairs are not.
    """
    rows: dict[tuple[str, str, int], Row] = {}
    keys: dict[str, str] = {}
    own: dict[str, str] = {}
    for study, store in plans:
        trials = study.trials()
        named: dict[str, str] = {}
        for trial in study.among(data=list(study.data)[:1]).trials(seeds=[0]):
            alike = keys.setdefault(trial.arm, trial.key) == trial.key
            named[trial.arm] = trial.arm if alike else f"{trial.arm} ({study.name})"
            keys[named[trial.arm]] = trial.key
        own |= {named[arm]: named[other] for arm, other in study.against.items()}
        for row in store.rows(trials):
            rows.setdefault((named[row.arm], row.data, row.seed), replace(row, arm=named[row.arm]))
    if baseline:
        choose("baseline", baseline, keys)
    title = " and ".join(dict.fromkeys(study.name for study, _ in plans))
    return compared(title, list(keys), list(rows.values()), baseline or next(iter(keys)), asked, {} if baseline else own)


def of_folders(folders: Sequence[Path], baseline: str = "", asked: Asked = Asked()) -> Comparison:
    """Runs in their folders, grouped by method and settings; the first one's group is the baseline unless another is named.

    Raises:
        NacreError: a folder holds no run, there is one group alone, or runs that should be pairs are not.
    """
    rows = told_apart([row_of(folder) for folder in folders])
    arms = list(dict.fromkeys(row.arm for row in rows))
    baseline = baseline or arms[0]
    if baseline not in arms or len(arms) < 2:
        found = ", ".join(map(repr, arms))
        raise NacreError(f"found runs of {found}: give runs of two methods, or of one with two settings, and as --baseline one of them.")
    return compared(" and ".join(dict.fromkeys(str(row.metrics["data"]) for row in rows)), arms, rows, baseline, asked)


def told_apart(rows: Sequence[Row]) -> list[Row]:
    """The same, where a method comes with several settings named by it and by those that are not the same in all its runs."""
    settings = [dict(leaves({key: part for key, part in row.config.items() if key not in SHARED})) for row in rows]
    found = []
    for row, mine in zip(rows, settings, strict=True):
        alike = [other for each, other in zip(rows, settings, strict=True) if each.arm == row.arm]
        apart = [key for key in dict.fromkeys(key for other in alike for key in other) if len({str(other.get(key)) for other in alike}) > 1]
        said = [f"{key.removeprefix('method.')}={mine.get(key, 'none')}" for key in apart]
        found.append(replace(row, arm=" ".join([row.arm, *said])))
    return found


def leaves(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by their names with dots."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def row_of(folder: Path) -> Row:
    """The run in a folder.

    Raises:
        NacreError: there is none, or it did not come to its end.
    """
    try:
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        config = tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))
        row, complete = Row(str(metrics["method"]), "", int(metrics["seed"]), str(folder), metrics, "", config), metrics["complete"]
    except (OSError, ValueError, KeyError, TypeError):
        raise NacreError(
            f"{folder} holds no run that can be read: give the folders that `nacre run` filled, or one study's file."
        ) from None
    if not complete:
        raise NacreError(f"the run in {folder} is not finished: go on with `nacre run --resume {folder}`, or leave it out.")
    return row


def compared(
    title: str, arms: Sequence[str], rows: Sequence[Row], baseline: str, asked: Asked, own: Mapping[str, str] | None = None
) -> Comparison:
    """Pair rows with their baseline's by data set and seed.

    Args:
        title: of the comparison.
        arms: all of them, in order.
        rows: their runs.
        baseline: of every arm that has none of its own.
        asked: what is compared.
        own: baselines of some arms; arms that only serve as such are not compared themselves unless they are asked for.

    Raises:
        NacreError: an arm that is asked for is none, no baseline has a run, or runs that should be pairs are not.
    """
    for name in asked.arms:
        choose("arm", name, dict.fromkeys(arms))
    own = own or {}
    grounds = {baseline, *own.values()}
    wanted = [arm for arm in asked.arms if arm != baseline] if asked.arms else [arm for arm in arms if arm not in grounds - own.keys()]
    ground = {(row.arm, row.data, row.seed): row for row in rows if row.arm in grounds}
    if not ground:
        raise NacreError(f"no run of the baseline {baseline} is finished: compute one, or name another with --baseline.")
    pairs: dict[tuple[str, str], list[tuple[Row, Row]]] = {}
    for row in rows:
        other = ground.get((own.get(row.arm, baseline), row.data, row.seed))
        if other is not None and row.arm in wanted and (not asked.seeds or row.seed in asked.seeds):
            pairs.setdefault((row.data, row.arm), []).append((row, other))
    for both in pairs.values():
        twice = [row.seed for row, _ in both]
        if len(set(twice)) < len(twice):
            raise NacreError(f"two runs of {both[0][0].arm} have the same seed {max(twice, key=twice.count)}: give one of each.")
        for row, other in both:
            check(row, other)
    entries = [entry(arm, data, both, asked) for (data, arm), both in pairs.items()]
    left_out = tuple(arm for arm in wanted if not any(found.arm == arm for found in entries))
    unlike = Counter(what for both in pairs.values() for pair in both for what in circumstances(*pair))
    return Comparison(title, baseline, asked, tuple(corrected(entries)), left_out, dict(unlike))


def check(row: Row, other: Row) -> None:
    """See to it that two runs may be paired.

    Raises:
        NacreError: says what differs.
    """
    data = "images" if all(each.metrics.get("images") for each in (row, other)) else "data"  # the same images may lie elsewhere
    same = {data: data, "protocol": "protocol", "classes": "order of classes", "test_images": "test images"}
    found = [(what, row.metrics.get(key), other.metrics.get(key)) for key, what in same.items()]
    for key in ("reading", "arrival"):
        mine, theirs = (each.config.get(key, {}) for each in (row, other))
        both = [name for name in mine if name in theirs]  # a setting may be younger than a run
        found += [(f"{key}.{name}", mine[name], theirs[name]) for name in both]
    for what, one, two in found:
        if one != two:
            raise NacreError(
                f"{row.arm} and {other.arm} with seed {row.seed} are no pair, their {what} differ: {short(one)} and {short(two)}. "
                "Compare runs that share all but the method."
            )


def circumstances(row: Row, other: Row) -> list[str]:
    """In what the two runs of a pair were computed differently, as far as both say: that changes results beside the method."""
    mine, theirs = (dict(leaves(each.metrics.get("machine", {}))) for each in (row, other))
    return [what for what, name in CIRCUMSTANCES.items() if name in mine and name in theirs and mine[name] != theirs[name]]


def short(value: Any) -> str:
    """A value in a line."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def entry(arm: str, data: str, pairs: Sequence[tuple[Row, Row]], asked: Asked) -> Entry:
    """One arm's differences, before the correction."""
    pairs = sorted(pairs, key=lambda pair: pair[0].seed)
    numbers = {name: [tuple(measured_of(row, name, asked.readout) for row in pair) for pair in pairs] for name in asked.measures}
    values = {name: tuple(a - b for a, b in both) for name, both in numbers.items()}
    means = {name: (mean(a for a, _ in both), mean(b for _, b in both)) for name, both in numbers.items()}
    finite = {name: [value for value in each if value == value] for name, each in values.items()}
    gaps = {name: difference(each) if each else Difference(0, math.nan, math.nan, math.nan, math.nan) for name, each in finite.items()}
    return Entry(arm, pairs[0][1].arm, data, tuple(a.seed for a, _ in pairs), means, values, gaps)


def measured_of(row: Row, name: str, readout: str) -> float:
    """A number of a run, by the readout that is asked.

    Raises:
        NacreError: the run has no such readout.
    """
    try:
        return measured(row.metrics, row.log, name, readout)
    except LookupError as there:
        raise NacreError(f"{row.arm}, seed {row.seed}, has no readout {readout!r}: it has {there.args[0]}.") from None


def corrected(entries: Sequence[Entry]) -> list[Entry]:
    """With Holm's correction over the arms of each data set, for each measure."""
    found = list(entries)
    for data in dict.fromkeys(one.data for one in entries):
        places = [index for index, one in enumerate(found) if one.data == data]
        for name in found[places[0]].differences:
            adjusted = holm([found[index].differences[name].p for index in places])
            for index, p in zip(places, adjusted, strict=True):
                old = found[index].differences
                found[index] = replace(found[index], differences={**old, name: replace(old[name], adjusted=p)})
    return found
