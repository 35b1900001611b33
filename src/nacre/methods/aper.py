"""APER with adapters: adapt once, then class means of old and adapted features together (Zhou et al., IJCV 2024, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.methods.shared import adapt_once, base_fit, learn_prototypes
from nacre.models.adapters import Newest, adaptable
from nacre.models.model import Model
from nacre.models.pretrained import VIT
from nacre.models.prototypes import Prototypes
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Phase


@dataclass(frozen=True, kw_only=True)
class APER(Method):
    """Adapters learn the first stage; then the frozen and the adapted features, side by side, answer by class means (eq. 6-7).

    Adapters see what the hidden layer sees, behind the norm, as in AdaptFormer's equations; the authors' code feeds them from before it.
    """

    family = "pre-trained"
    paper = "Zhou et al., IJCV 2024"
    needs = frozenset({"pre-training"})

    backbone: str = VIT
    optim: Optim = Optim(lr=0.01, schedule="cosine", epochs=20, batch=48)
    bottleneck: int = 64
    """Of the adapters."""

    def build(self, spec: ImageSpec) -> Model:
        """With the frozen features first, and class means of both as readout."""
        trunk = adaptable(self.backbone, spec, self.bottleneck, plain=True)
        return Model(trunk, Newest(trunk.width), spec, readout=Prototypes(2 * trunk.width))

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Add adapters in the first stage."""
        adapt_once(knowledge.model, stage)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Adapt in the first stage; then the means."""
        yield from base_fit(self, knowledge, stage)
        yield learn_prototypes()
