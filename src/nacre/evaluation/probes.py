"""What the features are worth, how they move, and how unlike the known an image is.

Shapes: n images, D features, K classes.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor


def linear_probe(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> float:
    """Test accuracy, in [0, 1], of logistic regression on frozen, standardised features.

    Args:
        train: features [n, D].
        train_labels: [n].
        test: features [m, D].
        test_labels: [m].
    """
    answers = fit_linear(train, train_labels).predict(test.cpu().numpy())
    return float((answers == test_labels.cpu().numpy()).mean())


def fit_linear(features: Tensor, labels: Tensor):  # type: ignore[no-untyped-def]  # noqa: ANN201 - scikit-learn is untyped
    """Logistic regression with scikit-learn's own strength of L2, on standardised features [n, D] with labels [n]."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # 300 steps are the probe's definition, not a failure
        return make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(features.cpu().numpy(), labels.cpu().numpy())


def drift(before: Tensor, after: Tensor, labels: Tensor) -> dict[str, float]:
    """How far the features of the same images moved over a stage.

    Args:
        before: [n, D].
        after: [n, D'], by the new model.
        labels: [n].

    Returns:
        `distance`: of class means before and after, over the class's root mean square spread before, mean over classes;
        NaN where D' differs. `cka`: linear centred kernel alignment (Kornblith et al., ICML 2019, eq. 3), 1 is no change.
    """
    result = {"distance": float("nan"), "cka": cka(before, after)}
    if before.shape == after.shape:
        moved = []
        for label in labels.unique():
            old, new = before[labels == label], after[labels == label]
            spread = (old - old.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-12)
            moved.append((new.mean(0) - old.mean(0)).norm() / spread)
        result["distance"] = float(torch.stack(moved).mean())
    return result


def cka(first: Tensor, second: Tensor) -> float:
    """Linear CKA of two sets of features [n, D] and [n, D'] of the same images, in [0, 1]."""
    a, b = (features.double() - features.double().mean(0) for features in (first, second))
    return float((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()).clamp_min(1e-300))


def mahalanobis(features: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """Squared Mahalanobis distance to the nearest class (Lee et al., NeurIPS 2018, eq. 2), with one covariance for all.

    Args:
        features: [n, D].
        reference: [m, D], of samples of the known classes.
        labels: [m], theirs.

    Returns:
        [n]; high is unlike anything known. A hundredth of the mean variance is added to the covariance's diagonal, which
        few samples leave singular.
    """
    means = torch.stack([reference[labels == label].mean(0) for label in labels.unique()]).double()
    position = torch.searchsorted(labels.unique(), labels)
    centred = reference.double() - means[position]
    covariance = centred.T @ centred / len(centred)
    covariance += covariance.diagonal().mean().clamp_min(1e-12) * 0.01 * torch.eye(len(covariance), device=covariance.device)
    root = torch.linalg.cholesky(torch.linalg.inv(covariance))
    return torch.cdist(features.double() @ root, means @ root).square().min(1).values.float()
