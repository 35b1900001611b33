"""RanPAC: ridge regression behind a wide random projection of pre-trained features (McDonnell et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.methods.shared import adapt_once, base_fit, stage_features
from nacre.models.adapters import Newest, adaptable
from nacre.models.model import Model
from nacre.models.pretrained import VIT
from nacre.models.readouts import Projected
from nacre.seeds import generator
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Adjust, Phase, Work


@dataclass(frozen=True, kw_only=True)
class RanPAC(Method):
    """Adapters learn the first stage; then sums over all samples of projected features give a ridge regression (algorithm 1).

    The sums, which are carried, take width squared times 8 bytes. Adapters see what the hidden layer sees, behind the norm. The ridge is
    chosen with the sums of all samples so far; the authors' code chooses it from the stage's alone.
    """

    family = "pre-trained"
    paper = "McDonnell et al., NeurIPS 2023"
    needs = frozenset({"pre-training"})
    by_class = ("cross",)

    backbone: str = VIT
    optim: Optim = Optim(lr=0.01, schedule="cosine", epochs=20, batch=48)
    bottleneck: int = 64
    """Of the adapters."""
    width: int = 10_000
    """Of the projection."""
    share: float = 0.2
    """Of the stage's samples on which the ridge is chosen, in (0, 1)."""

    def build(self, spec: ImageSpec) -> Model:
        """With rows behind the projection as readout."""
        trunk = adaptable(self.backbone, spec, self.bottleneck)
        return Model(trunk, Newest(trunk.width), spec, readout=Projected(trunk.width, self.width))

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Add adapters in the first stage."""
        adapt_once(knowledge.model, stage)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Adapt in the first stage; then one update."""
        yield from base_fit(self, knowledge, stage)
        yield Adjust("ridge", self.update)

    def update(self, work: Work) -> None:
        """Add the stage's samples to the sums, choose the ridge on the last of them, and solve."""
        k, readout, (found, labels) = work.knowledge, work.knowledge.model.readout, stage_features(work)
        assert isinstance(readout, Projected)
        order = torch.randperm(len(labels), generator=generator(work.seed, "ridge", work.stage.index)).to(labels.device)
        kept, held = order.tensor_split([len(order) - max(1, round(self.share * len(order)))])
        targets = F.one_hot(labels, work.stage.seen).double()
        none = torch.zeros(self.width, self.width, dtype=torch.float64, device=found.device)
        gram, cross = k.statistics.get("gram", none), k.statistics.get("cross", none[:0])
        sums = (gram, F.pad(cross, (0, 0, 0, work.stage.seen - len(cross))))
        sums = readout.added(sums, found[kept], targets[kept])
        ridge = readout.best_ridge(sums, found[held], targets[held])
        gram, cross = readout.added(sums, found[held], targets[held])
        readout.learn(torch.linalg.solve(gram + ridge * torch.eye(self.width).to(gram), cross.T).T)
        k.statistics |= {"gram": gram, "cross": cross}
