"""What a lesson will take, found by looking and by a few steps on this machine, before anything is changed."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from nacre.data.memory import Memory
from nacre.data.source import Samples
from nacre.evaluation import cost, novelty, panel
from nacre.lesson import Lesson
from nacre.seeds import seeded
from nacre.training.journal import Journal
from nacre.training.phases import Fit, Phase, Watch, Work

HEADER = 100
"""Bytes of a tensor's entry in a file's header, about."""
FEW = 4
"""So many images of a class show what a method keeps."""


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """What to expect of a lesson."""

    seconds: float
    """Of training."""
    bytes: int
    """Of the model's file."""


class Enough(Exception):  # noqa: N818 - a signal
    """The speed is known."""


class Stopwatch(Watch):
    """Ends a fit when its speed is known: after a first step and then some seconds, or some more steps."""

    def __init__(self, seconds: float = 2.0, steps: int = 20) -> None:
        self.limit, self.steps = seconds, steps
        self.count = self.images = 0
        self.began = 0.0

    def step(self, images: int) -> None:
        """Count a step; the first one warms up."""
        now = time.perf_counter()
        self.count += 1
        if self.count == 1:
            self.began = now
            return
        self.images += images
        if now - self.began > self.limit or self.count > self.steps:
            raise Enough

    def speed(self) -> float:
        """Images per second."""
        return max(self.images, 1) / max(time.perf_counter() - self.began, 1e-6)

    def concern(self, text: str) -> None:
        """Nothing is learnt here, so nothing concerns."""


def forecast(lesson: Lesson) -> Forecast:
    """Try out a lesson's stage without its training; the lesson's learner is used up, its file stays as it is."""
    learner, stage = lesson.learner, lesson.stage
    k, images_bytes = learner.knowledge, image_bytes(lesson)
    thin, watch = replace(stage, train=few(stage.train), test=few(stage.test)), Stopwatch()
    with seeded(learner.seed, "forecast"):
        learner.prepare(thin)
        images = sum(len(phase.data) * phase.optim.epochs for phase in learner.method.lesson(k, stage) if isinstance(phase, Fit))
        seconds = 0.0
        for number, phase in enumerate(learner.method.lesson(k, thin)):
            tried = once(phase, stage.train) if isinstance(phase, Fit) and not watch.count else phase
            if isinstance(tried, Fit) and watch.count:
                continue
            with suppress(Enough):
                tried.run(Work(learner.runtime, k, thin, learner.spec.augment, learner.seed, number, Journal(), watch))
            seconds = seconds or (images / watch.speed() if watch.count > 1 else 0.0)
    tables = (panel.THEN, f"{novelty.PART}/")
    numbers = [*k.model.state_dict().values(), *(value for name, value in k.statistics.items() if not name.startswith(tables))]
    return Forecast(seconds=seconds, bytes=cost.size(numbers) + images_bytes + HEADER * len(k.state()) + 48 * stage.seen)


def once(fit: Fit, data: Samples) -> Phase:
    """A fit over so many samples that its speed can be told, for two epochs at most."""
    return replace(fit, data=data, optim=replace(fit.optim, epochs=min(2, fit.optim.epochs)))


def few(samples: Samples) -> Samples:
    """At most `FEW` samples of every class."""
    order = samples.labels.argsort(stable=True)
    labels = samples.labels[order]
    place = torch.arange(len(labels)) - torch.searchsorted(labels, labels)
    return samples.take(order[place < FEW])


def image_bytes(lesson: Lesson) -> int:
    """Bytes of exemplars, held-out images and the panel's pictures after the lesson."""
    knowledge, stage = lesson.learner.knowledge, lesson.stage
    pixels = math.prod(lesson.learner.spec.shape)
    exemplars = kept(knowledge.memory, stage.train, stage.seen, pixels)
    held = kept(knowledge.held, stage.test, stage.seen, pixels)
    beside = 4 * stage.seen if knowledge.memory.stored.shape[1] else 0
    then = pixels * stage.seen if knowledge.model.decoder is not None and exemplars else 0
    return exemplars * (pixels + 8 + beside) + held * (pixels + 8) + then


def kept(memory: Memory, fresh: Samples, seen: int, pixels: int) -> int:
    """How many images a memory will hold."""
    there = torch.bincount(memory.labels, minlength=seen) + torch.bincount(fresh.labels, minlength=seen)
    return int(there.clamp_max(memory.budget.quota(seen, pixels)).sum())
