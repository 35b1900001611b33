"""Experience replay in a single pass over a stream, with a reservoir (Chaudhry et al., 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nacre.data.memory import PerClass
from nacre.data.replay import Rehearsal
from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Adjust, Fit, Phase, Remember


@dataclass(frozen=True, kw_only=True)
class Online(Method):
    """See every image once, in small steps, each joined by as many images of a reservoir that takes in what just passed.

    Algorithm 1 of "On tiny episodic memories" with its reservoir (algorithm 2) held per class, so that the memory stays within its
    budget for each: of a class's images so far, every one is equally likely to be kept. Several epochs are several such passes.
    """

    family = "replay"
    paper = "Chaudhry et al., 2019"
    budget = PerClass(20)
    needs = frozenset({"exemplars"})
    by_class = ("arrived",)

    optim: Optim = Optim(lr=0.05, schedule="constant", epochs=1, batch=10)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, and keep what the reservoir holds."""
        memory, before = knowledge.memory, arrivals(knowledge, stage)
        worth = torch.cat([torch.rand(len(stage.train)), past_worth(memory.labels, before)])
        joins = Rehearsal(memory.samples(), worth=worth, quota=memory.quota(stage.seen))
        loss = Loss(classification=CrossEntropy())
        yield Fit(loss, stage.train, knowledge.model, optim=self.optim_of(stage), rehearsal=joins)
        yield Remember(worth=worth)
        after = before + torch.bincount(stage.train.labels, minlength=stage.seen)
        yield Adjust("arrivals", lambda work: work.knowledge.statistics.update(arrived=after))


def arrivals(knowledge: Knowledge, stage: Stage) -> Tensor:
    """How many images of each class came before this stage: [seen], int64."""
    count = torch.zeros(stage.seen, dtype=torch.long)
    known = knowledge.statistics.get("arrived", count[:0])
    count[: len(known)] = known.cpu()
    return count


def past_worth(labels: Tensor, arrived: Tensor) -> Tensor:
    """Worth [M] of exemplars, the most worthy of a class first: the smallest of as many uniform numbers as images of their class came."""
    worth = torch.empty(len(labels))
    for label in labels.unique().tolist():
        mine = labels == label
        worth[mine] = torch.rand(max(int(arrived[label]), int(mine.sum()))).sort().values[: int(mine.sum())]
    return worth
