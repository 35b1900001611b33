"""An experiment: the full description of a run, and the run itself."""

from __future__ import annotations

import csv
import io
import json
import platform
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w
import torch

from nacre import __version__, files, modelfile, settings
from nacre.data.augment import Augment
from nacre.data.cache import Progress
from nacre.data.memory import budget
from nacre.data.protocols import Arrival
from nacre.data.readers import READERS, Reading, read
from nacre.data.stream import Stream
from nacre.errors import NacreError
from nacre.evaluation import cost, metrics, panel
from nacre.evaluation.exam import Result, examine, look, probe
from nacre.evaluation.matrix import AccuracyMatrix
from nacre.methods import METHODS
from nacre.seeds import seeded
from nacre.training.journal import Journal, Row
from nacre.training.learner import Learner
from nacre.training.method import Method
from nacre.training.phases import Watch
from nacre.training.runtime import Hardware, Runtime
from nacre.training.speed import settle

CONFIG, METRICS, LOG, MODEL, JOURNAL, REPORT = "config.toml", "metrics.json", "log.csv", "model.nacre", "journal", "report.html"
DIGESTED = 512
"""Images of each part whose pixels tell a run's data from others."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """Everything that decides what a run computes."""

    data: str = "digits"
    """A data set: a path, or a name, see `nacre.data.readers.read`."""
    reading: Reading = Reading()
    """How it is read."""
    protocol: str = "b0-inc2"
    """Classes per stage, see `nacre.data.protocols.stage_sizes`."""
    arrival: Arrival = Arrival()
    """In which order and number classes and images arrive."""
    augment: dict[str, Any] = field(default_factory=dict)
    """What the training view does otherwise than suits the images, see `nacre.data.augment.Augment`."""
    method: Method = field(default_factory=METHODS["reconstruction"], metadata={"elsewhere": True})
    """How to learn."""
    memory: str = "auto"
    """Budget for exemplars, see `nacre.data.memory.budget`; `auto`: what the method wants."""
    selection: str = "herding"
    """How exemplars are chosen."""
    seed: int = 0
    """Of class order, initialisation and sampling."""
    hardware: Hardware = Hardware()
    """Where and how to compute."""
    checkpoint: float = 30.0
    """Least seconds between two records of an unfinished fit."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Experiment:
        """The experiment that nested settings describe; what they leave out takes its default.

        Raises:
            NacreError: names every unknown setting and every value that does not fit.
        """
        rest, wrong = dict(given), []
        table = rest.pop("method", {})
        method, whole = None, None
        try:
            method = modelfile.method_of(table)
        except NacreError as error:
            wrong.append(str(error))
        try:
            settings.build(Augment, rest.get("augment", {}), "augment.")
        except NacreError as error:
            wrong.append(str(error))
        try:
            whole = settings.build(cls, rest)
        except NacreError as error:
            wrong.append(str(error))
        if method is None or whole is None or wrong:
            raise NacreError("\n".join(wrong))
        whole = replace(whole, method=method, data=placed(whole.data))
        return whole if whole.memory != "auto" else replace(whole, memory=str(whole.method.budget))

    @classmethod
    def load(cls, path: Path) -> Experiment:
        """Read a TOML file.

        Raises:
            NacreError: it is not there, no TOML, or does not describe an experiment.
        """
        return cls.of(read_toml(path))

    def lasting(self, epochs: int) -> Experiment:
        """The same with so many epochs in every stage.

        Raises:
            NacreError: there is no such number of epochs.
        """
        try:
            return replace(self, method=self.method.lasting(epochs))
        except ValueError as error:
            raise NacreError(str(error)) from None

    def toml(self) -> str:
        """The complete description, which `load` reads back."""
        table = {**settings.plain(self), "method": modelfile.method_settings(self.method)}
        return f"# written by nacre {__version__}: `nacre run config.toml` computes this run again\n" + tomli_w.dumps(table)

    def stream(self, progress: Progress | None = None) -> Stream:
        """The data, in stages; `progress` hears how decoding goes."""
        source = read(self.data, self.reading, progress).viewed(self.augment)
        return self.arrival.stream(source, self.protocol, self.seed)

    def learner(self, stream: Stream, runtime: Runtime) -> Learner:
        """A learner that knows nothing yet."""
        return Learner(
            self.method, stream.source.spec, memory=budget(self.memory), selection=self.selection, seed=self.seed, runtime=runtime
        )


