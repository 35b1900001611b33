"""Synaptic intelligence: importance gathered along the way (Zenke et al., ICML 2017, eq. 3-5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.stream import Stage
from nacre.losses.importance import grown
from nacre.losses.loss import Loss
from nacre.methods.shared import classification, elastic, keep, places, seen_samples
from nacre.training.gradients import Path
from nacre.training.knowledge import Knowledge, below
from nacre.training.method import Method
from nacre.training.phases import Adjust, Fit, Phase, Remember, Work


@dataclass(frozen=True, kw_only=True)
class SI(Method):
    """A spring at every parameter, as stiff as its steps lowered the loss, over the squared distance it went.

    The sum over stages is kept from being negative, as in the authors' code.
    """

    family = "weight regularization"
    paper = "Zenke et al., ICML 2017"
    by_class = ("importance/head.rows", "anchor/head.rows")

    strength: float = 0.1
    """c, of the penalty."""
    damping: float = 0.1
    """xi, added to the squared distance; above 0."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit along a path, then weigh the parameters; exemplars only where a budget is given."""
        spring, start = elastic(knowledge), places(knowledge.model)
        loss = Loss(classification=classification(knowledge, stage))
        loss = loss if spring is None else loss.adding(elastic=self.strength * spring)
        path = Path(knowledge.model, None if spring is None else (spring, self.strength))
        yield Fit(loss, seen_samples(knowledge, stage), knowledge.model, optim=self.optim_of(stage), gradient=path)

        def consolidate(work: Work) -> None:
            here = places(work.knowledge.model)
            old = grown(below("importance", work.knowledge.statistics), here)
            found = {name: way / ((here[name] - start[name]).square() + self.damping) for name, way in path.lengths().items()}
            keep(work.knowledge, {name: (old[name] + new).clamp_min(0) for name, new in found.items()}, here)

        yield Adjust("importance", consolidate)
        yield Remember()
