"""Metrics by hand on a matrix of three stages with unequal counts."""

from __future__ import annotations

import math

import pytest

from nacre.evaluation.matrix import AccuracyMatrix
from nacre.evaluation.metrics import (
    METRICS,
    average_incremental,
    average_incremental_later,
    backward_transfer,
    forgetting,
    intransigence,
    last,
    seen,
)


def of(rows: list[list[float]], counts: list[int] | None = None) -> AccuracyMatrix:
    matrix = AccuracyMatrix(counts)
    for stage, row in enumerate(rows):
        matrix.record(stage, row)
    return matrix


# 20, 10 and 70 test images; stage 1's classes are at their best after stage 2
MATRIX = of([[0.5], [0.75, 0.9], [0.25, 0.4, 0.8]], [20, 10, 70])
AFTER = [10 / 20, (15 + 9) / 30, (5 + 4 + 56) / 100]


def test_accuracy_over_the_classes_seen() -> None:
    assert [seen(MATRIX, stage) for stage in range(3)] == pytest.approx(AFTER)
    assert last(MATRIX) == pytest.approx(0.65)


def test_averages() -> None:
    assert average_incremental(MATRIX) == pytest.approx((0.5 + 0.8 + 0.65) / 3)
    assert average_incremental_later(MATRIX) == pytest.approx((0.8 + 0.65) / 2)


def test_forgetting_counts_from_the_best_before_the_end() -> None:
    assert forgetting(MATRIX) == pytest.approx(((0.75 - 0.25) + (0.9 - 0.4)) / 2)


def test_the_last_row_is_no_candidate_for_the_best() -> None:
    assert forgetting(of([[0.5], [0.6, 1.0], [0.9, 1.0, 1.0]])) == pytest.approx(((0.6 - 0.9) + 0) / 2)


def test_backward_transfer_counts_from_the_first() -> None:
    assert backward_transfer(MATRIX) == pytest.approx(((0.25 - 0.5) + (0.4 - 0.9)) / 2)


def test_intransigence_compares_the_diagonals() -> None:
    joint = of([[0.6], [0.1, 1.0], [0.2, 0.3, 0.7]])
    assert intransigence(MATRIX, joint) == pytest.approx((0.1 + 0.1 - 0.1) / 3)
    assert intransigence(of([[0.5], [0.75, 0.9]]), joint) == pytest.approx((0.1 + 0.1) / 2)


def test_one_stage_has_no_later_average_and_no_past() -> None:
    one = of([[0.7]], [3])
    assert average_incremental(one) == last(one) == pytest.approx(0.7)
    assert all(math.isnan(metric(one)) for metric in (average_incremental_later, forgetting, backward_transfer))


def test_constant_accuracy_is_constant_whatever_the_counts() -> None:
    flat = of([[0.4] * (stage + 1) for stage in range(4)], [1, 50, 3, 9])
    values = {name: metric(flat) for name, metric in METRICS.items()}
    want = {"average_incremental": 0.4, "average_incremental_later": 0.4, "last": 0.4, "forgetting": 0, "backward_transfer": 0}
    assert values == pytest.approx(want)
