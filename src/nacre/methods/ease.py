"""EASE: a set of adapters, and so a feature space, per stage (Zhou et al., CVPR 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.methods.shared import learn_prototypes
from nacre.models.adapters import Newest, Subspaces, adaptable
from nacre.models.model import Model
from nacre.models.pretrained import VIT
from nacre.models.prototypes import Prototypes
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Fit, Phase


@dataclass(frozen=True, kw_only=True)
class EASE(Method):
    """Class means in the feature spaces of all stages answer; where a class had no sample they are guessed (eq. 6-13).

    A stage that brings images of known classes alone adds a space as well, in which these classes have means of their own. The authors'
    code deviates from the equations in two ways that are not followed: the weight of the other spaces is divided by the number of stages,
    and guessed means are guessed anew in every later space. Adapters see what the hidden layer sees, behind the norm; theirs before it.
    """

    family = "pre-trained"
    paper = "Zhou et al., CVPR 2024"
    needs = frozenset({"pre-training", "growing size"})

    backbone: str = VIT
    optim: Optim = Optim(lr=0.025, schedule="cosine", epochs=20, batch=48)
    bottleneck: int = 64
    """Of the adapters."""
    others: float = 0.1
    """alpha: weight of the spaces in which a class did not come."""

    def build(self, spec: ImageSpec) -> Model:
        """With class means in all spaces as readout."""
        trunk = adaptable(self.backbone, spec, self.bottleneck)
        return Model(trunk, Newest(trunk.width), spec, readout=Prototypes(trunk.width, self.others))

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Add a set of adapters."""
        trunk = knowledge.model.backbone
        assert isinstance(trunk, Subspaces)
        trunk.resize(len(trunk.sets) + 1)
        knowledge.model.grow(stage.seen)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit the newest adapters to the classes at hand; then the means."""
        loss = Loss(classification=CrossEntropy(first=stage.first))
        yield Fit(loss, stage.train, knowledge.model, optim=self.optim_of(stage))
        yield learn_prototypes()
