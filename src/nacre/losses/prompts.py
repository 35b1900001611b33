"""Terms of methods that learn prompts.

Shapes: B samples; N blocks, M components, D numbers each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nacre.losses.loss import Step, Term


@dataclass(frozen=True)
class Pull(Term):
    """Keys that were chosen are drawn to the queries (Wang et al., CVPR 2022 and ECCV 2022, section 4).

    For a backbone that tells `near`, the cosines of the chosen keys: [B, chosen].
    """

    def __call__(self, step: Step) -> Tensor:
        """Cosine distance, summed over a sample's keys: the mean over the batch, 0 or more."""
        return (1 - step.out.aux["near"]).sum(1).mean()


@dataclass(frozen=True)
class Orthogonality(Term):
    """Keys, attention and prefixes of a block's components are to be orthonormal (Smith et al., CVPR 2023, section 4).

    For a backbone that tells all three: [N, M, numbers of each].
    """

    def __call__(self, step: Step) -> Tensor:
        """Sum over the three and over blocks, 0 or more; of no sample in particular."""
        return torch.stack([unlike_orthonormal(step.out.aux[name]) for name in ("key", "attention", "prefixes")]).sum()


def unlike_orthonormal(rows: Tensor) -> Tensor:
    """Mean square of an entry of B B^T - 1, summed over the matrices B, [N, M, D]."""
    gram = rows @ rows.transpose(1, 2)
    return (gram - torch.eye(rows.shape[1], device=rows.device)).square().mean((1, 2)).sum()
