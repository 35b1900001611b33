"""Metrics, scores and probes against numbers worked out by hand or by brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from nacre.errors import NacreError
from nacre.evaluation import metrics, scores
from nacre.evaluation.matrix import AccuracyMatrix
from nacre.evaluation.probes import cka, drift, linear_probe, mahalanobis

ROWS = [[0.9], [0.5, 0.8], [0.6, 0.3, 1.0]]


@pytest.fixture
def matrix() -> AccuracyMatrix:
    found = AccuracyMatrix([10, 30, 60])
    for stage, row in enumerate(ROWS):
        found.record(stage, row)
    return found


def test_metrics_by_hand(matrix: AccuracyMatrix) -> None:
    second, third = (0.5 * 10 + 0.8 * 30) / 40, (0.6 * 10 + 0.3 * 30 + 1.0 * 60) / 100
    assert metrics.last(matrix) == pytest.approx(third)
    assert metrics.average_incremental(matrix) == pytest.approx((0.9 + second + third) / 3)
    assert metrics.average_incremental_later(matrix) == pytest.approx((second + third) / 2)
    assert metrics.forgetting(matrix) == pytest.approx(((0.9 - 0.6) + (0.8 - 0.3)) / 2)
    assert metrics.backward_transfer(matrix) == pytest.approx(((0.6 - 0.9) + (0.3 - 0.8)) / 2)
    joint = AccuracyMatrix()
    for stage in range(3):
        joint.record(stage, [1.0] * (stage + 1))
    assert metrics.intransigence(matrix, joint) == pytest.approx((0.1 + 0.2 + 0.0) / 3)


def test_forgetting_counts_from_the_best_not_the_first() -> None:
    matrix = AccuracyMatrix()
    for stage, row in enumerate([[0.2], [0.9, 1.0], [0.5, 1.0, 1.0]]):
        matrix.record(stage, row)
    assert metrics.forgetting(matrix) == pytest.approx((0.4 + 0.0) / 2)


def test_one_stage_has_no_forgetting() -> None:
    matrix = AccuracyMatrix()
    matrix.record(0, [0.5])
    assert metrics.last(matrix) == 0.5
    assert all(math.isnan(metric(matrix)) for metric in (metrics.forgetting, metrics.backward_transfer, metrics.average_incremental_later))


def test_rows_come_in_order(matrix: AccuracyMatrix) -> None:
    for stage, row in ((2, [1.0] * 3), (4, [1.0] * 5), (3, [1.0] * 3)):
        with pytest.raises(NacreError, match="not the next"):
            matrix.record(stage, row)
    assert matrix[2, 1] == 0.3
    assert len(matrix) == 3


def test_calibration_is_its_definition() -> None:
    draw = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 4, generator=draw) * 2, torch.randint(0, 4, (200,), generator=draw)
    p = np.exp(logits.double().numpy())
    p /= p.sum(1, keepdims=True)
    confidence, right = p.max(1), p.argmax(1) == labels.numpy()
    ece = 0.0
    for low in range(15):
        inside = (confidence > low / 15) & (confidence <= (low + 1) / 15)
        if inside.any():
            ece += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    found = scores.calibration(logits, labels)
    assert found["ece"] == pytest.approx(ece)
    assert found["nll"] == pytest.approx(-np.log(p[np.arange(200), labels]).mean())
    assert found["brier"] == pytest.approx(((p - np.eye(4)[labels]) ** 2).sum(1).mean())


def test_errors_part_by_direction() -> None:
    labels, answers = torch.tensor([0, 0, 1, 2, 3, 3]), torch.tensor([0, 1, 3, 0, 3, 2])
    split = scores.error_split(answers, labels, known=2)
    assert split == pytest.approx(dict.fromkeys(("old_to_old", "old_to_new", "new_to_old", "new_to_new"), 1 / 6))
    assert scores.confusion(answers, labels, 4) == [[1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 1, 1]]


def test_detection_by_brute_force() -> None:
    draw = torch.Generator().manual_seed(0)
    seen, unseen = torch.randn(60, generator=draw), torch.randn(40, generator=draw) + 1
    found = scores.detection(seen, unseen)
    wins = [(u > s) + 0.5 * (u == s) for u in unseen.tolist() for s in seen.tolist()]
    assert found["auroc"] == pytest.approx(np.mean(wins))
    limit = np.quantile(seen.double().numpy(), 0.95)
    assert found["fpr95"] == pytest.approx(np.mean(unseen.numpy() <= limit))


def test_cka_does_not_see_rotation_and_scale() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(50, 6, generator=draw)
    turn = torch.linalg.qr(torch.randn(6, 6, generator=draw))[0]
    assert cka(x, 3 * x @ turn + 2) == pytest.approx(1)
    assert cka(x, torch.randn(50, 6, generator=draw)) < 0.5


def test_drift_of_a_translation_is_its_length_over_the_spread() -> None:
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 2
    spread = [x[labels == c].sub(x[labels == c].mean(0)).square().sum(1).mean().sqrt() for c in range(2)]
    found = drift(x, x + torch.tensor([3.0, 0, 4.0]), labels)
    assert found["distance"] == pytest.approx(float(np.mean([5 / s for s in spread])), rel=1e-5)
    assert found["cka"] == pytest.approx(1)
    assert math.isnan(drift(x, x[:, :2], labels)["distance"])


def test_mahalanobis_is_its_definition() -> None:
    rng = np.random.default_rng(0)
    reference, labels, x = rng.normal(size=(50, 3)), np.arange(50) % 2, rng.normal(size=(4, 3))
    means = np.stack([reference[labels == c].mean(0) for c in range(2)])
    centred = reference - means[labels]
    covariance = centred.T @ centred / 50
    covariance += 0.01 * covariance.diagonal().mean() * np.eye(3)
    want = [min((v - m) @ np.linalg.inv(covariance) @ (v - m) for m in means) for v in x]
    assert mahalanobis(torch.tensor(x), torch.tensor(reference), torch.tensor(labels)).tolist() == pytest.approx(want, rel=1e-4)


def test_the_probe_separates_what_a_line_separates() -> None:
    x = torch.randn(80, 2, generator=torch.Generator().manual_seed(0))
    line, ring = (x[:, 0] > 0).long(), (x.norm(dim=1) > 1.2).long()
    assert linear_probe(x[:40], line[:40], x[40:], line[40:]) > 0.9
    assert linear_probe(x[:40], ring[:40], x[40:], ring[40:]) < 0.9
