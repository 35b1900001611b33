"""Schedules, lent trainability, and what a learner refuses."""

from __future__ import annotations

import math
import os
import platform
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from nacre.data.memory import NOTHING
from nacre.data.source import ImageSpec, Samples
from nacre.data.stream import Stream
from nacre.errors import NacreError
from nacre.methods import METHODS
from nacre.models.model import build_model
from nacre.training.learner import Learner
from nacre.training.method import Decoding
from nacre.training.optim import Optim
from nacre.training.phases import trainable
from nacre.training.runtime import Hardware, Runtime


def test_schedules_at_chosen_points() -> None:
    assert Optim(schedule="cosine", lr=1).rate(0) == 1
    assert Optim(schedule="cosine", lr=1).rate(0.5) == pytest.approx(0.5)
    cycle = Optim(schedule="one-cycle", lr=2)
    assert cycle.rate(0) == pytest.approx(2 / 25)
    assert cycle.rate(0.3) == pytest.approx(2)
    assert cycle.rate(0.3 - 1e-9) == pytest.approx(2)
    assert cycle.rate(0.65) == pytest.approx(1)
    steps = Optim(schedule="multi-step", lr=1, milestones=(0.25, 0.5), gamma=0.1)
    assert [steps.rate(p) for p in (0, 0.25, 0.49, 0.5)] == pytest.approx([1, 0.1, 0.1, 0.01])
    warm = Optim(schedule="constant", lr=1, warmup=0.1)
    assert [warm.rate(p) for p in (0.05, 0.1, 0.9)] == pytest.approx([0.5, 1, 1])
    assert all(0 <= Optim(schedule=name, lr=1).rate(p / 100) <= 1 for name in ("cosine", "one-cycle", "multi-step") for p in range(100))


def test_all_bad_settings_are_named_at_once() -> None:
    with pytest.raises(ValueError, match=r"lr is -1.*momentum is 1.*epochs is 0.*batch is 0"):
        Optim(lr=-1, momentum=1, epochs=0, batch=0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimiser_descends(name: Any) -> None:
    weight = nn.Parameter(torch.ones(3))
    optimiser = Optim(name=name, lr=0.1).build([weight])
    weight.grad = torch.ones(3)
    optimiser.step()
    assert (weight < 1).all()


def test_trainability_is_lent() -> None:
    model = build_model("small", "linear", ImageSpec((1, 8, 8)))
    model.grow(2)
    frozen = next(model.backbone.parameters()).requires_grad_(False)
    with trainable(model, None) as parameters:
        assert model.training
        assert not any(parameter is frozen for parameter in parameters)
    with trainable(model, [model.head]) as parameters:
        assert {id(p) for p in parameters} == {id(p) for p in model.head.parameters()}
        assert model.head.training
        assert not model.backbone.training
    flags = [parameter.requires_grad for parameter in model.parameters()]
    assert flags.count(False) == 1
    assert not frozen.requires_grad


def test_a_learner_wants_its_stages_in_order(stream: Stream, runtime: Runtime) -> None:
    learner = Learner(METHODS["finetune"](optim=Optim(epochs=1)), stream.source.spec, runtime=runtime)
    with pytest.raises(NacreError, match="knows no class"):
        learner.predict(stream[0].test.pixels())
    with pytest.raises(NacreError, match="in their order"):
        learner.learn(stream[1])
    other = Learner(METHODS["finetune"](), ImageSpec((1, 8, 8)), runtime=runtime)
    with pytest.raises(NacreError, match="channels, height, width"):
        other.learn(stream[0])


def test_reconstruction_without_any_memory_and_with_stages_of_one_class(source: Any, runtime: Runtime) -> None:
    for name in ("reconstruction", "reconstruction-plain"):
        stream = Stream(source, [1] * 6, seed=0)
        learner = Learner(METHODS[name](optim=Optim(epochs=1, batch=8)), source.spec, memory=NOTHING, runtime=runtime)
        for stage in stream:
            learner.learn(stage)
            assert torch.isfinite(learner.logits(stage.test.pixels())).all()
        assert len(learner.knowledge.memory) == 0


def test_black_channels_are_no_trouble(source: Any, runtime: Runtime) -> None:
    images = source.train.images.clone()
    images[:, 1:] = 0
    dark = replace(source, train=Samples(images, source.train.labels, source.train.rows))
    stream = Stream(dark, [3, 3], seed=0)
    learner = Learner(METHODS["reconstruction"](optim=Optim(epochs=2, batch=8)), dark.spec, runtime=runtime)
    for stage in stream:
        learner.learn(stage)
    assert torch.isfinite(learner.logits(stream[0].test.pixels())).all()


def test_the_weight_of_reconstruction_climbs_in_the_first_stage_only() -> None:
    decoding = Decoding(weight=1, warmup=0.1)

    def at(stage: int, progress: float) -> float:
        return decoding.ramp(cast(Any, SimpleNamespace(stage=SimpleNamespace(index=stage), progress=progress)))

    assert [at(0, 0), at(0, 0.05), at(0, 0.5), at(1, 0)] == pytest.approx([0, 0.5, 1, 1])


def test_clipping_bounds_the_step(stream: Stream, runtime: Runtime) -> None:
    def moved(clip: float) -> float:
        optim = Optim(epochs=1, batch=100, lr=1, momentum=0, weight_decay=0, schedule="constant", clip=clip)
        learner = Learner(METHODS["finetune"](optim=optim, backbone="small"), stream.source.spec, runtime=runtime)
        before = [p.detach().clone() for p in learner.knowledge.model.backbone.parameters()]
        learner.learn(stream[0])
        return math.sqrt(
            sum(float((a - b).square().sum()) for a, b in zip(before, learner.knowledge.model.backbone.parameters(), strict=True))
        )

    assert moved(0.01) <= 0.0101
    assert moved(0) > 0.1


def test_a_device_that_is_not_there_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(NacreError, match="device 'cuda' is not there: use auto"):
        Runtime(Hardware(device="cuda"))


def test_bf16_and_channels_last_train_too(stream: Stream) -> None:
    runtime = Runtime(Hardware(device="cpu", precision="bf16", layout="channels-last", threads=1))
    learner = Learner(METHODS["reconstruction"](optim=Optim(epochs=3, batch=8)), stream.source.spec, runtime=runtime)
    for stage in stream[:2]:
        learner.learn(stage)
    assert learner.logits(stream[0].test.pixels()).dtype == torch.float32


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc gives no memory out here")
@pytest.mark.parametrize("given", [{}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=65536"}, {"MALLOC_MMAP_THRESHOLD_": "65536"}])
def test_a_process_keeps_the_memory_that_it_frees_unless_it_is_told_otherwise(given: dict[str, str]) -> None:
    script = """
import ctypes, resource, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # no huge pages, so that faults count pages
from nacre.training.runtime import Hardware, Runtime
Runtime(Hardware(device="cpu", threads=1))
for turn in range(20):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros(2**22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    clean = {name: value for name, value in os.environ.items() if "THRESHOLD" not in name and name != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", script], env={**clean, **given}, capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 1000) == (not given)  # sixteen megabytes are 4096 pages, ten times
