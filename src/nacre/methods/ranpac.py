"""RanPAC: ridge regression behind a wide random projection of pre-trained features (McDonnell et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
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

RIDGES = tuple(10.0**power for power in range(-8, 9))
CHUNK = 512
"""Samples that are projected at once."""


@dataclass(frozen=True, kw_only=True)
class RanPAC(Method):
    """Adapters learn the first stage; then sums over all samples of projected features give a ridge regression (algorithm 1).

    The sums, which are carried, take width squared times 8 bytes. Adapters see what the hidden layer sees, behind the norm.
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
        sums = added(sums, readout, found[kept], targets[kept])
        ridge = chosen(sums, readout, found[held], targets[held])
        gram, cross = added(sums, readout, found[held], targets[held])
        readout.learn(torch.linalg.solve(gram + ridge * torch.eye(self.width).to(gram), cross.T).T)
        k.statistics |= {"gram": gram, "cross": cross}


Sums = tuple[Tensor, Tensor]
"""H'H [E, E] and Y'H [K, E] over samples, for projected features H and class indicators Y."""


def added(sums: Sums, readout: Projected, features: Tensor, targets: Tensor) -> Sums:
    """The sums with n more samples: features [n, D], targets [n, K]."""
    gram, cross = sums
    for x, y in zip(features.split(CHUNK), targets.split(CHUNK), strict=True):
        wide = readout.expanded(x).double()
        gram, cross = gram + wide.T @ wide, cross + y.T @ wide
    return gram, cross


def chosen(sums: Sums, readout: Projected, features: Tensor, targets: Tensor) -> float:
    """The ridge with the least squared error on n samples that are not in the sums (appendix F.6)."""
    gram, cross = sums
    values, vectors = torch.linalg.eigh(gram)
    inside, error = cross @ vectors, torch.zeros(len(RIDGES), dtype=torch.float64)
    for x, y in zip(features.split(CHUNK), targets.split(CHUNK), strict=True):
        turned = readout.expanded(x).double() @ vectors
        gaps = [turned @ (inside / (values.clamp_min(0) + ridge)).T - y for ridge in RIDGES]
        error += torch.stack([gap.square().sum() for gap in gaps]).cpu()
    return RIDGES[int(error.argmin())]
