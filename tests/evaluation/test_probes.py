"""Probes: what they must and must not see."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from nacre.evaluation.probes import cka, drift, linear_probe, mahalanobis


def drawn(n: int, dim: int, seed: int = 0) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cka_is_hsic_over_its_roots() -> None:
    x, y = drawn(20, 3).numpy(), drawn(20, 5, 1).numpy() + drawn(20, 3).numpy()[:, :1]
    centre = np.eye(20) - 1 / 20

    def hsic(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.trace(centre @ (a @ a.T) @ centre @ (b @ b.T)))

    want = hsic(x, y) / math.sqrt(hsic(x, x) * hsic(y, y))
    assert cka(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(want)
    assert 0.1 < want < 0.9


@pytest.mark.parametrize("scale", [1e-7, 1e-4, 1.0, 1e6])
def test_cka_sees_no_rotation_no_scale_and_no_translation(scale: float) -> None:
    x, turn = drawn(40, 6), torch.linalg.qr(drawn(6, 6, 1))[0]
    assert cka(x, scale * (x @ turn + 3)) == pytest.approx(1)
    assert cka(scale * x, scale * x @ turn) == pytest.approx(1)
    assert cka(x, drawn(40, 6, 2)) < 0.5


def test_cka_of_features_that_tell_nothing_is_zero() -> None:
    assert cka(drawn(10, 3), torch.ones(10, 3)) == 0


def test_drift_of_a_translation_is_its_length_over_the_spread() -> None:
    labels = torch.tensor([0, 0, 0, 0, 2, 2])
    before = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1], [10, 3], [10, -3]])
    # class 0 lies at distance 1 from its mean, class 2 at 3; all move by (3, 4), that is by 5
    found = drift(before, before + torch.tensor([3.0, 4.0]), labels)
    assert found["distance"] == pytest.approx((5 / 1 + 5 / 3) / 2)
    assert found["cka"] == pytest.approx(1)


def test_drift_counts_every_class_alike_and_only_its_mean() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    before = torch.tensor([[1.0, 0], [-1, 0], [5, 1], [5, -1]])
    after = before.clone()
    after[:2] = torch.tensor([[0.0, 7], [0, -7]])  # turned and stretched about its mean
    after[2:] += torch.tensor([0.0, 2])
    assert drift(before, after, labels)["distance"] == pytest.approx((0 + 2) / 2)


def test_drift_of_nothing_is_none_and_of_other_widths_unknown() -> None:
    x, labels = drawn(12, 3), torch.arange(12) % 2
    assert drift(x, x.clone(), labels) == pytest.approx({"distance": 0, "cka": 1})
    assert math.isnan(drift(x, x[:, :2], labels)["distance"])
    assert 0 < drift(x, x[:, :2], labels)["cka"] < 1


@pytest.mark.parametrize(("m", "dim"), [(60, 4), (6, 9)])
def test_mahalanobis_is_numpys(m: int, dim: int) -> None:
    labels = np.array([4, 1, 7])[np.arange(m) % 3]
    reference = drawn(m, dim).numpy() * np.linspace(0.5, 3, dim) + labels[:, None]
    asked = drawn(50, dim, 1).numpy() * 3
    means = {label: reference[labels == label].mean(0) for label in (1, 4, 7)}
    covariance = sum(np.outer(x - means[c], x - means[c]) for x, c in zip(reference, labels, strict=True)) / m
    inverse = np.linalg.inv(covariance + 0.01 * np.trace(covariance) / dim * np.eye(dim))
    want = [min((x - mean) @ inverse @ (x - mean) for mean in means.values()) for x in asked]
    found = mahalanobis(*(torch.from_numpy(part) for part in (asked, reference, labels)))
    np.testing.assert_allclose(found.numpy(), want, rtol=1e-4)


def test_mahalanobis_of_a_class_mean_is_zero() -> None:
    reference, labels = drawn(40, 3), torch.arange(40) % 2
    means = torch.stack([reference[labels == label].mean(0) for label in (0, 1)])
    np.testing.assert_allclose(mahalanobis(means, reference, labels).numpy(), 0, atol=1e-9)


def test_mahalanobis_of_one_image_per_class_is_finite() -> None:
    assert mahalanobis(drawn(5, 3), drawn(2, 3, 1), torch.tensor([0, 1])).isfinite().all()


def test_the_probe_is_logistic_regression_on_standardised_features() -> None:
    x, asked = drawn(90, 4) * torch.tensor([1, 10, 100, 0.1]), drawn(60, 4, 1) * torch.tensor([1, 10, 100, 0.1])
    rule = torch.tensor([1, 0.1, 0.005, 12.0], dtype=torch.float64)
    labels, truth = ((part @ rule > 0).long() for part in (x, asked))
    mean, std = x.numpy().mean(0), x.numpy().std(0)
    model = LogisticRegression(max_iter=300).fit((x.numpy() - mean) / std, labels.numpy())
    want = (model.predict((asked.numpy() - mean) / std) == truth.numpy()).mean()
    assert linear_probe(x, labels, asked, truth) == pytest.approx(want)
    assert want > 0.9
    assert linear_probe(x, labels, asked, 1 - truth) == pytest.approx(1 - want)
