"""Terms that compare the predicted with the true label.

Shapes: B samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.losses.loss import Batch, Step, Term
from nacre.models.expandable import Widening


@dataclass(frozen=True)
class CrossEntropy(Term):
    """Softmax cross-entropy over the classes from `first` on; every sample must belong to one of them."""

    first: int = 0
    temperature: float = 1.0
    """Of the logits."""

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        return cross_entropy(step.out.logits[:, self.first :] / self.temperature, step.batch, self.first)


def cross_entropy(logits: Tensor, batch: Batch, first: int = 0) -> Tensor:
    """Mean cross-entropy of logits [B, K], whose first column is class `first`; of mixed images, both labels by their shares."""
    own = F.cross_entropy(logits, batch.labels - first, reduction="mean" if batch.partner is None else "none")
    if batch.partner is None or batch.share is None:
        return own
    other = F.cross_entropy(logits, batch.partner - first, reduction="none")
    return (batch.share * own + (1 - batch.share) * other).mean()


@dataclass(frozen=True)
class MarginRanking(Term):
    """Samples of known classes score their own class above the nearest new ones by a margin (Hou et al., CVPR 2019, eq. 8).

    Scores are the cosines of a cosine head.
    """

    unmixed = True

    margin: float = 0.5
    nearest: int = 2
    """New classes of highest score that are compared with."""

    def __call__(self, step: Step) -> Tensor:
        """Mean over samples of known classes and their nearest new classes; 0 without such samples."""
        scale = step.model.head.scale
        assert isinstance(scale, Tensor), "margin ranking needs a cosine head"
        cosine, known = step.out.logits / scale, step.stage.known
        old = step.batch.labels < known  # a mask, not a choice of rows, whose number the step would have to wait for
        own = cosine.gather(1, step.batch.labels[:, None])
        rivals = cosine[:, known:].topk(min(self.nearest, cosine.shape[1] - known)).values
        return ((self.margin - own + rivals).clamp_min(0).mean(1) * old).sum() / old.sum().clamp_min(1)


@dataclass(frozen=True)
class NeighbourhoodComponents(Term):
    """Proxy-NCA with a margin, clipped at zero (Douillard et al., ECCV 2020, eq. 10); for a head with a learned scale.

    The margin is taken from the scaled cosine. In the units of the scale, as in the paper, it draws the scale down until samples
    are apart; with few classes to zero and below.
    """

    unmixed = True

    margin: float = 0.6

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, 0 or more."""
        logits, labels = step.out.logits, step.batch.labels[:, None]
        own = logits.gather(1, labels)[:, 0] - self.margin
        others = logits.scatter(1, labels, -torch.inf).logsumexp(1)
        return (others - own).clamp_min(0).mean()


@dataclass(frozen=True)
class Auxiliary(Term):
    """Cross-entropy of the newest branch alone, all known classes being one (Yan et al., CVPR 2021, eq. 5)."""

    unmixed = True

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        head = step.model.head
        assert isinstance(head, Widening), "an auxiliary loss needs a head that widens"
        return F.cross_entropy(head.newest(step.out.features), (step.batch.labels - step.stage.known + 1).clamp_min(0))


@dataclass(frozen=True)
class Enhancement(Term):
    """Cross-entropy of the newest branch alone over all classes seen (Wang et al., ECCV 2022, eq. 8: feature enhancement)."""

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        head = step.model.head
        assert isinstance(head, Widening), "feature enhancement needs a head that widens"
        return cross_entropy(head.newest(step.out.features), step.batch)


class BalancedCrossEntropy(Term):
    """Cross-entropy of logits over class weights (Wang et al., ECCV 2022, eq. 7: logits alignment).

    Args:
        weights: of the classes, [K], above 0; a class with a larger weight must reach larger logits.
    """

    def __init__(self, weights: Tensor) -> None:
        self.weights = weights

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        return cross_entropy(step.out.logits / self.weights.to(step.out.logits.device), step.batch)


def effective_weights(counts: Tensor, beta: float) -> Tensor:
    """Weights of classes with so many samples [K], by effective numbers (Cui et al., CVPR 2019, eq. 2-4), with mean 1."""
    weights = (1 - beta) / (1 - beta ** counts.double())
    return (weights / weights.mean()).float()
