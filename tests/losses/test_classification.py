"""Cross-entropy against numpy loops."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Batch, Step

LOGITS = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 3
LABELS = torch.tensor([2, 4, 3, 3, 2, 4])


def step(logits: Tensor, labels: Tensor) -> Step:
    found: Any = SimpleNamespace(out=SimpleNamespace(logits=logits), batch=Batch(torch.empty(0), labels))
    return cast(Step, found)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_the_softmax_runs_over_the_classes_from_first_on(first: int) -> None:
    nats = []
    for row, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        total = sum(math.exp(x) for x in row[first:])
        nats.append(-math.log(math.exp(row[label]) / total))
    assert float(CrossEntropy(first)(step(LOGITS, LABELS))) == pytest.approx(sum(nats) / 6)


def test_the_gradient_is_probability_minus_truth_and_stays_off_hidden_classes() -> None:
    logits = LOGITS.clone().requires_grad_()
    CrossEntropy(2)(step(logits, LABELS)).backward()
    assert logits.grad is not None
    assert (logits.grad[:, :2] == 0).all()
    for row, label, found in zip(LOGITS.tolist(), LABELS.tolist(), logits.grad.tolist(), strict=True):
        total = sum(math.exp(x) for x in row[2:])
        want = [(math.exp(x) / total - (k == label)) / 6 for k, x in enumerate(row) if k >= 2]
        assert found[2:] == pytest.approx(want)


def test_answers_that_tell_nothing_cost_log_k() -> None:
    assert float(CrossEntropy()(step(torch.zeros(4, 8), torch.arange(4)))) == pytest.approx(math.log(8))
    assert float(CrossEntropy(6)(step(torch.zeros(2, 8), torch.tensor([6, 7])))) == pytest.approx(math.log(2))


def test_huge_logits_stay_finite() -> None:
    assert float(CrossEntropy()(step(torch.tensor([[1e4, -1e4]]), torch.tensor([1])))) == pytest.approx(2e4)
