"""Large scale incremental learning: two parameters correct the bias towards new classes (Wu et al., CVPR 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from nacre.data.memory import PerClass
from nacre.data.source import Samples
from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.methods.shared import distilling_fit, seen_samples
from nacre.models.heads import BiasCorrected
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Fit, Phase, Remember


@dataclass(frozen=True, kw_only=True)
class BiC(Method):
    """Distil on all but a balanced held-out part, on which the new logits' scale and shift are then learnt (section 4, eq. 1-5).

    The pairs of earlier stages stay, since the teacher answers with them.
    """

    family = "representation"
    paper = "Wu et al., CVPR 2019"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "old model"})

    head: str = "bias-corrected"
    temperature: float = 2.0
    """Of the distillation."""
    share: float = 0.1
    """Of every class's exemplars that is held out, and as many images of every new class, in (0, 1); at least one."""
    correcting: Optim = Optim(lr=0.05, weight_decay=0.0, schedule="cosine", epochs=50)
    """How scale and shift are learnt; rate and length are our own."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, correct, remember."""
        head = knowledge.model.head
        assert isinstance(head, BiasCorrected), "BiC needs --head bias-corrected"
        everything = seen_samples(knowledge, stage)
        held = self.held_out(everything, stage) if len(knowledge.memory) else torch.zeros(len(everything), dtype=torch.bool)
        fit = distilling_fit(knowledge, stage, self.temperature, self.optim_of(stage), everything.take(~held))
        yield replace(fit, still=[head.pairs])
        if held.any():
            loss = Loss(classification=CrossEntropy())
            yield Fit(loss, everything.take(held), knowledge.model, only=[head.pairs[-1]], optim=self.correcting)
        yield Remember()

    def held_out(self, samples: Samples, stage: Stage) -> torch.Tensor:
        """Which samples are held out, [n]: equally many of every class, a share of the scarcest known class's exemplars."""
        count = torch.bincount(samples.labels, minlength=stage.seen)
        some = max(1, round(self.share * int(count[count > 0].min())))
        shuffled = torch.randperm(len(samples))
        order = shuffled[samples.labels[shuffled].argsort(stable=True)]
        rank = torch.arange(len(samples)) - (count.cumsum(0) - count)[samples.labels[order]]
        return torch.zeros(len(samples), dtype=torch.bool).index_put((order[rank < some],), torch.tensor(True))
