"""Analytic class-incremental learning: recursive ridge regression on a frozen backbone (Zhuang et al., NeurIPS 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch.nn import functional as F

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.methods.shared import base_fit, stage_features
from nacre.models.model import Model, build_model
from nacre.models.readouts import Ridge
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Adjust, Phase, Work


@dataclass(frozen=True, kw_only=True)
class ACIL(Method):
    """After the first stage nothing is trained: a ridge regression takes in each stage, as if all had been there at once (theorem 1).

    The papers expand to 8,192 features and more; the inverse that is carried takes width squared times 8 bytes. Features are
    brought to length one first, so that gamma counts for more than in the authors' code, whose random expansion is uniform, not normal.
    """

    family = "no exemplars"
    paper = "Zhuang et al., NeurIPS 2022"

    width: int = 2048
    """Of the random expansion."""
    gamma: float = 0.1
    """Of the ridge."""

    def build(self, spec: ImageSpec) -> Model:
        """With a ridge regression as readout."""
        return build_model(self.backbone, self.head, spec, readout=partial(Ridge, width=self.width, gamma=self.gamma))

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Base training in the first stage; then one update."""
        yield from base_fit(self, knowledge, stage)
        yield Adjust("ridge", absorb)


def absorb(work: Work) -> None:
    """Take in the stage's images."""
    readout = work.knowledge.model.readout
    assert isinstance(readout, Ridge)
    found, labels = stage_features(work)
    readout.absorb(found, F.one_hot(labels, work.stage.seen))
