"""SimpleCIL: class means on a pre-trained backbone that is never trained (Zhou et al., IJCV 2024, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.methods.shared import learn_prototypes
from nacre.models.model import Model, build_model
from nacre.models.pretrained import VIT
from nacre.models.prototypes import Prototypes
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Phase


@dataclass(frozen=True, kw_only=True)
class SimpleCIL(Method):
    """Nothing is trained: the class whose mean feature has the largest cosine answers (eq. 4-5).

    Samples of a class that comes again join its mean. There is no fit that a reconstruction term could join.
    """

    family = "pre-trained"
    paper = "Zhou et al., IJCV 2024"
    needs = frozenset({"pre-training"})

    backbone: str = VIT

    def build(self, spec: ImageSpec) -> Model:
        """With a frozen backbone, and class means as readout."""
        model = build_model(self.backbone, self.head, spec, readout=Prototypes)
        model.backbone.requires_grad_(False)
        return model

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """The means."""
        yield learn_prototypes()
