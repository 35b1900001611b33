"""Terms that compare the predicted with the true label.

Shapes: B samples, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from nacre.losses.loss import Step, Term


@dataclass(frozen=True)
class CrossEntropy(Term):
    """Softmax cross-entropy over the classes from `first` on; every sample must belong to one of them."""

    first: int = 0

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        return F.cross_entropy(step.out.logits[:, self.first :], step.batch.labels - self.first)
