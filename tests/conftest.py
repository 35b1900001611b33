"""A toy data set of our own, and the settings under which everything takes a moment."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs in several processes; more threads would fight over the cores

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from nacre.data.augment import Augment
from nacre.data.source import Samples, Source
from nacre.data.stream import Stream
from nacre.methods import METHODS
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.runtime import Hardware, Runtime

QUICK = Optim(epochs=2, batch=16, lr=0.02)
FORMS = {"ewc, online": {"online": True, "decay": 0.5}, "der, pruned": {"sparsity": 3e4, "backbone": "resnet20"}}
"""Settings under which a method keeps or builds something else; so high a sparsity that two epochs close gates."""


def toy_source(classes: int = 6, train: int = 12, test: int = 4, size: int = 8, channels: int = 3) -> Source:
    """Noisy pictures, each class around a pattern of its own."""
    draw = torch.Generator().manual_seed(3)
    patterns = torch.randint(40, 216, (classes, channels, size, size), generator=draw)

    def part(count: int) -> Samples:
        labels = torch.arange(classes).repeat_interleave(count)
        noise = torch.randint(-40, 40, (len(labels), channels, size, size), generator=draw)
        return Samples.of((patterns[labels] + noise).to(torch.uint8), labels)

    return Source(part(train), part(test), tuple(f"class {i}" for i in range(classes)), Augment(shift=1, flip=True))


@pytest.fixture(autouse=True)
def drawn_alike() -> None:
    """What a test draws does not depend on the tests before it, which differ from run to run in several processes."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def source() -> Source:
    return toy_source()


@pytest.fixture
def stream(source: Source) -> Stream:
    return Stream(source, [2, 2, 2], seed=0)


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    return Runtime(Hardware(device="cpu", precision="fp32", layout="contiguous", threads=1))


@pytest.fixture(params=[*METHODS, *FORMS])
def method(request: pytest.FixtureRequest) -> Method:
    """Every registered method, quick and small; and those whose other form keeps or builds something else."""
    small = {"optim": QUICK, "later": None, "width": 24, "correcting": QUICK, "balanced": QUICK}
    small |= {"length": 2, "top": 2}  # of prompts
    cls = METHODS[request.param.partition(",")[0]]
    small["backbone"] = "vit-tiny" if "pre-training" in cls.needs else "small"
    small |= FORMS.get(request.param, {})
    return replace(cls(), **{name: value for name, value in small.items() if name in {field.name for field in fields(cls)}})


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of a test lands in the user's cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("NACRE_CACHE", str(folder))
    return folder
