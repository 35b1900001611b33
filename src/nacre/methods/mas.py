"""Memory aware synapses (Aljundi et al., ECCV 2018, eq. 2-5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.stream import Stage
from nacre.losses.importance import grown, squared_length
from nacre.losses.loss import Loss
from nacre.methods.shared import classification, elastic, importance_of, keep, places, seen_samples
from nacre.training.knowledge import Knowledge, below
from nacre.training.method import Method
from nacre.training.phases import Adjust, Fit, Phase, Remember, Work


@dataclass(frozen=True, kw_only=True)
class MAS(Method):
    """A spring at every parameter, as stiff as the answer's squared length is sensitive to it; labels do not count.

    The paper adds up importance over stages; here it fades by `share`, from none before the first, as in the field's
    class-incremental survey. And no spring counts for stiffer than one that a step at the stage's highest rate brings to rest:
    it would throw its weight about ever farther. Importance is the mean over at most `samples` images, where the paper takes all.
    """

    family = "weight regularization"
    paper = "Aljundi et al., ECCV 2018"
    by_class = ("importance/head.rows", "anchor/head.rows")

    strength: float = 1.0
    """Lambda, of the penalty."""
    samples: int = 1024
    """Images of the stage on which importance is estimated."""
    share: float = 0.5
    """Of the earlier importance in the new, in [0, 1] (Masana et al., TPAMI 2022)."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, then weigh the parameters; exemplars only where a budget is given."""
        optim = self.optim_of(stage)
        spring = elastic(knowledge, 1 / (2 * self.strength * optim.lr) if self.strength else 0.0)
        loss = Loss(classification=classification(knowledge, stage))
        loss = loss if spring is None else loss.adding(elastic=self.strength * spring)
        yield Fit(loss, seen_samples(knowledge, stage), knowledge.model, optim=optim)
        yield Adjust("importance", self.consolidate)
        yield Remember()

    def consolidate(self, work: Work) -> None:
        """Mix this stage's importance with the earlier."""
        k, found = work.knowledge, importance_of(work, squared_length, 1, self.samples)
        old = grown(below("importance", k.statistics), found)
        keep(k, {n: self.share * old[n] + (1 - self.share) * new for n, new in found.items()}, places(k.model))
