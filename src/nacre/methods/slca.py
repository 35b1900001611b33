"""SLCA: a slow learner with classifier alignment (Zhang et al., ICCV 2023)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.losses.prototypes import GaussianReplay
from nacre.methods.shared import joined_means, stage_features
from nacre.models.pretrained import VIT
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Adjust, Fit, Phase, Work


@dataclass(frozen=True, kw_only=True)
class SLCA(Method):
    """The backbone learns at a hundredth of the head's rate; then features drawn by class align the head (eq. 2-4).

    Drawn features come in as many steps as the stage has batches, every class equally often in each. Logits are normalised as a
    whole, as in the paper; the authors' code averages the norms of the stages' parts, and draws old means nearer to zero. The
    next stage goes on from the aligned head; theirs from the head before alignment.
    """

    family = "pre-trained"
    paper = "Zhang et al., ICCV 2023"
    needs = frozenset({"pre-training"})
    by_class = ("count", "mean", "covariance")

    backbone: str = VIT
    optim: Optim = Optim(lr=0.01, schedule="multi-step", milestones=(0.9,), epochs=20, batch=128)
    slow: float = 0.01
    """Rate of the backbone in units of the head's, above 0."""
    balanced: Optim = Optim(lr=0.01, schedule="cosine", epochs=5, batch=128)
    """How the head is aligned when a stage ends."""
    drawn: int = 256
    """Features of every class in an epoch of that."""
    temperature: float = 0.1
    """Of the normalised logits."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit to the classes at hand, take their statistics, align the head."""
        model, loss = knowledge.model, Loss(classification=CrossEntropy(first=stage.first))
        yield Fit(loss, stage.train, model, optim=self.optim_of(stage), pace={model.backbone: self.slow})
        yield Adjust("class statistics", measure)
        if stage.known:
            means, covariance = knowledge.statistics["mean"].float(), knowledge.statistics["covariance"]
            factors = torch.linalg.cholesky(covariance.double()).float()
            each = math.ceil(self.drawn / math.ceil(len(stage.train) / self.balanced.batch))
            replay = GaussianReplay(means, factors, each, self.temperature, int(torch.randint(2**40, ())))
            yield Fit(Loss(alignment=replay), stage.train, model, only=[model.head], optim=self.balanced)


def measure(work: Work, ridge: float = 1e-4) -> None:
    """Mean and covariance of every class at hand, over all samples of it so far; the diagonal gets what makes it definite."""
    statistics, (found, labels) = work.knowledge.statistics, stage_features(work)
    eye, means = torch.eye(found.shape[1]).to(found), joined_means(work.knowledge, found, labels, work.stage.seen)
    old = statistics.get("covariance", found.new_zeros(0, *eye.shape))
    covariance = torch.cat([old, eye.expand(work.stage.seen - len(old), *eye.shape)])
    for label in labels.unique().tolist():
        count, gap = means.before[0][label], means.before[1][label] - means.mean[label]
        centred = found[labels == label] - means.mean[label]
        scatter = (count - 1).clamp_min(0) * covariance[label] + count * gap[:, None] * gap + centred.T @ centred
        covariance[label] = (scatter / (means.count[label] - 1).clamp_min(1)).float() + ridge * eye
    statistics["covariance"] = covariance
