"""How a phase descends: optimiser, schedule, length; one value that describes it all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Optimiser and schedule of one phase."""

    name: Literal["sgd", "adamw"] = "sgd"
    """SGD with momentum, or AdamW."""
    lr: float = 0.05
    """Highest learning rate."""
    momentum: float = 0.9
    """Of SGD, in [0, 1)."""
    weight_decay: float = 5e-4
    """L2 penalty of SGD; decoupled for AdamW."""
    schedule: Literal["cosine", "one-cycle", "multi-step", "constant"] = "one-cycle"
    """Course of the learning rate over the phase, see `SCHEDULES`."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Of multi-step: shares of the phase at which the rate is multiplied by `gamma`."""
    gamma: float = 0.1
    """Of multi-step."""
    warmup: float = 0.0
    """Share of the phase over which the rate climbs linearly to its schedule, in [0, 1)."""
    clip: float = 0.0
    """Largest norm of the whole gradient; 0: not clipped."""
    epochs: int = 20
    """Passes over the phase's samples."""
    batch: int = 32
    """Largest number of samples in a step; an epoch is cut into batches of equal size."""

    def __post_init__(self) -> None:
        wrong = [
            f"{name} is {getattr(self, name)}, but it must be {wanted}"
            for name, fits, wanted in (
                ("lr", self.lr > 0, "above 0"),
                ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
                ("weight_decay", self.weight_decay >= 0, "0 or more"),
                ("milestones", list(self.milestones) == sorted(m for m in self.milestones if 0 < m < 1), "ascending shares in (0, 1)"),
                ("gamma", 0 < self.gamma <= 1, "in (0, 1]"),
                ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
                ("clip", self.clip >= 0, "0 or more"),
                ("epochs", self.epochs >= 1, "1 or more"),
                ("batch", self.batch >= 1, "1 or more"),
            )
            if not fits
        ]
        if wrong:
            raise ValueError("; ".join(wrong))

    def build(self, parameters: Iterable[nn.Parameter], pace: Mapping[nn.Parameter, float] = MappingProxyType({})) -> torch.optim.Optimizer:
        """The optimiser over `parameters`, in its fused form where the device has one.

        Args:
            parameters: to step.
            pace: what the rate is multiplied by for some of them.
        """
        ps = list(parameters)
        fused = bool(ps) and ps[0].device.type in ("cpu", "cuda")
        shares = sorted({pace.get(p, 1.0) for p in ps})
        groups = [{"params": [p for p in ps if pace.get(p, 1.0) == share], "pace": share} for share in shares]
        if self.name == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay, fused=fused)
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, fused=fused)

    def steer(self, optimiser: torch.optim.Optimizer, progress: float) -> None:
        """Set the learning rates of an optimiser that `build` made, when `progress` of the phase is done."""
        for group in optimiser.param_groups:
            group["lr"] = self.rate(progress) * group["pace"]

    def rate(self, progress: float) -> float:
        """The learning rate when `progress`, in [0, 1), of the phase is done."""
        climb = min(1.0, (progress + 1e-12) / self.warmup) if self.warmup else 1.0
        return self.lr * climb * SCHEDULES[self.schedule](self, progress)


def cosine(optim: Optim, progress: float) -> float:
    """Half a cosine from 1 to 0 (Loshchilov & Hutter, ICLR 2017, eq. 5, without restarts)."""
    return (1 + math.cos(math.pi * progress)) / 2


def one_cycle(optim: Optim, progress: float) -> float:
    """From 1/25 up to 1 over three tenths of the phase, then down to 0, both along a cosine (Smith & Topin 2018)."""
    if progress < 0.3:
        return 1 - (1 - 1 / 25) * cosine(optim, progress / 0.3)
    return cosine(optim, (progress - 0.3) / 0.7)


def multi_step(optim: Optim, progress: float) -> float:
    """Times gamma at every milestone."""
    return optim.gamma ** sum(progress >= milestone for milestone in optim.milestones)


def constant(optim: Optim, progress: float) -> float:
    """Always 1."""
    return 1.0


SCHEDULES: dict[str, Callable[[Optim, float], float]] = {
    "cosine": cosine,
    "one-cycle": one_cycle,
    "multi-step": multi_step,
    "constant": constant,
}
