"""One lesson: a model in use learns what a data set brings, further images of known classes and images of new ones.

The model's file is replaced only when the stage has ended well. What a killed lesson needs to go on lies beside it.

Shapes: n images, K classes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from nacre import files, modelfile
from nacre.data.cache import Progress
from nacre.data.decode import Form
from nacre.data.listing import Files, Listing, legible, walk
from nacre.data.memory import PerClass, budget
from nacre.data.readers import Reading, from_listing, held_out, read
from nacre.data.source import Samples, Source
from nacre.data.stream import Stage, relabelled
from nacre.errors import NacreError
from nacre.evaluation import novelty, panel
from nacre.experiment import Experiment
from nacre.holding import beside, former, held
from nacre.seeds import derive, seeded
from nacre.training.inference import logits
from nacre.training.journal import Journal
from nacre.training.learner import Learner
from nacre.training.phases import Watch
from nacre.training.runtime import Hardware, Runtime
from nacre.training.speed import settle

T = TypeVar("T")
HELD = PerClass(20)
"""How many held-out images of a class a model carries at most, to be checked and calibrated on later."""
Shares = dict[str, float | None]
"""Accuracies over all, old and new classes; None where there is no image to tell from."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a lesson came to."""

    kept: bool
    """Whether the model was replaced."""
    before: Shares
    after: Shares
    seconds: float

    @property
    def drop(self) -> float:
        """Points that the old classes lost; 0 where that was not measured."""
        before, after = self.before["old"], self.after["old"]
        return 0.0 if before is None or after is None else 100 * (before - after)


