"""Feature covariance-aware metric on a frozen backbone (Goswami et al., NeurIPS 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.methods.shared import base_fit, stage_features
from nacre.models.model import Model, build_model
from nacre.models.readouts import ClassCovariance
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Adjust, Phase, Work


@dataclass(frozen=True, kw_only=True)
class FeCAM(Method):
    """After the first stage nothing is trained: the nearest class mean under each class's own covariance answers (eq. 3-8).

    Covariances are shrunk once, as eq. 7 has it; the authors' code does it twice, which `diagonal=3, rest=3` amounts to, and
    answers the first stage by its trained head, where here the metric answers from the start.
    """

    family = "no exemplars"
    paper = "Goswami et al., NeurIPS 2023"

    power: float = 0.5
    """lambda of Tukey's transformation, in (0, 1]."""
    diagonal: float = 1.0
    """gamma_1: of the mean variance, added to the diagonal."""
    rest: float = 1.0
    """gamma_2: of the mean covariance, added elsewhere."""

    def build(self, spec: ImageSpec) -> Model:
        """With class means and covariances as readout."""
        return build_model(self.backbone, self.head, spec, readout=partial(ClassCovariance, power=self.power))

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Base training in the first stage; then means and covariances of the classes at hand."""
        yield from base_fit(self, knowledge, stage)
        yield Adjust("covariances", self.measure)

    def measure(self, work: Work) -> None:
        """Take mean and covariance of every class that the stage brings images of."""
        readout = work.knowledge.model.readout
        assert isinstance(readout, ClassCovariance)
        readout.resize(work.stage.seen)
        found, labels = stage_features(work)
        for label in labels.unique().tolist():
            readout.learn(label, found[labels == label], (self.diagonal, self.rest))
