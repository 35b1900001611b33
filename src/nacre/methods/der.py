"""Dynamically expandable representation: a branch per stage (Yan et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.memory import PerClass
from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.methods.shared import expand, expanded_phases
from nacre.models.expandable import Expandable, Widening
from nacre.models.model import Model
from nacre.models.registry import backbone
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Phase


@dataclass(frozen=True, kw_only=True)
class DER(Method):
    """Freeze what is there, add a whole network beside it, and answer from all their features (section 3, eq. 1-6).

    Ends with weight alignment, as the field's tables do, in place of the paper's balanced refit of the head; its pruning by
    learnt masks is not there.
    """

    family = "growing network"
    paper = "Yan et al., CVPR 2021"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "growing size"})

    auxiliary: float = 1.0
    """Of the newest branch's own classification."""

    def build(self, spec: ImageSpec) -> Model:
        """With one branch."""
        trunk = Expandable(backbone(self.backbone, spec))
        return Model(trunk, Widening(trunk.dim), spec)

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Add a branch after the first stage."""
        expand(knowledge.model, stage)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, align, remember."""
        yield from expanded_phases(knowledge, stage, self.auxiliary, self.optim_of(stage))
