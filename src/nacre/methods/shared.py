"""What two or more methods do."""

from __future__ import annotations

from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.distillation import Distillation
from nacre.losses.loss import Loss
from nacre.models.heads import NearestMean
from nacre.training.inference import features
from nacre.training.knowledge import Knowledge
from nacre.training.optim import Optim
from nacre.training.phases import Adjust, Fit, Work


def distilling_fit(knowledge: Knowledge, stage: Stage, temperature: float, optim: Optim) -> Fit:
    """Classify new images and exemplars, and hold the known classes' logits near the teacher's.

    (1 - k) classification + k distillation, k = known / seen (Wu et al., CVPR 2019, eq. 4). Without exemplars no image of a
    known class is at hand, so classification looks at the new classes' logits alone.
    """
    share = stage.known / stage.seen
    exemplars = knowledge.memory.samples()
    loss = Loss(
        classification=(1 - share) * CrossEntropy(first=0 if len(exemplars) else stage.known),
        distillation=share * Distillation(temperature),
    )
    return Fit(loss, stage.train + exemplars, knowledge.model, teacher=knowledge.teacher, optim=optim)


def class_means() -> Adjust:
    """Give the nearest-mean readout the class means of the exemplars, and where there are none those of the stage's images."""

    def learn(work: Work) -> None:
        readout = work.knowledge.model.readout
        assert isinstance(readout, NearestMean), "build the model with readout=NearestMean"
        samples = work.knowledge.memory.samples()
        samples = samples if len(samples) else work.stage.train
        found = features(work.knowledge.model, samples, work.runtime)
        readout.learn(found, samples.labels.to(found.device), work.stage.seen)

    return Adjust("class means", learn)