def placed(data: str) -> str:
    """A path in full, so that a run goes on from any folder; a name as it is."""
    return data if data in READERS or ":" in data or not Path(data).exists() else str(Path(data).resolve())


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file.

    Raises:
        NacreError: it is not there, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise NacreError(f"cannot read {path}: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise NacreError(f"{path} is not TOML: {error}") from None


class Run:
    """An experiment in its folder: learns stage by stage, and goes on where it was killed.

    Args:
        experiment: what to compute; `auto` hardware is settled here.
        folder: made where it is missing. One that holds a run already is gone on with.
        watch: hears how it goes.

    Raises:
        NacreError: the experiment does not fit its data, or the folder's files are damaged.
    """

    def __init__(self, experiment: Experiment, folder: Path, watch: Watch | None = None) -> None:
        self.folder = folder
        self.watch = watch or Watch()
        self.stream = experiment.stream(self.watch.decoded)
        self.runtime = Runtime(experiment.hardware)
        with seeded(experiment.seed, "model"):
            blank = experiment.method.whole(self.stream.source.spec)
        self.data_digest: str | None = self.stream.source.digest(sampled=DIGESTED)[:16]
        settle(self.runtime, blank, experiment.method.optim.batch)
        self.experiment = replace(experiment, hardware=self.runtime.hardware, augment=settings.plain(self.stream.source.augment))
        self.history: list[Result] = []
        self.rows: list[Row] = []
        self.random_probe = 0.0
        self.learner = self._begin() if not (folder / MODEL).exists() else self._continue()

    @property
    def total(self) -> int:
        """Number of stages."""
        return len(self.stream)

    def _begin(self) -> Learner:
        learner = self.experiment.learner(self.stream, self.runtime)
        model = learner.knowledge.model
        test = look(model, self.stream.test, self.runtime)
        self.random_probe = probe(model, self.stream, test, self.runtime)
        if self.runtime.main:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.write(self.folder / CONFIG, self.experiment.toml())
        return learner

    def _continue(self) -> Learner:
        learner, more = modelfile.load(self.folder / MODEL, self.runtime)
        if learner.classes != self.stream.classes[: len(learner.classes)]:
            raise NacreError(f"{self.experiment.data} has other classes than when {self.folder} began: go on with the same data.")
        before = more.get("data_digest")
        if before not in (None, self.data_digest):
            raise NacreError(f"{self.experiment.data} has other images than when {self.folder} began: go on with the same data.")
        self.data_digest = before
        self.history, self.random_probe = more["history"], more["random_probe"]
        self.rows = [row for row in read_log(self.folder / LOG) if int(row["stage"]) <= learner.stages]
        return learner

    def stages(self) -> Iterator[Result]:
        """Learn what is left, and yield each stage's result when it is safe on disk."""
        journal = Journal(self.folder / JOURNAL, self.experiment.checkpoint, writes=self.runtime.main)
        for stage in self.stream[self.learner.stages :]:
            began = time.perf_counter()
            self.learner.learn(stage, journal, self.watch)
            learnt = time.perf_counter()
            panel.keep(self.learner, stage)
            result = examine(self.learner, self.stream, stage)
            self.history = [{name: value for name, value in past.items() if name != "confusion"} for past in self.history]
            self.history.append({**result, "probe_gain": result["probe"] - self.random_probe})
            self.rows += journal.rows
            if self.runtime.main:
                self._save()
                journal.clear()
            yield {**self.history[-1], "seconds": learnt - began, "exam_seconds": time.perf_counter() - learnt}
        if self.runtime.main:
            self._save()
            journal.clear()

    def _save(self) -> None:
        """Put the run's files in place; the model is the one that decides how far the run has come, so the log goes first."""
        files.write(self.folder / LOG, log_text(self.rows))
        more = {
            "history": self.history,
            "random_probe": self.random_probe,
            "config": self.experiment.toml(),
            "data_digest": self.data_digest,
        }
        modelfile.save(self.folder / MODEL, self.learner, more)
        files.write(self.folder / METRICS, files.as_json(self.metrics(), indent=1))

    def matrix(self) -> AccuracyMatrix:
        """The accuracy matrix so far."""
        return matrix_of(self.history, [len(stage.test) for stage in self.stream])

    def metrics(self) -> Result:
        """Everything measured; `results` holds what a repeated run gives to the bit, `cost` and `machine` the rest.

        `data_digest` tells the data from other data, wherever it lies; None in a run that was begun before there was one.
        """
        knowledge = self.learner.knowledge
        seconds = sum(float(row["seconds"]) for row in self.rows)
        images = sum(int(row["images"]) for row in self.rows)
        return {
            "name": f"{self.experiment.data} {self.experiment.protocol}",
            "method": modelfile.method_settings(self.experiment.method)["name"],
            "data": self.experiment.data,
            "protocol": self.experiment.protocol,
            "seed": self.experiment.seed,
            "data_digest": self.data_digest,
            "order": list(self.stream.order),
            "classes": list(self.stream.classes),
            "test_images": [len(stage.test) for stage in self.stream],
            "complete": self.learner.stages == self.total,
            "results": {"summary": summary(self.matrix(), self.history, self.random_probe), "stages": self.history},
            "cost": {
                "seconds": seconds,
                "images_per_second": images / seconds if seconds else None,
                "peak_bytes": self.runtime.peak_bytes(),
                **{f"{name}_bytes": value for name, value in cost.footprint(knowledge).items()},
                **cost.arithmetic(knowledge.model),
            },
            "machine": {
                "device": self.runtime.describe(),
                "hardware": settings.plain(self.runtime.hardware),
                "processor": torch.backends.cpu.get_cpu_capability(),
                "instructions": instructions(),
                "versions": {"nacre": __version__, "torch": torch.__version__, "python": platform.python_version()},
                "platform": platform.platform(),
            },
        }


ARITHMETIC = ("amx", "avx", "bf16", "dot", "f16c", "fma", "fp16", "i8mm", "neon", "sme", "sve")
"""How the names of instructions begin that compute with vectors and matrices."""


def instructions() -> list[str]:
    """The processor's kinds of vector and matrix arithmetic, on which the last bits depend; none where torch cannot tell."""
    there: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return sorted(name for name, has in there.items() if has is True and name.startswith(ARITHMETIC))


def matrix_of(history: Sequence[Result], counts: Sequence[int]) -> AccuracyMatrix:
    """The accuracy matrix that a run's stages add up to."""
    matrix = AccuracyMatrix(counts)
    for index, result in enumerate(history):
        matrix.record(index, result["accuracies"])
    return matrix


def summary(matrix: AccuracyMatrix, history: Sequence[Result], random_probe: float) -> Result:
    """The run in a few numbers, the other readouts' accuracies beside the declared one's."""
    shared = set.intersection(*(set(result["readouts"]) for result in history))
    return {
        **{name: metric(matrix) for name, metric in metrics.METRICS.items()},
        "matrix": matrix.rows,
        "probe": history[-1]["probe"],
        "probe_random": random_probe,
        "readouts": {
            name: {
                "average_incremental": sum(result["readouts"][name]["accuracy"] for result in history) / len(history),
                "last": history[-1]["readouts"][name]["accuracy"],
            }
            for name in history[-1]["readouts"]
            if name in shared
        },
    }


def log_text(rows: Sequence[Row]) -> str:
    """The log as CSV: a row per epoch, a column per term and meter that any stage had."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def read_log(path: Path) -> list[Row]:
    """The rows that `log_text` wrote; numbers stay text, so that writing them again changes nothing."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{name: value for name, value in row.items() if value != ""} for row in csv.DictReader(file)]


def write_report(folder: Path, joint: Path | None = None) -> Path:
    """Write the report of a run's folder from the files in it.

    Args:
        folder: of the run, finished or not.
        joint: folder of a joint run of the same data, protocol and seed, for the intransigence.

    Returns:
        The report's path.

    Raises:
        NacreError: there is no run, or the joint run is none, or not one of the same stream.
    """
    from nacre.evaluation.report import render

    measured = read_metrics(folder)
    ceiling = None if joint is None else read_metrics(joint)
    if ceiling is not None and ceiling["method"] != "joint":
        raise NacreError(f"{joint} is a run of {ceiling['method']}, but the ceiling is one of joint: give a folder of that method.")
    if ceiling is not None and any(ceiling[name] != measured[name] for name in ("data", "protocol", "order")):
        raise NacreError(f"{joint} ran another stream than {folder}: give a joint run of the same data, protocol and seed.")
    learner, _ = modelfile.load(folder / MODEL, Runtime(Hardware(device="cpu")))
    text = render(measured, read_log(folder / LOG), (folder / CONFIG).read_text(encoding="utf-8"), panel.panel(learner), ceiling)
    files.write(folder / REPORT, text)
    return folder / REPORT


def read_metrics(folder: Path) -> Result:
    """What a run measured so far.

    Raises:
        NacreError: the folder holds no run, or none with a finished stage.
    """
    try:
        measured: Result = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NacreError(f"{folder} holds no run with a finished stage ({error}): give the folder that `nacre run` printed.") from None
    return measured
