"""Stages as people have them: new classes together with more images of known ones, and more images of known ones alone."""

from __future__ import annotations

from dataclasses import replace

import torch

from nacre.data.source import Samples, Source
from nacre.data.stream import Stage
from nacre.training.learner import Learner
from nacre.training.method import Method
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
