"""Studies: many runs that differ in stated ways, in parallel processes, each stored when it is done and never computed twice."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import time
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from nacre import files, settings
from nacre.errors import NacreError, choose, nearest
from nacre.experiment import LOG, METRICS, Experiment, read_toml
from nacre.modelfile import method_settings

FORMAT = 1
"""Of a study's file."""
KEYS = ("name", "about", "seeds", "epochs", "store", "base", "data", "arms")
"""What a study may say."""
BESIDE = ("published", "against")
"""What an arm may say beside its settings."""
NUMBERS = ("average_incremental", "last", "forgetting", "probe", "seconds", "carried_bytes")
"""What a table shows of every arm; accuracies in [0, 1]."""


@dataclass(frozen=True)
class Trial:
    """One run of a study."""

    arm: str
    data: str
    seed: int
    experiment: Experiment
    config: str
    """TOML, with paths as the study writes them."""
    key: str
    """The same for the same complete configuration, whatever the study is called."""


@dataclass(frozen=True)
class Row:
    """A finished run as it is stored."""

    arm: str
    data: str
    seed: int
    key: str
    metrics: dict[str, Any]
    """What the run's metrics.json held."""
    log: str
    """What its log.csv held."""
    config: dict[str, Any] = field(default_factory=dict)
    """What its config.toml held."""

    def number(self, name: str) -> float:
        """One number of the run's summary or costs, such as `last` or `seconds`; nan where it has none.

        Raises:
            KeyError: there is no such number.
        """
        summary, cost = self.metrics["results"]["summary"], self.metrics["cost"]
        value = summary[name] if name in summary else cost[name]
        return float("nan") if value is None else float(value)