class Lesson:
    """A model, and what it is to learn next.

    Args:
        path: of the model; where there is none, the lesson is the first.
        experiment: data, reading, hardware, and for a first lesson all the rest too.
        check: share of every class's images that is held out to check and calibrate on, in [0, 1).
        watch: hears how it goes.

    Raises:
        NacreError: the images cannot be used, or do not fit the model.
    """

    def __init__(self, path: Path, experiment: Experiment, *, check: float = 0.1, watch: Watch | None = None) -> None:
        if not 0 <= check < 1:
            raise NacreError(f"the share held out to check on is {check}, but it must be in [0, 1).")
        self.path, self.check, self.watch = path, check, watch or Watch()
        self.runtime = Runtime(experiment.hardware)
        self.more: dict[str, Any] = {}
        learner, reading = None, replace(experiment.reading, test=0.0)
        if path.exists():
            learner, self.more = modelfile.load(path, self.runtime)
        self.source = read(experiment.data, reading, self.watch.decoded, learner.spec.form if learner else None)
        if learner is None:
            self.source = self.source.viewed(experiment.augment)
            with seeded(experiment.seed, "settle"):
                settle(self.runtime, experiment.method.whole(self.source.spec), experiment.method.optim.batch)
            learner = Learner(
                experiment.method,
                self.source.spec,
                memory=budget(experiment.memory),
                selection=experiment.selection,
                seed=experiment.seed,
                runtime=self.runtime,
            )
        else:
            settle(self.runtime, learner.knowledge.model, learner.method.optim.batch)
            self.runtime.place(learner.knowledge.model)
        self.learner = learner
        if check or len(self.source.test):
            learner.knowledge.held.budget = HELD
        self.stage = stage_of(self.source, learner, check)
        self.data = self.source.digest(check)
        self.journal = Journal(beside(path, "learning") / "journal", experiment.checkpoint)

    @property
    def learnt(self) -> Mapping[str, Any] | None:
        """The record of this very lesson, where it was the model's last; None where it was not."""
        lessons = self.more.get("lessons", [])
        return lessons[-1] if lessons and lessons[-1].get("data") == self.data else None

    @property
    def refreshed(self) -> tuple[str, ...]:
        """Known classes that the lesson brings further images of."""
        labels = self.stage.train.labels.unique().tolist()
        return tuple(self.learner.classes[label] for label in labels if label < self.stage.known)

    def run(self, most: float | None = None, *, previous: bool = True) -> Outcome:
        """Learn, check, and replace the model's file.

        Args:
            most: points of accuracy that the old classes may lose; if they lose more, the old model stays. None: any.
            previous: keep the model as it was beside the new one, under its name and `.prev`.

        Raises:
            NacreError: there is nothing to measure `most` on, training diverged, or the disk is full.
        """
        learner, stage = self.learner, self.stage
        known = learner.knowledge.held.samples() + stage.test.among(range(stage.known))
        if most is not None and stage.known and not len(known):
            raise NacreError(f"{self.path} carries no held-out image of its classes, so --max-drop has nothing to measure: leave it out.")
        began = time.perf_counter()
        before = shares(learner, known, stage.known) if stage.known else dict.fromkeys(("all", "old", "new"))
        self._take_up()
        learner.learn(stage, self.journal, self.watch)
        after = shares(learner, known + stage.test.among(stage.new), stage.known)
        outcome = Outcome(kept=True, before=before, after=after, seconds=time.perf_counter() - began)
        if most is not None and outcome.drop > most:
            self.clear()
            return replace(outcome, kept=False)
        novelty.calibrate(learner)
        panel.keep(learner, stage)
        self._save(outcome, previous=previous)
        self.clear()
        return outcome

    def _take_up(self) -> None:
        """Drop what another lesson left unfinished; this one's own progress stays."""
        place = beside(self.path, "learning")
        model = hashlib.sha256(self.path.read_bytes()).hexdigest() if self.path.exists() else settings_of(self.learner)
        about = json.dumps({"model": model, "data": self.data})
        if place.exists() and (not (place / "lesson.json").exists() or (place / "lesson.json").read_text() != about):
            self.watch.concern("another lesson was left unfinished beside this model; its progress is dropped")
            shutil.rmtree(place)
        place.mkdir(exist_ok=True)
        files.write(place / "lesson.json", about)

    def _save(self, outcome: Outcome, *, previous: bool) -> None:
        """Put the model's file in place."""
        shown = panel.panel(self.learner)
        record = {
            "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "data": self.data,
            "stage": self.learner.stages,
            "new": list(self.stage.names),
            "further": list(self.refreshed),
            "images": len(self.stage.train),
            "checked": len(self.stage.test),
            "before": outcome.before,
            "after": outcome.after,
            "drift": None if shown is None else float(panel.growth(self.learner, shown).mean()),
            "seconds": round(outcome.seconds, 1),
        }
        if previous and self.path.exists():
            files.duplicate(self.path, former(self.path))
        self.more = {**self.more, "lessons": [*self.more.get("lessons", []), record]}
        modelfile.save(self.path, self.learner, self.more)

    def clear(self) -> None:
        """The lesson is over: leave nothing of it."""
        self.journal.clear()
        shutil.rmtree(beside(self.path, "learning"), ignore_errors=True)


def settings_of(learner: Learner) -> str:
    """What decides how a learner without a file would learn, in a line."""
    return f"{modelfile.method_settings(learner.method)}|{learner.knowledge.memory.budget}|{learner.seed}|{learner.spec}"


def stage_of(source: Source, learner: Learner, check: float) -> Stage:
    """A source as a learner's next stage: known names keep their labels, new ones follow in the source's order.

    Images that come as test images are held out; without such, a share of every class is, of two images or more one at least.
    Images that an earlier lesson held out are not learnt from when they come again.
    """
    known = {name: label for label, name in enumerate(learner.classes)}
    fresh = tuple(name for name in source.classes if name not in known)
    label = known | {name: len(known) + number for number, name in enumerate(fresh)}
    arrival = torch.tensor([label[name] for name in source.classes])
    train, test = relabelled(source.train, arrival), relabelled(source.test, arrival)
    if len(known):
        train = train.take(~among(train, learner.knowledge.held.samples()))
    if not len(test):
        kept, out = held_out(train.labels, fraction=check, seed=derive(learner.seed, "check", learner.stages))
        train, test = train.take(kept), train.take(out)
    return Stage(learner.stages, len(known), len(label), fresh, train, test)


