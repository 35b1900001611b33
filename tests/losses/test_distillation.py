"""Distillation against its formula, -sum softmax(old / T) log softmax(new / T), without T squared."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from nacre.losses.distillation import Distillation, distillation
from nacre.losses.loss import Step

DRAW = torch.Generator().manual_seed(0)
NEW = torch.randn(4, 6, generator=DRAW, dtype=torch.float64) * 2
OLD = torch.randn(4, 3, generator=DRAW, dtype=torch.float64) * 2


def step(new: Tensor, old: Tensor | None) -> Step:
    found: Any = SimpleNamespace(out=SimpleNamespace(logits=new), old=None if old is None else SimpleNamespace(logits=old))
    return cast(Step, found)


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(x / temperature) for x in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_the_formula_over_the_classes_that_the_teacher_knows(temperature: float) -> None:
    total = 0.0
    for new, old in zip(NEW.tolist(), OLD.tolist(), strict=True):
        for p, q in zip(softmax(old, temperature), softmax(new[:3], temperature), strict=True):
            total -= p * math.log(q)
    assert float(Distillation(temperature)(step(NEW, OLD))) == pytest.approx(total / 4)


def test_the_gradient_is_that_of_the_formula_and_goes_to_known_classes_of_the_new_model_only() -> None:
    new, old = NEW.clone().requires_grad_(), OLD.clone().requires_grad_()
    Distillation(2.0)(step(new, old)).backward()
    assert old.grad is None
    assert new.grad is not None
    assert (new.grad[:, 3:] == 0).all()
    for row, teacher, found in zip(NEW.tolist(), OLD.tolist(), new.grad.tolist(), strict=True):
        pairs = zip(softmax(row[:3], 2.0), softmax(teacher, 2.0), strict=True)
        assert found[:3] == pytest.approx([(q - p) / 2.0 / 4 for q, p in pairs])


def test_the_teachers_own_answer_is_the_least() -> None:
    least = float(distillation(OLD, OLD, 2.0))
    entropy = -sum(p * math.log(p) for row in OLD.tolist() for p in softmax(row, 2.0)) / 4
    assert least == pytest.approx(entropy)
    for seed in range(5):
        other = OLD + torch.randn(OLD.shape, generator=torch.Generator().manual_seed(seed))
        assert float(distillation(other, OLD, 2.0)) > least


@pytest.mark.parametrize("temperature", [0, -1.0])
def test_temperatures_that_are_none_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        Distillation(temperature)


def test_it_needs_a_teacher() -> None:
    with pytest.raises(AssertionError, match="teacher"):
        Distillation()(step(NEW, None))
