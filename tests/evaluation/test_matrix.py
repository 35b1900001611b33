"""The accuracy matrix: rows in order, columns weighed by their test images."""

from __future__ import annotations

import math

import pytest

from nacre.errors import NacreError
from nacre.evaluation.matrix import AccuracyMatrix


def test_columns_weigh_by_their_images() -> None:
    matrix = AccuracyMatrix([1, 4, 5])
    for stage, row in enumerate([[1.0], [0.0, 0.5], [1.0, 0.25, 0.6]]):
        matrix.record(stage, row)
    assert matrix.over(2, range(3)) == pytest.approx((1 + 1 + 3) / 10)
    assert matrix.over(2, range(2)) == pytest.approx((1 + 1) / 5)
    assert matrix.over(1, range(1, 2)) == pytest.approx(0.5)
    assert matrix[2, 1] == 0.25
    assert len(matrix) == 3


def test_without_counts_columns_weigh_alike() -> None:
    matrix = AccuracyMatrix()
    matrix.record(0, [1.0])
    matrix.record(1, [0.5, 0.2])
    assert matrix.over(1, range(2)) == pytest.approx(0.35)


def test_no_column_has_no_accuracy() -> None:
    matrix = AccuracyMatrix([3])
    matrix.record(0, [1.0])
    assert math.isnan(matrix.over(0, range(0)))


@pytest.mark.parametrize(("stage", "row"), [(0, [1.0]), (2, [1.0, 1.0, 1.0]), (1, [1.0]), (1, [1.0, 1.0, 1.0]), (1, [])])
def test_rows_come_in_their_order_and_length(stage: int, row: list[float]) -> None:
    matrix = AccuracyMatrix()
    matrix.record(0, [0.5])
    with pytest.raises(NacreError, match="row 1 wants 2"):
        matrix.record(stage, row)
    assert len(matrix) == 1


def test_what_is_recorded_is_copied() -> None:
    row, counts = [0.5], [7]
    matrix = AccuracyMatrix(counts)
    matrix.record(0, row)
    row[0], counts[0] = 0.0, 0
    assert matrix.over(0, range(1)) == 0.5