def among(samples: Samples, others: Samples) -> torch.Tensor:
    """Which samples have the pixels of one of the others, [n]."""
    seen = {hashlib.sha256(image.numpy().tobytes()).digest() for image in others.pixels()}
    found = torch.zeros(len(samples), dtype=torch.bool)
    for position in torch.nonzero(torch.isin(samples.labels, others.labels)).flatten().split(256):
        same = [hashlib.sha256(image.numpy().tobytes()).digest() in seen for image in samples.pixels(position)]
        found[position] = torch.tensor(same, dtype=torch.bool)
    return found


def shares(learner: Learner, samples: Samples, known: int) -> Shares:
    """Accuracies of a learner on samples labelled by arrival: over all, old (below `known`) and new classes."""
    if not len(samples):
        return dict.fromkeys(("all", "old", "new"))
    right = (logits(learner.knowledge.model, samples, learner.runtime).argmax(1).cpu() == samples.labels).double()
    old = samples.labels < known
    parts = {"all": right, "old": right[old], "new": right[~old]}
    return {name: float(part.mean()) if len(part) else None for name, part in parts.items()}


def rewritten(path: Path, change: Callable[[Learner], T], what: str, *, wait: bool = False, previous: bool = True) -> tuple[T, int, int]:
    """Change a model in its file, between lessons.

    Args:
        path: of the model.
        change: changes the learner.
        what: it does, for the model's history.
        wait: for another process that changes the model.
        previous: keep the model as it was beside the new one.

    Returns:
        What `change` gave, and the file's bytes before and after.

    Raises:
        NacreError: the file is no whole model, or the change is refused.
    """
    with held(path, wait=wait):
        learner, more = modelfile.load(path, Runtime(Hardware(device="cpu")))
        said, was = change(learner), path.stat().st_size
        record = {"date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "change": what}
        if previous:
            files.duplicate(path, former(path))
        modelfile.save(path, learner, {**more, "lessons": [*more.get("lessons", []), record]})
        return said, was, path.stat().st_size


def labelled(data: str, learner: Learner, reading: Reading, progress: Progress | None = None) -> tuple[Samples, tuple[str, ...]]:
    """A data set's images in a learner's form, labelled by its classes, and what is odd about them; of a split data set the test images.

    Raises:
        NacreError: it has classes that the learner does not know.
    """
    source = read(data, replace(reading, test=0.0), progress, learner.spec.form)
    known = {name: label for label, name in enumerate(learner.classes)}
    strange = [name for name in source.classes if name not in known]
    if strange:
        named = ", ".join(strange[:5]) + (" ..." if len(strange) > 5 else "")
        raise NacreError(
            f"{data} has {len(strange)} classes that the model does not know ({named}): leave them out, or give a folder of them by "
            "--unknowns."
        )
    samples = source.test if len(source.test) else source.train
    return relabelled(samples, torch.tensor([known[name] for name in source.classes])), source.notes


def unlabelled(data: str, learner: Learner, progress: Progress | None = None) -> Samples:
    """All images of a data set, or of a folder that need not have classes, in a learner's form."""
    path = Path(data)
    form = learner.spec.form
    if path.is_dir() and not any(entry.is_dir() for entry in path.iterdir()):
        paths = [file for _, found in walk(path) for file in found]
        return everything(Listing(Files(paths, legible(path.resolve()), path), [0] * len(paths), ("",), None), progress, form)
    source = read(data, Reading(test=0.0, skip_unreadable=True), progress, form)
    return source.train + source.test


def everything(listing: Listing, progress: Progress | None, form: Form) -> Samples:
    """A listing's images as samples, those that cannot be read left out."""
    source = from_listing(listing, Reading(test=0.0, skip_unreadable=True), progress, form)
    return source.train
