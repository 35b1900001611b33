"""Elastic weight consolidation (Kirkpatrick et al., PNAS 2017, eq. 3), and its online form (Schwarz et al., ICML 2018, eq. 8-9)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from nacre.data.stream import Stage
from nacre.losses.importance import grown, log_likelihood
from nacre.losses.loss import Loss
from nacre.methods.shared import classification, elastic, importance_of, keep, places, seen_samples
from nacre.training.knowledge import Knowledge, below
from nacre.training.method import Method
from nacre.training.phases import Adjust, Fit, Phase, Remember, Work


@dataclass(frozen=True, kw_only=True)
class EWC(Method):
    """A spring at every parameter, as stiff as the parameter's Fisher information on earlier stages.

    The diagonal of the Fisher information is estimated from gradients sample by sample, with labels drawn from the model.
    One spring per stage adds up to a single one: stiffness sum F_t, rest at sum F_t theta_t / sum F_t; so the sum over
    stages of the paper's penalties costs two numbers per parameter, however many stages there were. It is exact but for `limit`.
    Labels are drawn from the classes that compete in the fit: without exemplars the new ones alone, as within the paper's tasks.
    """

    family = "weight regularization"
    paper = "Kirkpatrick et al., PNAS 2017"
    by_class = ("importance/head.rows", "anchor/head.rows")

    strength: float = 1000.0
    """Lambda: the loss holds half of it times the penalty."""
    limit: float = 1e-4
    """Largest Fisher information that counts: a stiffer spring than learning rate and strength allow would throw weights about."""
    samples: int = 1024
    """Images of the stage on which the Fisher information is estimated."""
    online: bool = False
    """One spring that rests where the last stage ended, and whose earlier stiffness fades by `decay`."""
    decay: float = 1.0
    """Gamma of the online form, in [0, 1]."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, then weigh the parameters; exemplars only where a budget is given."""
        spring = elastic(knowledge)
        loss = Loss(classification=classification(knowledge, stage))
        stiffness = self.strength / 2 * (self.decay if self.online else 1.0)
        loss = loss if spring is None else loss.adding(elastic=stiffness * spring)
        yield Fit(loss, seen_samples(knowledge, stage), knowledge.model, optim=self.optim_of(stage))
        yield Adjust("Fisher information", self.consolidate)
        yield Remember()

    def consolidate(self, work: Work) -> None:
        """Join this stage's springs with the earlier ones."""
        k, first = work.knowledge, classification(work.knowledge, work.stage).first
        fisher = importance_of(work, lambda logits, uniform: log_likelihood(logits[:, first:], uniform), 2, self.samples)
        fisher = {name: value.clamp_max(self.limit) for name, value in fisher.items()}
        here = places(k.model)
        old, rest = (grown(below(kind, k.statistics), here) for kind in ("importance", "anchor"))
        if self.online:
            fisher = {name: self.decay * old[name] + new for name, new in fisher.items()}
        else:
            both = {name: old[name] + new for name, new in fisher.items()}
            pulled = {name: old[name] * rest[name] + fisher[name] * here[name] for name in fisher}
            here = {name: torch.where(total > 0, pulled[name] / total.clamp_min(1e-30), here[name]) for name, total in both.items()}
            fisher = both
        keep(k, fisher, here)
