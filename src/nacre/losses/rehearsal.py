"""Terms over a batch whose first samples are new and whose others were remembered and joined the step.

Shapes: B samples, `fresh` of them new; K classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.losses.loss import Step, Term


def parts(step: Step) -> tuple[slice, slice]:
    """The new samples, and the remembered."""
    fresh = len(step.batch.labels) if step.batch.fresh is None else step.batch.fresh
    return slice(fresh), slice(fresh, None)


@dataclass(frozen=True)
class NewCrossEntropy(Term):
    """Cross-entropy of the new samples."""

    unmixed = True

    present: bool = False
    """Among the classes that are present in the batch's new samples only (Caccia et al., ICLR 2022, eq. 4: ER-ACE)."""

    def __call__(self, step: Step) -> Tensor:
        """Mean over the new samples, in nats."""
        new, _ = parts(step)
        logits, labels = step.out.logits[new], step.batch.labels[new]
        if self.present:
            there = torch.zeros(logits.shape[1], dtype=torch.bool, device=logits.device).index_fill(0, labels, True)
            logits = logits.masked_fill(~there, -torch.inf)
        return F.cross_entropy(logits, labels)


@dataclass(frozen=True)
class RememberedCrossEntropy(Term):
    """Cross-entropy over all classes of the remembered samples; of the second half of them where another term has the first."""

    unmixed = True

    half: bool = False

    def __call__(self, step: Step) -> Tensor:
        """Mean over them, in nats; 0 where there are none."""
        _, old = parts(step)
        labels = step.batch.labels[old]
        which = slice(len(labels) // 2 if self.half else 0, None)
        total = F.cross_entropy(step.out.logits[old][which], labels[which], reduction="sum")
        return total / max(1, len(labels[which]))


@dataclass(frozen=True)
class Dark(Term):
    """Squared error of logits against those stored beside the first half of the remembered samples (Buzzega et al., NeurIPS 2020).

    Only classes that were known when the logits were stored count: heads grow here, where the paper's are there from the start.
    """

    unmixed = True

    def __call__(self, step: Step) -> Tensor:
        """Mean over samples and known classes; 0 where nothing is remembered."""
        _, old = parts(step)
        logits = step.out.logits[old]
        count = len(logits) // 2
        if step.batch.stored is None or not count:
            return step.out.logits.sum() * 0
        stored = step.batch.stored[:count]
        known = stored.isfinite()
        error = torch.where(known, logits[:count, : stored.shape[1]] - stored.clamp_min(-1e30), 0)
        return error.square().sum() / known.sum()
