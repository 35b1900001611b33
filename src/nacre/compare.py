"""Runs side by side: arms against a baseline, pair by pair."""

from __future__ import annotations

import json
import math
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

from nacre import modelfile
from nacre.errors import NacreError, choose
from nacre.evaluation.measures import USUAL, average, measure, measured
from nacre.evaluation.paired import Difference, difference, holm
from nacre.experiment import CONFIG, METRICS
from nacre.study import Row, Store, Study

SHARED = ("seed", "checkpoint", "hardware", "data", "protocol", "reading", "arrival")
"""Parts of a configuration that tell no group of runs from another: pairs share them, or they change no result on purpose."""
CIRCUMSTANCES = {
    "device": "hardware.device",
    "precision": "hardware.precision",
    "layout": "hardware.layout",
    "processes": "hardware.processes",
    "threads": "hardware.threads",
    "processor": "processor",
    "instructions": "instructions",
    "torch": "versions.torch",
    "nacre": "versions.nacre",
}
"""What a run says of where it was computed, and where in its metrics."""

Groups = dict[tuple[str, str, str], dict[int, tuple[Row, Row]]]
"""By data set, arm and what it is held against: pairs by seed."""


@dataclass(frozen=True)
class Asked:
    """What is compared."""

    measures: tuple[str, ...] = USUAL
    """By the names that `nacre.evaluation.measures.measure` knows."""
    readout: str = ""
    """Whose answers count; empty for those that each method declares."""
    arms: tuple[str, ...] = ()
    """Only these are compared, and Holm's correction counts no others; empty for all."""
    seeds: tuple[int, ...] = ()
    """Only pairs of these seeds count; empty for all."""

    def __post_init__(self) -> None:
        for name in self.measures:
            measure(name)


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
    differing: dict[str, int]
    """In how many pairs the two runs were computed under other circumstances, by circumstance."""
    unrecorded: dict[str, int]
    """In how many pairs a run does not say, by circumstance."""

    def name(self, entry: Entry) -> str:
        """An entry's arm, with the one it is compared with where that is not the baseline."""
        return entry.arm if entry.against == self.baseline else f"{entry.arm} over {entry.against}"


def of_studies(plans: Sequence[tuple[Study, Store]], baseline: str = "", asked: Asked = Asked()) -> Comparison:
    """The finished runs of studies: every arm with what its own study sets it against, all in one table.

    Args:
        plans: each with where its finished runs are. Arms of one name that are set alike are one arm; where they are not, the later
            one is called by its study's name too.
        baseline: an arm of any of them, for all arms of all; by default each study's first, but for arms that it sets against another.
        asked: what is compared.

    Raises:
        NacreError: the baseline or an arm that is asked for is none, no run of a baseline is finished, or runs that should be pairs
            are not.
    """
    for kind, names in (("baseline", [baseline] if baseline else []), ("arm", asked.arms)):
        for name in names:
            choose(kind, name, dict.fromkeys(arm for study, _ in plans for arm in study.arms))
    home = next((plan for plan in plans if baseline in plan[0].arms), None)
    labels: dict[tuple[str, str, str], str] = {}
    groups: Groups = {}
    for study, store in plans:
        against = opponents(list(study.arms), baseline or next(iter(study.arms)), {} if baseline else study.against, asked)
        if not against:
            continue
        ground, finished = home or (study, store)
        found = paired(store.rows(study.trials(list(against))), finished.rows(ground.trials(list(against.values()))), against, asked)
        for (data, arm, other), pairs in found.items():
            theirs, mine = label(labels, ground, data, other), label(labels, study, data, arm)
            group = groups.setdefault((data, mine, theirs), {})
            for seed, (row, its) in pairs.items():
                group.setdefault(seed, (replace(row, arm=mine), replace(its, arm=theirs)))
        for arm, other in against.items():
            if not any(arm == one for _, one, _ in found):
                groups.setdefault(("", arm, other), {})
    title = " and ".join(dict.fromkeys(study.name for study, _ in plans))
    return compared(title, baseline or next(iter(plans[0][0].arms)), groups, asked)


