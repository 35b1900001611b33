"""Gradient projection memory: weights move only where earlier inputs do not see it (Saha et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.models.spaces import widen_spaces
from nacre.seeds import generator
from nacre.training.gradients import Project
from nacre.training.inference import evaluating
from nacre.training.knowledge import Knowledge, below
from nacre.training.method import Method
from nacre.training.phases import Adjust, Fit, Phase, Work


@dataclass(frozen=True, kw_only=True)
class GPM(Method):
    """Keep, for every layer, the space that its inputs span, and take it out of all later gradients (algorithm 1).

    After the first stage batch norms are held still and there is no weight decay, for both would move old answers. Labels are
    compared among the new classes alone, so the head is left alone; the paper has a head per task. The authors raise the
    threshold a little at every task.
    """

    family = "weight regularization"
    paper = "Saha et al., ICLR 2021"
    varying = True

    threshold: float = 0.97
    """epsilon: share of the inputs' squared length that the space must hold, in (0, 1]."""
    samples: int = 128
    """Images whose inputs are looked at."""
    columns: int = 4096
    """Most input patches of a layer."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, orthogonal to what was kept; then keep what the stage's inputs add."""
        model, bases = knowledge.model, below("basis", knowledge.statistics)
        loss, optim = Loss(classification=CrossEntropy(first=stage.first)), self.optim_of(stage)
        if bases:
            norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
            optim = replace(optim, weight_decay=0.0)
            yield Fit(loss, stage.train, model, still=norms, optim=optim, gradient=Project(bases))
        else:
            yield Fit(loss, stage.train, model, optim=optim)
        yield Adjust("input spaces", self.keep)

    def keep(self, work: Work) -> None:
        """Join the space of this stage's inputs to that of the earlier ones, layer by layer."""
        k, draw = work.knowledge, generator(work.seed, "inputs", work.stage.index)
        some = work.stage.train.take(torch.randperm(len(work.stage.train), generator=draw)[: self.samples])
        bases = below("basis", k.statistics)
        with evaluating(k.model):
            widen_spaces(bases, k.model, k.model.normalise(work.runtime.images(some.pixels())), self.threshold, self.columns, draw)
        k.statistics |= {f"basis/{name}": basis for name, basis in bases.items()}
