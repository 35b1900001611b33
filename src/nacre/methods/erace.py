"""Experience replay with an asymmetric cross-entropy (Caccia et al., ICLR 2022, eq. 4 and algorithm 1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.memory import PerClass
from nacre.data.replay import Rehearsal
from nacre.data.stream import Stage
from nacre.losses.loss import Loss
from nacre.losses.rehearsal import NewCrossEntropy, RememberedCrossEntropy
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Fit, Phase, Remember


@dataclass(frozen=True, kw_only=True)
class ERACE(Method):
    """New images compete among the classes of their batch alone, remembered ones among all.

    The paper learns online with a reservoir, which holds images of the current classes too; so here exemplars are chosen
    when a stage begins, as `memory` says (by herding; a reservoir is nearer to `selection = "random"`), and join every step, in one forward
    pass with the new ones. The authors' head answers by cosines; here it is `head`'s choice, linear.
    """

    family = "replay"
    paper = "Caccia et al., ICLR 2022"
    budget = PerClass(20)
    needs = frozenset({"exemplars"})

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """The exemplars, then one fit."""
        yield Remember()
        loss = Loss(classification=NewCrossEntropy(present=stage.known > 0))
        loss = loss.adding(rehearsal=RememberedCrossEntropy()) if len(knowledge.memory) else loss
        joins = Rehearsal(knowledge.memory.samples())
        yield Fit(loss, stage.train, knowledge.model, optim=self.optim_of(stage), rehearsal=joins)
