"""Terms that hold the model near its teacher.

Shapes: B samples, K classes the teacher knows.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from nacre.losses.loss import Step, Term


@dataclass(frozen=True)
class Distillation(Term):
    """Cross-entropy of the known classes' softened logits against the teacher's (Li & Hoiem, ECCV 2016, eq. 2-3).

    -sum softmax(old / T) log softmax(new / T), batch mean, without the factor T squared of Hinton et al.
    """

    temperature: float = 2.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}, but it must be above 0")

    def __call__(self, step: Step) -> Tensor:
        """Mean over the batch, in nats."""
        assert step.old is not None, "distillation needs Fit(teacher=...)"
        old = step.old.logits.detach()
        return distillation(step.out.logits[:, : old.shape[1]], old, self.temperature)


def distillation(new: Tensor, old: Tensor, temperature: float) -> Tensor:
    """Softened cross-entropy of logits [B, K] against logits [B, K]: a scalar, in nats."""
    return F.cross_entropy(new / temperature, (old / temperature).softmax(1))
