"""Schedules at chosen points, the optimiser's arithmetic, and refusal of all bad values at once."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from nacre.training.optim import SCHEDULES, Optim


def rates(points: list[float], **given: Any) -> list[float]:
    return [Optim(lr=0.5, **given).rate(point) / 0.5 for point in points]


def test_cosine_by_hand() -> None:
    assert rates([0, 1 / 3, 0.5, 2 / 3], schedule="cosine") == pytest.approx([1, 0.75, 0.5, 0.25])


def test_one_cycle_by_hand() -> None:
    middle = (1 / 25 + 1) / 2
    assert rates([0, 0.15, 0.3, 0.65, 0.3 + 0.7 * 2 / 3], schedule="one-cycle") == pytest.approx([1 / 25, middle, 1, 0.5, 0.25])


def test_one_cycle_has_no_jump() -> None:
    before, at, after = rates([0.3 - 1e-7, 0.3, 0.3 + 1e-7], schedule="one-cycle")
    assert before == pytest.approx(at, abs=1e-6)
    assert after == pytest.approx(at, abs=1e-6)
    course = rates([i / 1000 for i in range(1000)], schedule="one-cycle")
    assert max(abs(b - a) for a, b in itertools.pairwise(course)) < 0.01
    assert course[:301] == sorted(course[:301])
    assert course[300:] == sorted(course[300:], reverse=True)


def test_multi_step_falls_at_its_milestones() -> None:
    found = rates([0, 0.1999, 0.2, 0.5999, 0.6, 0.99], schedule="multi-step", milestones=(0.2, 0.6), gamma=0.3)
    assert found == pytest.approx([1, 1, 0.3, 0.3, 0.09, 0.09])
    assert rates([0, 0.9], schedule="multi-step", milestones=()) == [1, 1]


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_warmup_climbs_linearly_to_the_schedule(schedule: Any) -> None:
    points = [0.05, 0.1, 0.2, 0.7]
    plain, warm = rates(points, schedule=schedule), rates(points, schedule=schedule, warmup=0.2)
    assert warm == pytest.approx([rate * climb for rate, climb in zip(plain, [0.25, 0.5, 1, 1], strict=True)])


@given(
    st.sampled_from(list(SCHEDULES)),
    st.floats(0, 0.9999),
    st.floats(1e-6, 10),
    st.sampled_from([0.0, 0.05, 0.9]),
    st.floats(1e-3, 1),
)
@settings(max_examples=100, derandomize=True, deadline=None)
def test_the_rate_is_above_zero_and_never_above_lr(schedule: Any, progress: float, lr: float, warmup: float, gamma: float) -> None:
    rate = Optim(schedule=schedule, lr=lr, warmup=warmup, gamma=gamma).rate(progress)
    assert 0 < rate <= lr


def test_all_bad_values_come_in_one_message() -> None:
    bad = {
        "lr": 0.0,
        "momentum": 1.0,
        "weight_decay": -0.1,
        "milestones": (0.7, 0.2),
        "gamma": 1.5,
        "warmup": 1.0,
        "clip": -1.0,
        "epochs": 0,
        "batch": -3,
    }
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - every word of the message is checked below
        Optim(**bad)  # type: ignore[arg-type]
    parts = str(caught.value).split("; ")
    assert len(parts) == len(bad)
    for part, (name, value) in zip(parts, bad.items(), strict=True):
        assert part.startswith(f"{name} is {value}, but it must be ")


@pytest.mark.parametrize(
    "wrong", [{"lr": math.nan}, {"weight_decay": math.nan}, {"milestones": (0.0,)}, {"milestones": (1.0,)}, {"gamma": 0.0}]
)
def test_edges_and_numbers_that_are_none_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(wrong))} is "):
        Optim(**wrong)


def test_sgd_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimiser = Optim(lr=0.1, momentum=0.5, weight_decay=0.01).build([weight])
    value, speed = 2.0, 0.0
    for gradient in (1.0, -3.0, 0.5):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
        speed = 0.5 * speed + gradient + 0.01 * value
        value -= 0.1 * speed
        assert weight.item() == pytest.approx(value)


def test_adamw_by_hand() -> None:
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimiser = Optim(name="adamw", lr=0.1, weight_decay=0.2).build([weight])
    value, first, second = 2.0, 0.0, 0.0
    for step, gradient in enumerate((1.0, -3.0, 0.5), 1):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimiser.step()
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        value *= 1 - 0.1 * 0.2
        value -= 0.1 * (first / (1 - 0.9**step)) / (math.sqrt(second / (1 - 0.999**step)) + 1e-8)
        assert weight.item() == pytest.approx(value)