@dataclass(frozen=True)
class Study:
    """Arms x data x seeds over a common base."""

    name: str
    about: str
    seeds: tuple[int, ...]
    arms: dict[str, dict[str, Any]]
    data: dict[str, dict[str, Any]]
    base: dict[str, Any]
    store: Path
    epochs: int | None = None
    published: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By arm: `average` and `last` in percent, as far as they are known, and `source`; the source alone says that none is."""
    against: dict[str, str] = field(default_factory=dict)
    """By arm: the arm it is compared with, where that is not the comparison's baseline."""

    @classmethod
    def load(cls, path: Path) -> Study:
        """Read a study's TOML file: `seeds`, `epochs`, `store`, `[base]`, `[arms.NAME]`, `[data.NAME]`, each a recipe's settings.

        An arm may hold `published` with `average`, `last` or both (percent) and their `source`, or words in their place, such as "none
        known"; and `against`, the arm that it is compared with.

        Raises:
            NacreError: the file is not there, no TOML, or says what no study says.
        """
        table = read_toml(path)
        unknown = [key for key in table if key not in KEYS]
        if unknown or not table.get("arms"):
            found = f"unknown {', '.join(unknown)}" if unknown else "no [arms.NAME]"
            raise NacreError(f"{path} is no study ({found}): it takes {', '.join(KEYS)}, and at least one arm.")
        seeds = table.get("seeds", 3)
        seeds = list(range(seeds)) if isinstance(seeds, int) else seeds
        if not isinstance(seeds, list) or not seeds or not all(isinstance(seed, int) and seed >= 0 for seed in seeds):
            raise NacreError(f"{path}: seeds is {table['seeds']!r}, but it must be a number of seeds or a list of them, 0 or more each.")
        for kind in ("arms", "data"):
            tables = table.get(kind) or {}
            if not isinstance(tables, dict):
                raise NacreError(
                    f"{path}: {kind} is {tables!r}, but it must be tables, [{kind}.NAME]; what all arms share goes into [base]."
                )
            wrong = [name for name, value in tables.items() if not isinstance(value, dict)]
            if wrong:
                raise NacreError(f"{path}: {kind}.{wrong[0]} must be a table of settings.")
        arms = {name: {key: value for key, value in arm.items() if key not in BESIDE} for name, arm in table["arms"].items()}
        against = {name: arm["against"] for name, arm in table["arms"].items() if "against" in arm}
        for name, other in against.items():
            if other not in arms or other == name:
                raise NacreError(f"{path}: arm {name} is against {other!r}, but it must be another arm.{nearest(str(other), arms)}")
        return cls(
            name=str(table.get("name", path.stem)),
            about=str(table.get("about", "")),
            seeds=tuple(seeds),
            arms=arms,
            data=table.get("data") or {"": {}},
            base=table.get("base", {}),
            store=Path(table.get("store", path.with_suffix(".sqlite"))),
            epochs=table.get("epochs"),
            published={name: published(path, name, arm["published"]) for name, arm in table["arms"].items() if "published" in arm},
            against=against,
        )

    def among(self, arms: Sequence[str] = (), data: Sequence[str] = ()) -> Study:
        """The study of some of its arms on some of its data sets; of all where none is named.

        Raises:
            NacreError: an arm or a data set is unknown.
        """
        some = {name: choose("arm", name, self.arms) for name in arms or self.arms}
        published = {arm: given for arm, given in self.published.items() if arm in some}
        if data and not any(self.data):
            raise NacreError(f"{self.name} has no [data.NAME], so --data names nothing in it: leave --data out.")
        sets = {name: choose("data", name, self.data) for name in data or self.data}
        return replace(self, arms=some, published=published, data=sets)

    def trials(self, arms: Sequence[str] = (), seeds: Sequence[int] = ()) -> list[Trial]:
        """All runs, seed by seed, so that every arm has its first run early; or those of some arms and seeds.

        Raises:
            NacreError: an arm is unknown, or a setting does not fit; names the arm.
        """
        places = [(seed, data, arm) for seed in seeds or self.seeds for data in self.data for arm in self.among(arms).arms]
        return [self.trial(arm, data, seed) for seed, data, arm in places]

    def trial(self, arm: str, data: str, seed: int) -> Trial:
        """One run."""
        table = overlaid(overlaid(overlaid(self.base, self.data[data]), self.arms[arm]), {"seed": seed})
        try:
            experiment = Experiment.of(table)
            # epochs that the arm names itself win over those of the study
            experiment = experiment if self.epochs is None or named(self.arms[arm]) else experiment.lasting(self.epochs)
        except NacreError as error:
            raise NacreError(f"arm {arm}: {error}") from None
        written = replace(experiment, data=table.get("data", experiment.data))
        return Trial(arm, data, seed, experiment, written.toml(), key_of(written))


def published(path: Path, arm: str, given: Any) -> dict[str, Any]:
    """What an arm says of numbers that others published: a table, or words where there are none."""
    found = {"source": given} if isinstance(given, str) else given
    numbers = {key: value for key, value in found.items() if key != "source"} if isinstance(found, dict) else {"": None}
    fits = all(key in ("average", "last") and isinstance(value, int | float) and 0 < value < 100 for key, value in numbers.items())
    if not fits or not isinstance(found.get("source", ""), str):
        wanted = "average, last or both, in percent, and their source, or words such as 'none known'"
        raise NacreError(f"{path}: arm {arm} has published = {given!r}, but it must be {wanted}.")
    return {"source": "not named", **found}


def named(arm: Mapping[str, Any]) -> bool:
    """Whether an arm says how long its stages last."""
    return "epochs" in arm.get("method", {}).get("optim", {})


