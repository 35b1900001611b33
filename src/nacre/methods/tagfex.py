"""Task-agnostic guided feature expansion (Zheng et al., CVPR 2025)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.memory import PerClass
from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.losses.classification import Auxiliary, CrossEntropy
from nacre.losses.contrast import Contrast, PredictedContrast, Transfer
from nacre.losses.loss import Loss
from nacre.methods.shared import aligned, seen_samples, widen
from nacre.models.expandable import Widening
from nacre.models.guided import Guided, guided
from nacre.models.model import Model
from nacre.models.registry import backbone
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Adjust, Fit, Phase, Remember


@dataclass(frozen=True, kw_only=True)
class TagFex(Method):
    """A branch per stage as in DER, each guided by a net that learns from pairs of views alone, on and on.

    Classification + a auxiliary + (1 - k) contrast + k d distillation of the agnostic net + transfer, k the share of known classes
    (section 4, eq. 3-9).
    The authors' projector is wider (2048, 1024); new columns of old rows begin at zero there, and the auxiliary head is drawn anew.
    """

    family = "growing network"
    paper = "Zheng et al., CVPR 2025"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "old model", "growing size"})

    auxiliary: float = 2.0
    """Of the newest branch's own classification."""
    contrast: float = 1.0
    """Of the agnostic net's terms."""
    distillation: float = 2.0
    """Of its old features beside the contrast."""
    transfer: float = 1.0
    """Of following the merged features."""
    temperature: float = 0.2
    """Of the contrasts."""
    closeness: float = 0.95
    """Of a new branch to the one before it, the rest being the agnostic net."""
    hidden: int = 512
    """Width of the projector's hidden layer."""
    projected: int = 128
    """Width of its output."""

    def build(self, spec: ImageSpec) -> Model:
        """With one branch and the agnostic net."""
        trunk = Guided(backbone(self.backbone, spec), self.hidden, self.projected)
        return Model(trunk, Widening(trunk.dim), spec)

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Add a branch after the first stage."""
        trunk = guided(knowledge.model)
        if stage.index:
            trunk.widen(len(stage.new), self.closeness)
        widen(trunk.specific, knowledge.model.head, stage)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, align, remember."""
        trunk, share = guided(knowledge.model), stage.share_known if stage.index else 0.0
        loss = Loss(classification=CrossEntropy(), contrast=(1 - share) * self.contrast * Contrast(self.temperature))
        if stage.index:
            old = share * self.contrast * self.distillation * PredictedContrast(trunk.projector, self.temperature)
            loss = loss.adding(auxiliary=self.auxiliary * Auxiliary(), distillation=old)
            loss = loss.adding(transfer=Transfer(self.transfer)) if len(stage.new) else loss
        teacher = trunk.guide(knowledge.model.spec) if stage.index else None
        data, optim = seen_samples(knowledge, stage), self.optim_of(stage)
        yield Fit(loss, data, knowledge.model, teacher=teacher, optim=optim, views=2)
        yield Adjust("drop the attention", lambda work: trunk.merge.resize(0))
        yield aligned(stage)
        yield Remember()
