"""Stages as people have them: new classes together with more images of known ones, and more images of known ones alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import QUICK
from nacre.data.source import Samples, Source
from nacre.data.stream import Stage
from nacre.editing import drop
from nacre.methods import METHODS
from nacre.training.journal import Journal, Row
from nacre.training.learner import Learner
from nacre.training.method import Method
from nacre.training.phases import Stopped, Watch
from nacre.training.runtime import Runtime


def stage_of(source: Source, index: int, known: int, seen: int, labels: list[int]) -> Stage:
    def some(samples: Samples) -> Samples:
        return samples.take(torch.isin(samples.labels, torch.tensor(labels)))

    return Stage(index, known, seen, source.classes[known:seen], some(source.train), some(source.test))


def test_every_method_learns_new_and_known_classes_together_and_known_ones_alone(source: Source, method: Method, runtime: Runtime) -> None:
    learner = Learner(method, source.spec, runtime=runtime)
    learner.learn(stage_of(source, 0, 0, 2, [0, 1]))
    learner.learn(stage_of(source, 1, 2, 4, [1, 2, 3]))
    learner.learn(stage_of(source, 2, 4, 4, [0, 2]))
    assert learner.classes == source.classes[:4]
    assert learner.came == (0, 0, 1, 1)
    assert learner.images == (24, 24, 24, 12)
    logits = learner.logits(source.test.pixels())
    assert logits.shape == (len(source.test), 4)
    assert logits.isfinite().all()


def test_held_images_are_kept_apart_under_their_budget(source: Source, method: Method, runtime: Runtime) -> None:
    learner = Learner(method, source.spec, runtime=runtime)
    held = learner.knowledge.held
    held.budget = replace(held.budget, images=3)
    learner.learn(stage_of(source, 0, 0, 2, [0, 1]))
    first = held.samples().pixels()
    learner.learn(stage_of(source, 1, 2, 4, [2, 3]))
    assert held.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert torch.equal(held.samples().pixels()[:6], first)
    tests = {bytes(image.numpy().tobytes()) for image in source.test.pixels()}
    assert all(bytes(image.numpy().tobytes()) in tests for image in held.images)


def test_every_method_drops_classes_and_learns_on(source: Source, method: Method, runtime: Runtime) -> None:
    learner = Learner(method, source.spec, runtime=runtime)
    learner.learn(stage_of(source, 0, 0, 2, [0, 1]))
    learner.learn(stage_of(source, 1, 2, 4, [2, 3]))
    before = learner.logits(source.test.pixels())
    drop(learner, [source.classes[1], source.classes[2]])
    assert learner.classes == (source.classes[0], source.classes[3])
    after = learner.logits(source.test.pixels())
    assert torch.allclose(after, before[:, [0, 3]], atol=1e-4)
    assert set(learner.knowledge.memory.labels.tolist()) <= {0, 1}
    again = Learner(method, source.spec, runtime=runtime)
    again.restore(learner.state(), learner.classes, learner.stages, learner.came, learner.images)
    assert torch.equal(again.logits(source.test.pixels()), after)
    stage = stage_of(source, 2, 4, 6, [4, 5])
    train, test = (replace(part, labels=part.labels - 2) for part in (stage.train, stage.test))
    again.learn(Stage(2, 2, 4, stage.names, train, test))
    assert again.logits(source.test.pixels()).isfinite().all()


def test_asked_to_leave_training_ends_after_its_epoch_and_goes_on_from_there(source: Source, runtime: Runtime, tmp_path: Path) -> None:
    class Counting(Watch):
        def __init__(self, last: int) -> None:
            self.epochs, self.last = 0, last

        def epoch(self, row: Row) -> None:
            self.epochs += 1
            self.leaving = self.epochs == self.last

    method = METHODS["replay"](optim=QUICK, backbone="small")
    stage = stage_of(source, 0, 0, 2, [0, 1])
    whole, first, second = (Learner(method, source.spec, runtime=runtime) for _ in range(3))
    whole.learn(stage)
    watch = Counting(1)
    with pytest.raises(Stopped):
        first.learn(stage, Journal(tmp_path, every=1e9), watch)  # nothing but the wish to leave makes it write
    assert watch.epochs == 1
    rest = Counting(99)
    second.learn(stage, Journal(tmp_path, every=1e9), rest)
    assert rest.epochs == QUICK.epochs - 1
    assert all(torch.equal(value, whole.state()[name]) for name, value in second.state().items())