def label(labels: dict[tuple[str, str, str], str], study: Study, data: str, arm: str) -> str:
    """What an arm of one of several studies is called: as its study does, unless an arm that is set otherwise has that name.

    Args:
        labels: by data set, arm and configuration; takes new ones.
        study: whose arm it is.
        data: set, of which the configuration tells.
        arm: as its study calls it.
    """
    place = data, arm, study.trial(arm, data, 0).key
    if place not in labels:
        taken = {name for (where, *_), name in labels.items() if where == data}
        names = chain([arm, f"{arm} ({study.name})"], (f"{arm} ({study.name}, {number})" for number in count(2)))
        labels[place] = next(name for name in names if name not in taken)
    return labels[place]


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
    for name in asked.arms:
        choose("arm", name, dict.fromkeys(arms))
    title = " and ".join(dict.fromkeys(str(row.metrics["data"]) for row in rows))
    against = opponents(arms, baseline, {}, asked)
    nothing: Groups = {("", arm, baseline): {} for arm in against}
    found_pairs = paired(rows, rows, against, asked)
    return compared(title, baseline, nothing | found_pairs, asked)


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
        config["method"] = modelfile.current(config.get("method", {}))
        row, complete = Row(str(metrics["method"]), "", int(metrics["seed"]), str(folder), metrics, "", config), metrics["complete"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise NacreError(f"{folder} holds no run that can be read: give the folders that `nacre run` filled, or studies' files.") from None
    if not complete:
        raise NacreError(f"the run in {folder} is not finished: go on with `nacre run --resume {folder}`, or leave it out.")
    return row


def opponents(arms: Sequence[str], baseline: str, own: Mapping[str, str], asked: Asked) -> dict[str, str]:
    """What every arm that is compared is held against.

    Args:
        arms: all of them, in order.
        baseline: of every arm that has none of its own.
        own: baselines of some arms; arms that only serve as such are not compared themselves unless they are asked for.
        asked: which arms.
    """
    serving = {baseline, *own.values()} - own.keys()
    some = [arm for arm in arms if (arm in asked.arms and arm != baseline if asked.arms else arm not in serving)]
    return {arm: own.get(arm, baseline) for arm in some}


def paired(rows: Sequence[Row], grounds: Sequence[Row], against: Mapping[str, str], asked: Asked) -> Groups:
    """Pair rows with those that they are held against, by data set and seed.

    Raises:
        NacreError: none of them has a run, there are two for one place, or runs that should be pairs are not.
    """
    mine = placed(row for row in rows if row.arm in against and (not asked.seeds or row.seed in asked.seeds))
    theirs = placed(row for row in grounds if row.arm in against.values())
    if not theirs:
        names = " or ".join(dict.fromkeys(against.values()))
        raise NacreError(f"no run of the baseline {names} is finished: compute one, or name another with --baseline.")
    groups: Groups = {}
    for (arm, data, seed), row in mine.items():
        other = theirs.get((against[arm], data, seed))
        if other is not None:
            check(row, other)
            groups.setdefault((data, arm, against[arm]), {})[seed] = (row, other)
    return groups


def placed(rows: Iterable[Row]) -> dict[tuple[str, str, int], Row]:
    """Rows by arm, data set and seed.

    Raises:
        NacreError: two have the same.
    """
    found: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        if found.setdefault((row.arm, row.data, row.seed), row) is not row:
            alike = found[row.arm, row.data, row.seed]
            apart = [key for key in ("data", "protocol") if row.metrics.get(key) != alike.metrics.get(key)]
            why = f"; their {' and '.join(apart)} differ, which makes a comparison of its own" if apart else ""
            where = " and ".join(filter(None, (alike.key, row.key)))
            raise NacreError(f"two runs of {row.arm} have the same seed {row.seed} ({where}): give one of each{why}.")
    return found


def compared(title: str, baseline: str, groups: Groups, asked: Asked) -> Comparison:
    """Measure pairs; groups without any are arms that are left out."""
    entries = [entry(data, list(pairs.values()), asked) for (data, _, _), pairs in groups.items() if pairs]
    left_out = dict.fromkeys(arm for (_, arm, _), pairs in groups.items() if not pairs and not any(one.arm == arm for one in entries))
    told = [each for pairs in groups.values() for pair in pairs.values() for each in circumstances(*pair)]
    differing = Counter(what for what, mine, theirs in told if mine and theirs and mine != theirs)
    unrecorded = Counter(what for what, mine, theirs in told if not (mine and theirs))
    return Comparison(title, baseline, asked, tuple(corrected(entries)), tuple(left_out), dict(differing), dict(unrecorded))


def check(row: Row, other: Row) -> None:
    """See to it that two runs may be paired.

    Raises:
        NacreError: says what differs.
    """
    digests = [each.metrics.get("data_digest") for each in (row, other)]
    paths = [each.metrics.get("data") for each in (row, other)]
    found = [("data", *paths)] if None in digests else []  # the same images may lie elsewhere
    if None not in digests and digests[0] != digests[1]:
        found = [("images", *(f"{digest} in {path}" for digest, path in zip(digests, paths, strict=True)))]
    same = {"protocol": "protocol", "classes": "order of classes", "test_images": "test images"}
    found += [(what, row.metrics.get(key), other.metrics.get(key)) for key, what in same.items()]
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


def circumstances(row: Row, other: Row) -> list[tuple[str, Any, Any]]:
    """What the two runs of a pair say of how they were computed, which changes results beside the method; None where one is silent."""
    mine, theirs = (dict(leaves(each.metrics.get("machine") or {})) for each in (row, other))
    return [(what, mine.get(name), theirs.get(name)) for what, name in CIRCUMSTANCES.items()]


def short(value: Any) -> str:
    """A value in a line."""
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."


def entry(data: str, pairs: Sequence[tuple[Row, Row]], asked: Asked) -> Entry:
    """One arm's differences, before the correction."""
    pairs = sorted(pairs, key=lambda pair: pair[0].seed)
    numbers = {
        name: [(measured_of(a, name, asked.readout), measured_of(b, name, asked.readout)) for a, b in pairs] for name in asked.measures
    }
    values = {name: tuple(a - b for a, b in both) for name, both in numbers.items()}
    whole = {name: [both for both in each if not math.isnan(sum(both))] for name, each in numbers.items()}
    means = {name: levels(whole[name] or each) for name, each in numbers.items()}
    nothing = Difference(0, math.nan, math.nan, math.nan, math.nan)
    gaps = {name: difference([a - b for a, b in each]) if each else nothing for name, each in whole.items()}
    (row, other), *_ = pairs
    return Entry(row.arm, other.arm, data, tuple(a.seed for a, _ in pairs), means, values, gaps)


def levels(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Means of both sides, each of what it has."""
    mine, theirs = zip(*pairs, strict=True)
    return average(mine), average(theirs)


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