def overlaid(table: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with others over them."""
    both = dict(table)
    for key, value in more.items():
        under = both.get(key)
        both[key] = overlaid(under, value) if isinstance(value, Mapping) and isinstance(under, Mapping) else value
    return both


def key_of(experiment: Experiment) -> str:
    """A digest of the complete configuration, but for what cannot change a result."""
    table = {**settings.plain(experiment), "method": method_settings(experiment.method)}
    del table["checkpoint"]
    return hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()[:24]


class Store:
    """Finished runs in one SQLite file.

    Args:
        path: of the file, made where it is missing.

    Raises:
        NacreError: it is no file of a study, or of a newer nacre.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.base = sqlite3.connect(path)
            (found,) = self.base.execute("pragma user_version").fetchone()
            if found > FORMAT:
                raise NacreError(f"{path} has format {found}, this nacre reads up to {FORMAT}: install a newer nacre.")
            columns = "key text primary key, config text, metrics text, log text, finished text"
            if found == 0:
                self.base.execute(f"create table if not exists runs ({columns}) strict")
                self.base.execute(f"pragma user_version = {FORMAT}")
                self.base.commit()
        except sqlite3.DatabaseError as error:
            raise NacreError(f"{path} is no file of a study ({error}): name another with --store.") from None

    def keys(self) -> set[str]:
        """Of all finished runs."""
        return {key for (key,) in self.base.execute("select key from runs")}

    def holds(self, key: str) -> bool:
        """Whether a run is finished, by whomever."""
        return self.base.execute("select 1 from runs where key = ?", (key,)).fetchone() is not None

    def set_aside(self, key: str) -> bool:
        """Keep a run in the file under a key that no study asks for, so that it is computed anew; whether it was there."""
        now = datetime.now(UTC).isoformat()
        with self.base:
            return self.base.execute("update runs set key = ? where key = ?", (f"{key} until {now}", key)).rowcount > 0

    def all(self) -> list[dict[str, Any]]:
        """What the metrics.json of every run held, whatever study it belongs to, but for those that were set aside."""
        return [json.loads(metrics) for (metrics,) in self.base.execute("select metrics from runs where key not like '% until %'")]

    def add(self, trial: Trial, folder: Path) -> None:
        """Store what a finished run left in its folder; lasting when this returns."""
        metrics = json.loads((folder / METRICS).read_text(encoding="utf-8"))
        metrics["data"] = tomllib.loads(trial.config)["data"]
        metrics["name"] = f"{metrics['data']} {metrics['protocol']}"
        metrics["results"]["stages"] = [
            {name: value for name, value in stage.items() if name != "confusion"} for stage in metrics["results"]["stages"]
        ]
        log = (folder / LOG).read_text(encoding="utf-8")
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        with self.base:
            self.base.execute(
                "insert or replace into runs values (?, ?, ?, ?, ?)", (trial.key, trial.config, files.as_json(metrics), log, now)
            )

    def rows(self, trials: Iterable[Trial]) -> list[Row]:
        """Those of the trials that are finished."""
        found = {key: rest for key, *rest in self.base.execute("select key, metrics, log, config from runs")}
        rows = []
        for trial in trials:
            if trial.key in found:
                metrics, log, config = found[trial.key]
                rows.append(Row(trial.arm, trial.data, trial.seed, trial.key, json.loads(metrics), log, tomllib.loads(config)))
        return rows


def stored(path: Path, trials: Iterable[Trial]) -> list[Row]:
    """Those of the trials that a file holds; none where there is no file."""
    return Store(path).rows(trials) if path.exists() else []


def table(study: Study, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What the finished runs say, an entry per arm and data set that has any, or of which something was published.

    Returns:
        By entry: `arm`, `data`, `runs`; of every number in `NUMBERS` a pair of mean and sample standard deviation, nan for a single
        run, both nan for none; `published` and `difference` (points of average incremental and of last accuracy, as far as they
        were published; nan where nothing was run) where the study names what was published.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.data, row.arm), []).append(row)
    found = []
    for data in study.data:
        for arm in study.arms:
            mine = groups.get((data, arm), [])
            if not mine and arm not in study.published:
                continue
            numbers = {name: spread([row.number(name) for row in mine]) for name in NUMBERS}
            entry: dict[str, Any] = {"arm": arm, "data": data, "runs": len(mine), **numbers}
            if arm in study.published:
                given = entry["published"] = study.published[arm]
                ours = {"average": numbers["average_incremental"][0], "last": numbers["last"][0]}
                entry["difference"] = {name: 100 * value - given[name] for name, value in ours.items() if name in given}
            found.append(entry)
    return found


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of what is a number; nan where there is none."""
    finite = [value for value in values if value == value]
    return (mean(finite) if finite else math.nan, stdev(finite) if len(finite) > 1 else math.nan)
