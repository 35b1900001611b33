"""What a method is: how to build, how to grow, and the phases of a stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from nacre.data.memory import NOTHING, Budget
from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.losses.loss import Step, Weighted
from nacre.losses.reconstruction import Reconstruction, StoppedReconstruction
from nacre.models.model import Model, build_model, with_decoder
from nacre.training.knowledge import Knowledge
from nacre.training.optim import Optim
from nacre.training.phases import Fit, Phase

NEEDS = ("exemplars", "old model", "growing size", "pre-training")
"""What a method may need: remembered images, the model of the stage before, a network that grows, a backbone that others trained."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a method is asked to reconstruct its input as well."""

    weight: float = 0.3
    """Of the reconstruction term against the classification term; 0 is bit-identical to no decoder."""
    warmup: float = 0.05
    """Share of the first stage over which the weight climbs from 0, in [0, 1)."""
    tap: int = 1
    """Which map the decoder starts from, counted from the deepest."""
    stages: Literal["all", "first", "later"] = "all"
    """In which stages the term counts."""
    target: Literal["own", "other"] = "own"
    """What is asked for: the image, or as a control the next one of the batch, which its features know nothing of."""
    stopped: bool = False
    """As a control, let the decoder learn but no gradient of it into the backbone."""

    def __post_init__(self) -> None:
        if self.weight < 0 or not 0 <= self.warmup < 1:
            raise ValueError(f"weight is {self.weight} and warmup {self.warmup}, but weight must be 0 or more, and warmup in [0, 1)")
        if self.tap < 1:
            raise ValueError(f"tap is {self.tap}, but it must be 1 for the deepest map, 2 for the one before it, and so on")

    def ramp(self, step: Step) -> float:
        """What the weight is multiplied by at one step."""
        if step.stage.index or not self.warmup:
            return 1.0
        return min(1.0, step.progress / self.warmup)

    def onto(self, phases: Iterator[Phase], stage: Stage) -> Iterator[Phase]:
        """The same phases, where every whole fit of a model with a decoder reconstructs too.

        The weight is relative to what the fit gives to classification, so the two keep their ratio when distillation
        takes its share.
        """
        wanted = self.weight * (self.stages in ("all", "later" if stage.index else "first"))
        term = StoppedReconstruction() if self.stopped else Reconstruction(other=self.target == "other")
        for phase in phases:
            if isinstance(phase, Fit) and phase.model.decoder is not None and phase.only is None:
                share = phase.loss.weight("classification")
                phase = replace(phase, loss=phase.loss.adding(reconstruction=Weighted(term, wanted * share, self.ramp)))
            yield phase


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A way to learn classes stage by stage: settings, and the phases they lead to."""

    family: ClassVar[str]
    """Which of the field's families it belongs to."""
    paper: ClassVar[str]
    """Where it is described."""
    budget: ClassVar[Budget] = NOTHING
    """The memory it wants unless told otherwise."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What it cannot do without, of `NEEDS`."""
    varying: ClassVar[bool] = False
    """Whether the bytes that it carries depend on what images and weights are; else on budget, network and classes alone."""
    by_class: ClassVar[tuple[str, ...]] = ()
    """How the names of those statistics begin that have rows by class, equally many of each."""

    backbone: str = "auto"
    """See `nacre.models.registry.backbone`."""
    head: str = "linear"
    """`linear` or `cosine`."""
    optim: Optim = Optim()
    """Of the first stage. Where a method sets none, this is a short schedule that serves small data; published ones are in `recipes/`."""
    later: Optim | None = None
    """Of the stages after the first; None: the same."""
    decoding: Decoding | None = None
    """Also reconstruct the input; None: no decoder."""

    @abstractmethod
    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """What to do at one stage, in order; the model has grown already."""

    def build(self, spec: ImageSpec) -> Model:
        """A model without classes, for images of one kind; draws from torch's default generator."""
        return build_model(self.backbone, self.head, spec)

    def whole(self, spec: ImageSpec) -> Model:
        """The model of `build`, with a decoder where one is asked."""
        model = self.build(spec)
        return model if self.decoding is None else with_decoder(model, self.decoding.tap)

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Make room for the stage's classes."""
        knowledge.model.grow(stage.seen)

    def lesson(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """The phases, with the reconstruction term where it is asked."""
        phases = self.phases(knowledge, stage)
        return phases if self.decoding is None else self.decoding.onto(phases, stage)

    def lasting(self, epochs: int) -> Self:
        """The same with so many epochs in every stage."""
        later = None if self.later is None else replace(self.later, epochs=epochs)
        return replace(self, optim=replace(self.optim, epochs=epochs), later=later)

    def optim_of(self, stage: Stage) -> Optim:
        """How to descend at one stage."""
        return self.optim if stage.index == 0 or self.later is None else self.later
