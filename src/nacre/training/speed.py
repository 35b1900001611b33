"""What `auto` means: precision and memory layout that are measured to be faster on this machine, never what is slower.

The measurement is kept in the user's cache folder, so that a command repeated computes the same bits.
"""

from __future__ import annotations

import copy
import json
import platform
import time
from contextlib import suppress
from dataclasses import replace
from statistics import median
from typing import Literal

import torch

from nacre import files
from nacre.data import cache
from nacre.errors import NacreError
from nacre.models.model import Model
from nacre.training.precision import computing, lacks_bf16
from nacre.training.runtime import Runtime, reformatted

Choice = tuple[Literal["fp32", "bf16"], Literal["contiguous", "channels-last"]]
CHOICES: list[Choice] = [("fp32", "contiguous"), ("fp32", "channels-last"), ("bf16", "contiguous"), ("bf16", "channels-last")]


def settle(runtime: Runtime, model: Model, batch: int, *, repeats: int = 3, gain: float = 1.1) -> None:
    """Give the runtime the fastest precision and layout among those its hardware leaves open.

    Args:
        runtime: whose `auto` is settled.
        model: of the run; it is left as it was.
        batch: images of a step; at most 64 are measured.
        repeats: measured steps of each choice; the median counts.
        gain: how many times as fast as the first choice another one must be.
    """
    hardware = runtime.hardware
    open_choices = [choice for choice in CHOICES if hardware.precision in ("auto", choice[0]) and hardware.layout in ("auto", choice[1])]
    if runtime.device.type == "mps":
        open_choices = open_choices[:1]
    if hardware.precision == "auto" and runtime.device.type == "cpu" and lacks_bf16():  # it is computed in fp32 there: a lead is chance
        open_choices = [choice for choice in open_choices if choice[0] == "fp32"]
    best = open_choices[0]
    if len(open_choices) > 1:
        seconds = dict(zip(CHOICES, runtime.agree(remembered(runtime, model, min(batch, 64), repeats)), strict=True))
        fastest = min(open_choices, key=seconds.__getitem__)
        best = fastest if seconds[best] >= gain * seconds[fastest] else best
    runtime.hardware = replace(hardware, precision=best[0], layout=best[1])


def remembered(runtime: Runtime, model: Model, batch: int, repeats: int) -> list[float]:
    """Seconds of a training step under every choice, from the cache or measured now."""
    trunk = f"{type(model.backbone).__name__}/{sum(p.numel() for p in model.parameters())}"
    machine = f"{platform.processor() or platform.machine()}/{runtime.describe()}/torch {torch.__version__}"
    key = f"{machine}/{trunk}/{'x'.join(map(str, model.spec.shape))}/{batch}"
    path = cache.folder() / "speed.json"
    known: dict[str, list[float]] = {}
    with suppress(OSError, ValueError):
        known = json.loads(path.read_text())
    found = known.get(key) if isinstance(known, dict) else None
    if isinstance(found, list) and len(found) == len(CHOICES):
        return [float(value) for value in found]
    seconds = [measure(runtime, model, batch, repeats, choice) for choice in CHOICES]
    if runtime.main:
        with suppress(OSError, NacreError):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(path, json.dumps({**known, key: seconds}, indent=1))
    return seconds


def measure(runtime: Runtime, model: Model, batch: int, repeats: int, choice: Choice) -> float:
    """Median seconds of forward and gradient of one batch."""
    precision, layout = choice
    form = torch.channels_last if layout == "channels-last" else torch.contiguous_format
    twin = Model(model.backbone, model.head, model.spec, model.decoder)
    twin = reformatted(copy.deepcopy(twin).to(runtime.device), form).train()
    images = torch.rand(batch, *model.spec.shape, device=runtime.device).contiguous(memory_format=form)
    weights = [weight for weight in twin.parameters() if weight.requires_grad and weight.numel()]
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        with computing(precision, runtime.device):
            out = twin(images, decode=True)
        score = out.features.square().mean() + (0 if out.reconstruction is None else out.reconstruction.square().mean())
        torch.autograd.grad(score, weights, allow_unused=True)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        seconds.append(time.perf_counter() - began)
    return median(seconds[1:])
