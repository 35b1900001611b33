"""Memory-efficient expandable model: only the deepest part grows (Zhou et al., ICLR 2023, eq. 5-6)."""

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
class MEMO(Method):
    """Share the shallow depths, which go on learning, and add a deepest one per stage; earlier deepest ones are frozen.

    Ends with weight alignment, as the field's tables do. The auxiliary head goes on from the stage before where both bring equally
    many classes; the authors draw it anew.
    """

    family = "growing network"
    paper = "Zhou et al., ICLR 2023"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "growing size"})

    auxiliary: float = 1.0
    """Of the newest branch's own classification."""

    trunk_learns: bool = True
    """Whether the shared depths learn after the first stage."""

    def build(self, spec: ImageSpec) -> Model:
        """With a trunk and one branch."""
        trunk = Expandable(backbone(self.backbone, spec), shared=True, learns=self.trunk_learns)
        return Model(trunk, Widening(trunk.dim), spec)

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Add a branch after the first stage."""
        expand(knowledge.model, stage)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, align, remember."""
        yield from expanded_phases(knowledge, stage, self.auxiliary, self.optim_of(stage))
