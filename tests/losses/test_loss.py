"""Terms add up with their weights, under their names."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from nacre.losses.loss import Loss, Step, Term, Weighted


@dataclass(frozen=True)
class Constant(Term):
    """A number times a parameter of 1, so that gradients tell weights; counts its calls."""

    value: float
    calls: list[float]

    def __call__(self, step: Step) -> Tensor:
        self.calls.append(self.value)
        return self.value * cast(Any, step).parameter


@dataclass(frozen=True)
class Drawing(Constant):
    """One that needs the reconstruction."""

    decodes = True


def step(progress: float = 0.0) -> Step:
    found: Any = SimpleNamespace(progress=progress, parameter=torch.ones((), requires_grad=True))
    return cast(Step, found)


def of(value: float) -> Constant:
    return Constant(value, [])


def test_the_sum_is_weighted_and_the_values_are_not() -> None:
    total, values = Loss(one=of(5), two=0.5 * of(3), three=2 * of(-1))(step())
    assert total.item() == pytest.approx(5 + 1.5 - 2)
    assert {name: value.item() for name, value in values.items()} == {"one": 5, "two": 3, "three": -1}
    assert list(values) == ["one", "two", "three"]


def test_weights_multiply() -> None:
    term = of(7)
    assert 2 * (3 * term) == 6 * term == Weighted(term, 6)
    assert Loss(a=2 * (3 * term))(step())[0].item() == pytest.approx(42)


def test_the_gradient_carries_the_weight() -> None:
    now = step()
    Loss(a=0.25 * of(8), b=3 * of(2))(now)[0].backward()
    assert float(cast(Any, now).parameter.grad) == pytest.approx(0.25 * 8 + 3 * 2)


def test_a_term_of_weight_zero_is_no_term() -> None:
    none, zero = of(4), Drawing(9, [])
    loss = Loss(kept=none, dropped=0 * zero, also=2 * (0 * zero))
    total, values = loss(step())
    assert total.item() == 4
    assert list(values) == ["kept"] == list(loss.terms)
    assert zero.calls == []
    assert not loss.decodes


def test_a_loss_decodes_where_a_term_does() -> None:
    assert not Loss(a=of(1)).decodes
    assert Loss(a=of(1), b=0.1 * Drawing(1, [])).decodes


def test_a_ramp_multiplies_the_weight_at_every_step_and_stays_through_weighing() -> None:
    ramped = Weighted(of(10), 0.5, lambda now: min(1, now.progress / 0.2))
    for progress, share in ((0.0, 0.0), (0.1, 0.5), (0.2, 1.0), (0.9, 1.0)):
        total, values = Loss(a=of(1), b=4 * ramped)(step(progress))
        assert total.item() == pytest.approx(1 + 4 * 0.5 * 10 * share)
        assert values["b"].item() == 10


def test_adding_leaves_the_loss_as_it_was() -> None:
    first = Loss(a=2 * of(1))
    both = first.adding(b=of(5), c=0 * of(1))
    assert list(both.terms) == ["a", "b"]
    assert list(first.terms) == ["a"]
    assert both(step())[0].item() == pytest.approx(7)
    assert first.adding(a=of(4))(step())[0].item() == pytest.approx(4)


def test_weights_are_told_by_name() -> None:
    loss = Loss(a=0.3 * of(1), b=of(1))
    assert (loss.weight("a"), loss.weight("b"), loss.weight("c")) == (0.3, 1.0, 0.0)


def test_a_term_has_no_concern_of_its_own() -> None:
    assert of(1).concern(1e9, 1.0) is None
