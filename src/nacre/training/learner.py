"""The learner: carries a method's knowledge from stage to stage.

Shapes: n images, C channels, H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import zip_longest

import torch
from torch import Tensor

from nacre.data.memory import Budget, Memory
from nacre.data.source import ImageSpec, Samples
from nacre.data.stream import Stage
from nacre.errors import NacreError
from nacre.models.pretrained import begin
from nacre.seeds import derive, seeded
from nacre.training.inference import features, logits
from nacre.training.journal import Journal
from nacre.training.knowledge import Knowledge, below
from nacre.training.method import Method
from nacre.training.phases import Phase, Stopped, Watch, Work
from nacre.training.runtime import Runtime


class Learner:
    """Learns one stage after the other, and answers in between.

    Args:
        method: how to learn.
        spec: of the images, such as `stream.source.spec`.
        memory: budget for exemplars; by default what the method wants.
        selection: how exemplars are chosen, see `nacre.data.selection.SELECTIONS`.
        seed: of initialisation, order of samples and augmentation.
        runtime: device and precision; by default the best device in fp32.
    """

    def __init__(
        self,
        method: Method,
        spec: ImageSpec,
        *,
        memory: Budget | None = None,
        selection: str = "herding",
        seed: int = 0,
        runtime: Runtime | None = None,
    ) -> None:
        self.method = method
        self.spec = spec
        self.seed = seed
        self.runtime = runtime or Runtime()
        self.classes: tuple[str, ...] = ()
        self.stages = 0
        self.came: tuple[int, ...] = ()
        """Stage, from 0, in which each class came."""
        self.images: tuple[int, ...] = ()
        """Images that each class was learnt from."""
        self.half = False
        """Whether the model's numbers are stored at half precision."""
        with seeded(seed, "model"):
            model = self.runtime.place(method.whole(spec))
        self.knowledge = Knowledge(model, Memory(method.budget if memory is None else memory, selection, spec.shape))

    def learn(self, stage: Stage, journal: Journal | None = None, watch: Watch | None = None) -> Journal:
        """Learn a stage.

        Args:
            stage: the next one; its known classes are those of this learner.
            journal: where a killed run finds its progress; by default nowhere.
            watch: hears of fits, steps and epochs.

        Returns:
            The journal, whose rows are the stage's log.

        Raises:
            NacreError: the stage is not the next one, its images have another shape, or training diverged.
        """
        self._admit(stage)
        journal, watch, k = journal or Journal(), watch or Watch(), self.knowledge
        journal.begin(stage.index)
        self.runtime.together()
        with seeded(self.seed, "grow", stage.index):
            self.prepare(stage)
            for number, phase in self._lesson(stage):
                found = journal.finished(number)
                if found is not None:
                    recover(k, phase, found)
                    continue
                phase.run(Work(self.runtime, k, stage, self.spec.augment, self.seed, number, journal, watch))
                journal.finish(number, record(k, phase))
                if watch.leaving:
                    raise Stopped
        k.held.update(replace(stage, train=stage.test), lambda samples: features(k.model, samples, self.runtime), self.seed)
        self.classes += stage.names
        self.came += (stage.index,) * len(stage.names)
        count = torch.bincount(stage.train.labels, minlength=stage.seen).tolist()
        self.images = tuple(a + b for a, b in zip_longest(self.images, count, fillvalue=0))
        self.stages += 1
        return journal

    def prepare(self, stage: Stage) -> None:
        """What comes before a stage's phases: weights and normalisation in the first, the teacher in later ones, room for the classes."""
        k = self.knowledge
        if stage.index == 0:
            pixels = begin(k.model.backbone, self.method.backbone)
            k.model.normalise.learn(stage.train) if pixels is None else k.model.normalise.given(*pixels)
        else:
            k.teacher = self.runtime.place(k.model.frozen(answers=False))
        self.method.grow(k, stage)
        self.runtime.place(k.model)

    def _lesson(self, stage: Stage) -> Iterator[tuple[int, Phase]]:
        """Number the phases, and seed whatever the method draws on the way to each."""
        phases = self.method.lesson(self.knowledge, stage)
        number = 0
        while True:
            torch.manual_seed(derive(self.seed, "phase", stage.index, number))
            try:
                phase = next(phases)
            except StopIteration:
                return
            yield number, phase
            number += 1

    def _admit(self, stage: Stage) -> None:
        if (stage.index, stage.known) != (self.stages, len(self.classes)):
            raise NacreError(
                f"stage {stage.index + 1} builds on {stage.known} classes, but this learner has {len(self.classes)} classes from "
                f"{self.stages} stages: give the stages in their order, each once."
            )
        shape = tuple(stage.train.images.shape[1:])
        if shape != self.spec.shape:
            raise NacreError(f"the stage's images are {shape}, the learner's are {self.spec.shape} (channels, height, width).")

    def logits(self, images: Tensor) -> Tensor:
        """Logits [n, K] of the declared readout for uint8 images [n, C, H, W], on the device."""
        if not self.classes:
            raise NacreError("this learner knows no class yet: let it learn a stage first.")
        return logits(self.knowledge.model, Samples.of(images, torch.zeros(len(images))), self.runtime)

    def predict(self, images: Tensor) -> Tensor:
        """The most likely class of each uint8 image [n, C, H, W]: positions in `classes`, [n], int64."""
        return self.logits(images).argmax(1).cpu()

    def state(self) -> dict[str, Tensor]:
        """The knowledge, as named tensors."""
        return self.knowledge.state()

    def restore(
        self,
        state: Mapping[str, Tensor],
        classes: tuple[str, ...],
        stages: int,
        came: tuple[int, ...] = (),
        images: tuple[int, ...] = (),
    ) -> None:
        """Take back what `state` gave after `stages` stages that brought `classes`.

        Args:
            state: of the knowledge.
            classes: their names.
            stages: how many there were.
            came: stage of each class; by default the first.
            images: number of each class; by default 0.

        Raises:
            NacreError: the state does not belong to this learner's method and images.
        """
        try:
            with seeded(self.seed, "restore"):
                self.knowledge.restore(state)
        except (RuntimeError, KeyError, ValueError) as error:
            raise NacreError(f"the saved knowledge does not fit method and images: {str(error).splitlines()[0]}") from None
        for memory in (self.knowledge.memory, self.knowledge.held):
            labels = memory.labels
            if len(labels) and (labels[1:] < labels[:-1]).any() | (labels[0] < 0) | (labels[-1] >= len(classes)):
                raise NacreError(f"the saved images are not those of {len(classes)} classes in their order")
        if len(classes) != self.knowledge.model.classes:
            raise NacreError(f"the saved knowledge is of {self.knowledge.model.classes} classes, but {len(classes)} are named")
        self.runtime.place(self.knowledge.model)
        self.classes, self.stages = classes, stages
        self.came, self.images = came or (0,) * len(classes), images or (0,) * len(classes)
        if not len(self.came) == len(self.images) == len(classes):
            raise NacreError(f"{len(classes)} classes are named, but stages of {len(self.came)} and images of {len(self.images)}")


def accuracy(learner: Learner, samples: Samples) -> float:
    """Share of samples that the learner answers rightly, in [0, 1], among all classes it has seen."""
    answers = logits(learner.knowledge.model, samples, learner.runtime).argmax(1).cpu()
    return float((answers == samples.labels).float().mean())


def record(knowledge: Knowledge, phase: Phase) -> dict[str, Tensor]:
    """All that a phase may have changed, as named tensors."""
    state = knowledge.state()
    for name, module in phase.others().items():
        if module is not knowledge.model:
            state |= {f"{name}/{key}": tensor for key, tensor in module.state_dict().items()}
    return state


def recover(knowledge: Knowledge, phase: Phase, state: Mapping[str, Tensor]) -> None:
    """Put a recorded phase's result in its place."""
    knowledge.restore(state)
    for name, module in phase.others().items():
        if module is not knowledge.model:
            module.load_state_dict(below(name, state))
