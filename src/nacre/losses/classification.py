"""Terms that compare the predicted with the true label.

Shapes: B samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from nacre.losses.loss import Batch, Step, Term


@dataclass(frozen=True)
class CrossEntropy(Term):
    """Softmax cross-entropy over the classes from `first` on; every sample must belong to one of them."""

    first: int = 0

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        return cross_entropy(step.out.logits[:, self.first :], step.batch, self.first)


def cross_entropy(logits: Tensor, batch: Batch, first: int = 0) -> Tensor:
    """Mean cross-entropy of logits [B, K], whose first column is class `first`; of mixed images, both labels by their shares."""
    own = F.cross_entropy(logits, batch.labels - first, reduction="mean" if batch.partner is None else "none")
    if batch.partner is None or batch.share is None:
        return own
    other = F.cross_entropy(logits, batch.partner - first, reduction="none")
    return (batch.share * own + (1 - batch.share) * other).mean()
