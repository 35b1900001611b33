"""Dynamically expandable representation: a branch per stage (Yan et al., CVPR 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nacre.data.memory import PerClass
from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.losses.sparsity import UsedWeights
from nacre.methods.shared import expand, expanded_phases
from nacre.models.expandable import Expandable, Widening
from nacre.models.gated import Gated, gated, with_gates
from nacre.models.model import Model
from nacre.models.registry import backbone
from nacre.training.gradients import Sharpen
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Adjust, Fit, Phase, Work


@dataclass(frozen=True, kw_only=True)
class DER(Method):
    """Freeze what is there, add a whole network beside it, and answer from all their features (section 3, eq. 1-6).

    Ends with weight alignment, as the field's tables do, in place of the paper's balanced refit of the head; the rate does not climb
    over the first ten epochs unless `optim.warmup` says so. The auxiliary head goes on from the stage before where both bring equally
    many classes; the authors draw it anew. Gates stand at the inner channels of blocks alone, see `models.gated`.
    """

    family = "growing network"
    paper = "Yan et al., CVPR 2021"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "growing size"})

    auxiliary: float = 1.0
    """Of the newest branch's own classification."""
    sparsity: float = 0.0
    """Of the share of weights in use (eq. 10): channels whose learnt gate stays closed are taken out after the fit; 0: none."""
    sharpness: float = 100.0
    """Of the gates at the end of an epoch, above 1."""

    def build(self, spec: ImageSpec) -> Model:
        """With one branch."""
        first = backbone(self.backbone, spec)
        trunk = Expandable(with_gates(first) if self.sparsity else first)
        return Model(trunk, Widening(trunk.dim), spec)

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Add a branch after the first stage."""
        expand(knowledge.model, stage)
        for block in newest(knowledge):
            block.resize(block.full, 1)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, prune where asked, align, remember."""
        fit, *rest = expanded_phases(knowledge, stage, self.auxiliary, self.optim_of(stage))
        if self.sparsity and isinstance(fit, Fit):
            fit = replace(
                fit, loss=fit.loss.adding(sparsity=self.sparsity * UsedWeights()), gradient=Sharpen(self.sharpness, fit.optim.epochs)
            )
            rest = [Adjust("prune", prune), *rest]
        yield fit
        yield from rest


def newest(knowledge: Knowledge) -> list[Gated]:
    """The newest branch's blocks with gates."""
    trunk = knowledge.model.backbone
    assert isinstance(trunk, Expandable)
    return gated(trunk.branches[-1])


def prune(work: Work) -> None:
    """Take out what the gates of the newest branch keep shut."""
    for block in newest(work.knowledge):
        block.prune()
