"""Pooled outputs distillation for small-tasks incremental learning (Douillard et al., ECCV 2020)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

from nacre.data.memory import PerClass
from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.losses.classification import NeighbourhoodComponents
from nacre.losses.distillation import FeatureCosine, PooledMaps
from nacre.losses.loss import Loss
from nacre.methods.shared import balanced_fit, seen_samples
from nacre.models.backbones import signed
from nacre.models.heads import Proxies
from nacre.models.model import Model, build_model
from nacre.seeds import derive
from nacre.training.gradients import HoldRows
from nacre.training.inference import features
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Adjust, Fit, Phase, Remember, Work


@dataclass(frozen=True, kw_only=True)
class PODNet(Method):
    """Maps pooled along height and width are held at every depth; several proxies answer for a class (eq. 4-10).

    Known classes' proxies stay where they are until the head is balanced, as in the authors' code. The answer is the head's; every run
    reports the nearest mean of exemplars beside it. The margin is taken off the scaled answer, and the flat term is one minus the cosine,
    half the paper's squared distance. The authors' code answers by 2 cos - 2, twice as sharp, bounds gradients, and balances the head at a
    rate that stays; here by cosines, without a bound, at a rate that falls. Maps are squared and brought to length one, as in their code.
    """

    family = "representation"
    paper = "Douillard et al., ECCV 2020"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "old model"})

    head: str = "proxies"
    spatial: float = 3.0
    """Of the pooled maps, times sqrt(seen / new)."""
    flat: float = 1.0
    """Of the features' direction, times sqrt(seen / new)."""
    margin: float = 0.6
    """Of the classification."""
    balanced: Optim = Optim(lr=0.05, schedule="cosine", epochs=20)
    """How the head is fitted to the exemplars alone when a stage ends."""

    def build(self, spec: ImageSpec) -> Model:
        """Without the last rectifier."""
        model = build_model(self.backbone, self.head, spec)
        signed(model.backbone)
        return model

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Imprint the new proxies, fit, remember, balance the head."""
        classification = NeighbourhoodComponents(self.margin)
        loss = Loss(classification=classification)
        if stage.known:
            factor = sqrt(stage.seen / max(1, len(stage.new)))
            loss = loss.adding(spatial=self.spatial * factor * PooledMaps(), flat=self.flat * factor * FeatureCosine())
            yield Adjust("imprint", imprint)
        data, held = seen_samples(knowledge, stage), HoldRows(stage.first)
        yield Fit(loss, data, knowledge.model, teacher=knowledge.teacher, optim=self.optim_of(stage), gradient=held)
        yield Remember()
        if stage.known and len(knowledge.memory):
            yield balanced_fit(knowledge, classification, self.balanced)


def imprint(work: Work) -> None:
    """New proxies are centres of their class's features."""
    head, stage = work.knowledge.model.head, work.stage
    assert isinstance(head, Proxies), "PODNet needs --head proxies"
    for label in stage.new:
        found = features(work.knowledge.model, stage.train.among(range(label, label + 1)), work.runtime)
        head.imprint(label, found, derive(work.seed, "proxies", stage.index, label))
