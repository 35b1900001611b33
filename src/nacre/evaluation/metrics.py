"""From the accuracy matrix to numbers. All are shares; differences lie in [-1, 1]."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean

from nacre.evaluation.matrix import AccuracyMatrix

Metric = Callable[[AccuracyMatrix], float]


def seen(matrix: AccuracyMatrix, stage: int) -> float:
    """A_t: accuracy over all test images of the classes seen after a stage."""
    return matrix.over(stage, range(stage + 1))


def average_incremental(matrix: AccuracyMatrix) -> float:
    """Mean of A_1 ... A_T (Rebuffi et al., CVPR 2017)."""
    return mean(seen(matrix, stage) for stage in range(len(matrix)))


def average_incremental_later(matrix: AccuracyMatrix) -> float:
    """Mean of A_2 ... A_T; NaN with one stage."""
    return mean(seen(matrix, stage) for stage in range(1, len(matrix))) if len(matrix) > 1 else float("nan")


def last(matrix: AccuracyMatrix) -> float:
    """A_T."""
    return seen(matrix, len(matrix) - 1)


def forgetting(matrix: AccuracyMatrix) -> float:
    """Mean over earlier stages of the best accuracy their classes ever had minus the last (Chaudhry et al., ECCV 2018, eq. 3).

    NaN with one stage; negative where the classes were never better than at the end.
    """
    end = len(matrix) - 1
    return mean(max(matrix[t, j] for t in range(j, end)) - matrix[end, j] for j in range(end)) if end else float("nan")


def backward_transfer(matrix: AccuracyMatrix) -> float:
    """Mean over earlier stages of the last accuracy minus the first (Lopez-Paz & Ranzato, NeurIPS 2017, eq. 3); NaN with one stage."""
    end = len(matrix) - 1
    return mean(matrix[end, j] - matrix[j, j] for j in range(end)) if end else float("nan")


def intransigence(matrix: AccuracyMatrix, joint: AccuracyMatrix) -> float:
    """Mean over stages of joint training's accuracy on the new classes minus this run's (Chaudhry et al., ECCV 2018, eq. 4)."""
    return mean(joint[t, t] - matrix[t, t] for t in range(len(matrix)))


METRICS: dict[str, Metric] = {
    "average_incremental": average_incremental,
    "average_incremental_later": average_incremental_later,
    "last": last,
    "forgetting": forgetting,
    "backward_transfer": backward_transfer,
}
