"""How unlike anything it knows an image is, from the error of its reconstruction and the energy of its logits.

Shapes: B images, C channels, H x W pixels, K classes, S signals.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

PRIOR = 10.0
"""So many images of all classes stand beside those of one when its mean and deviation are estimated."""
FLAT = 0.05
"""Added to an image's detail, in fractions of variance: an image of one colour has none."""


def signals(images: Tensor, reconstruction: Tensor | None, logits: Tensor) -> Tensor:
    """What speaks for novelty, each the higher the more: [B, S].

    Args:
        images: [B, C, H, W], normalised.
        reconstruction: the same shape; None without a decoder.
        logits: [B, K].

    Returns:
        The energy, minus log-sum-exp of the logits (Liu et al., NeurIPS 2020, eq. 4); and, with a reconstruction, the logarithm of
        the unexplained variance over the image's detail, the mean squared difference of neighbouring pixels, because plain images
        are reconstructed well whatever they show.
    """
    energy = -logits.logsumexp(1)
    if reconstruction is None:
        return energy[:, None]
    error = (reconstruction - images).square().mean((1, 2, 3))
    across = (images[:, :, :, 1:] - images[:, :, :, :-1]).square().mean((1, 2, 3))
    down = (images[:, :, 1:] - images[:, :, :-1]).square().mean((1, 2, 3))
    return torch.stack([energy, (error / (across + down + FLAT)).log()], 1)


class Novelty(nn.Module):
    """Signals against what is usual for the class that is answered: 0 is usual, 1 is the limit that few known images exceed.

    Args:
        tables: `mean` and `deviation` [K, S] of the signals by answered class, and `range` [2], the middle and the limit of
            their mean.
    """

    mean: Tensor
    deviation: Tensor
    range: Tensor

    def __init__(self, tables: Mapping[str, Tensor]) -> None:
        nn.Module.__init__(self)
        for name in ("mean", "deviation", "range"):
            self.register_buffer(name, tables[name].float())

    def raw(self, found: Tensor, answers: Tensor) -> Tensor:
        """Mean over signals [B, S] in deviations from what is usual for the answers [B]: [B]."""
        return ((found - self.mean[answers]) / self.deviation[answers]).mean(1)

    def forward(self, images: Tensor, reconstruction: Tensor | None, logits: Tensor) -> Tensor:
        """Novelty of normalised images [B, C, H, W] with their reconstruction and logits [B, K]: [B]."""
        raw = self.raw(signals(images, reconstruction, logits), logits.argmax(1))
        return (raw - self.range[0]) / (self.range[1] - self.range[0])


def calibrated(found: Tensor, answers: Tensor, classes: int, alarms: float = 0.05) -> dict[str, Tensor]:
    """The tables of `Novelty` from images of known classes that training did not see.

    Every class's mean and deviation are those of its own images and of `PRIOR` images of all classes. The limit is the quantile
    that a further such image exceeds with the probability `alarms` (Vovk et al. 2005, inductive conformal prediction), where
    every image was measured without its own share in the mean.

    Args:
        found: signals [n, S].
        answers: [n], the classes answered.
        classes: K.
        alarms: in (0, 1).
    """
    found = found.double().cpu()
    answers = answers.cpu()
    member = torch.nn.functional.one_hot(answers, classes).double()
    count = member.sum(0)[:, None]
    middle = found.mean(0)
    spread = found.var(0, correction=0).clamp_min(1e-8)
    mean = (member.T @ found + PRIOR * middle) / (count + PRIOR)
    squares = member.T @ (found - mean[answers]).square()
    deviation = ((squares + PRIOR * spread) / (count + PRIOR)).sqrt()
    others = mean[answers] + (mean[answers] - found) / (count[answers] + PRIOR - 1)  # the mean without the image itself
    raw = ((found - others) / deviation[answers]).mean(1).sort().values
    rank = min(len(raw), -(-int((len(raw) + 1) * (1 - alarms) * 1000) // 1000))
    limit = raw[rank - 1]
    range_ = torch.stack([raw.median(), torch.maximum(limit, raw.median() + 1e-3)])
    return {"mean": mean.float(), "deviation": deviation.float(), "range": range_.float()}
