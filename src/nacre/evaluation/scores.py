"""From answers and true labels to numbers.

Shapes: n images, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def calibration(logits: Tensor, labels: Tensor, bins: int = 15) -> dict[str, float]:
    """How far confidence is from accuracy.

    Args:
        logits: [n, K].
        labels: [n], int64.
        bins: of equal width over the confidence.

    Returns:
        `ece`, the expected calibration error (Guo et al., ICML 2017, eq. 3), in [0, 1]; `nll` in nats; `brier`, the squared
        error of the whole distribution, in [0, 2]. All NaN for no image.
    """
    probabilities = logits.double().softmax(1)
    confidence, answer = probabilities.max(1)
    right = (answer == labels).double()
    which = (confidence * bins).ceil().clamp(1, bins).long() - 1
    gap = torch.zeros(bins, dtype=torch.float64, device=logits.device).index_add(0, which, right - confidence)
    truth = F.one_hot(labels, logits.shape[1]).double()
    return {
        "ece": float(gap.abs().sum() / len(labels)) if len(labels) else float("nan"),
        "nll": float(F.cross_entropy(logits.double(), labels)),
        "brier": float((probabilities - truth).square().sum(1).mean()),
    }


def error_split(answers: Tensor, labels: Tensor, known: int) -> dict[str, float]:
    """Shares of all images [n] that are wrong, by whether truth and answer are old (below `known`) or new classes."""
    wrong, old, told_old = answers != labels, labels < known, answers < known
    sides = {
        "old_to_new": old & ~told_old,
        "new_to_old": ~old & told_old,
        "old_to_old": old & told_old,
        "new_to_new": ~old & ~told_old,
    }
    return {name: float((wrong & side).double().mean()) for name, side in sides.items()}


def confusion(answers: Tensor, labels: Tensor, classes: int) -> list[list[int]]:
    """Counts [K][K]: row = true class, column = answer."""
    counts: list[list[int]] = torch.bincount(labels * classes + answers, minlength=classes**2).view(classes, classes).tolist()
    return counts


def detection(seen: Tensor, unseen: Tensor) -> dict[str, float]:
    """How well a novelty score, high for what is unlike anything known, tells unseen from seen classes.

    Args:
        seen: scores of images of seen classes.
        unseen: scores of images of unseen classes.

    Returns:
        `auroc`, and `fpr95`: the share of unseen images taken for seen where 95 % of the seen ones are (FPR at 95 % TPR).
    """
    from sklearn.metrics import roc_auc_score

    truth = torch.cat([torch.zeros(len(seen)), torch.ones(len(unseen))])
    limit = seen.kthvalue(-(-19 * len(seen) // 20)).values  # the lowest that takes 95 % of the seen ones for seen
    auroc = roc_auc_score(truth.numpy(), torch.cat([seen, unseen]).cpu().numpy())
    return {"auroc": float(auroc), "fpr95": float((unseen <= limit).double().mean())}
