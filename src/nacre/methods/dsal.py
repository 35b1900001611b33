"""Dual-stream analytic learning (Zhuang et al., AAAI 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch.nn import functional as F

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.methods.shared import base_fit, stage_features
from nacre.models.model import Model, build_model
from nacre.models.readouts import DualRidge
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Adjust, Phase, Work


@dataclass(frozen=True, kw_only=True)
class DSAL(Method):
    """ACIL, and a second ridge regression under another activation that mends what the first leaves of the new classes (eq. 13-21).

    The papers expand to 8,192 features and more. Features are brought to length one first, and the random expansion has deviation one,
    so that the second activation bends; gamma grows with it, so that the first stream is ACIL's.
    """

    family = "no exemplars"
    paper = "Zhuang et al., AAAI 2024"

    width: int = 2048
    """Of the random expansion."""
    gamma: float = 0.1
    """Of both ridges."""
    compensation: float = 0.6
    """C: weight of the second stream in the answer."""

    def build(self, spec: ImageSpec) -> Model:
        """With both streams as readout."""
        readout = partial(DualRidge, width=self.width, gamma=self.gamma, share=self.compensation)
        return build_model(self.backbone, self.head, spec, readout=readout)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Base training in the first stage; then one update of both streams."""
        yield from base_fit(self, knowledge, stage)
        yield Adjust("ridges", absorb)


def absorb(work: Work) -> None:
    """Take in the stage's images."""
    readout = work.knowledge.model.readout
    assert isinstance(readout, DualRidge)
    found, labels = stage_features(work)
    readout.absorb(found, F.one_hot(labels, work.stage.seen).float(), work.stage.known)
