"""The phases a stage is made of: Fit, the one loop of the package, Remember and Adjust.

Shapes: n samples of the fit, B of a step, C x H x W pixels.
"""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from nacre.data.augment import Augment
from nacre.data.replay import Rehearsal
from nacre.data.source import Samples
from nacre.data.stream import Stage
from nacre.errors import NacreError
from nacre.losses.loss import Batch, Loss, Step
from nacre.models.model import Model
from nacre.models.output import Output
from nacre.training.deck import Deck
from nacre.training.gradients import Gradients
from nacre.training.inference import features, logits
from nacre.training.journal import Journal, Row
from nacre.training.knowledge import Knowledge, below
from nacre.training.meters import diagnostics
from nacre.training.optim import Optim
from nacre.training.runtime import Runtime


class Stopped(KeyboardInterrupt):
    """Training ended early because it was asked to, with its record on disk."""


class Watch:
    """Hears how a run goes; this one keeps silent, but for concerns."""

    training: bool = False
    """Whether a fit has begun, so that what is under way is worth its end."""
    leaving: bool = False
    """Set it to end training after the epoch under way."""

    def decoded(self, done: int, total: int) -> None:
        """So many of the data set's images are decoded."""

    def fit(self, stage: Stage, phase: int, samples: int, epochs: int) -> None:
        """A fit begins."""

    def step(self, images: int) -> None:
        """A step over so many images was handed to the device."""

    def epoch(self, row: Row) -> None:
        """An epoch ended, with this line for the log."""

    def stop(self) -> None:
        """Nothing goes on for a while, or any more."""

    def concern(self, text: str) -> None:
        """Something goes on that its user should know."""
        warnings.warn(text, stacklevel=2)


@dataclass(frozen=True, eq=False)
class Work:
    """What a phase finds where it runs."""

    runtime: Runtime
    knowledge: Knowledge
    stage: Stage
    augment: Augment
    seed: int
    """Of the run."""
    phase: int
    """Position of the phase in its stage."""
    journal: Journal
    watch: Watch


class Phase(ABC):
    """One part of learning a stage."""

    @abstractmethod
    def run(self, work: Work) -> None:
        """Do it."""

    def others(self) -> Mapping[str, nn.Module]:
        """Modules beside the knowledge's own that the phase changes."""
        return {}


@dataclass(frozen=True, eq=False)
class Remember(Phase):
    """Choose the stage's exemplars with the model as it is now; where this stands in a stage is the method's business."""

    answers: bool = False
    """Also store the model's logits beside the exemplars that are new."""
    worth: Tensor | None = None
    """[n + M], of the stage's images and the exemplars: keep those of smallest worth, instead of what the memory's selection chooses."""

    def run(self, work: Work) -> None:
        """Update the memory."""
        k = work.knowledge
        answers = (lambda samples: logits(k.model, samples, work.runtime)) if self.answers else None
        k.memory.update(work.stage, lambda samples: features(k.model, samples, work.runtime), work.seed, answers, self.worth)


@dataclass(frozen=True, eq=False)
class Adjust(Phase):
    """A change in closed form, without a gradient."""

    name: str
    action: Callable[[Work], None]

    def run(self, work: Work) -> None:
        """Make it."""
        with torch.no_grad():
            self.action(work)


@dataclass(frozen=True, eq=False)
class Fit(Phase):
    """Descend a loss over samples: the only phase with a loop."""

    loss: Loss
    data: Samples
    model: Model
    teacher: Model | None = None
    """Answers the same images without gradients; its Output is `Step.old`."""
    only: Sequence[nn.Module] | None = None
    """Train what is trainable of these parts and hold the rest of the model still; None: of the whole model."""
    still: Sequence[nn.Module] = ()
    """Parts that are held still whatever `only` says."""
    optim: Optim = Optim()
    pace: Mapping[nn.Module, float] = field(default_factory=dict)
    """Parts whose learning rate is this many times the optimiser's."""
    gradient: Gradients | None = None
    """Changes or follows the gradients between backward and step."""
    turns: bool = False
    """Show every image four times, turned by quarters: first all upright, then all turned once, and so on."""
    views: int = 1
    """Show so many views of every image, augmented apart: first one of each, then another of each, and so on."""
    rehearsal: Rehearsal | None = None
    """Remembered samples that join every step; None where they are among `data`, or nowhere."""

    def others(self) -> Mapping[str, nn.Module]:
        """The model, in case it is not the knowledge's own, and what follows its gradients."""
        return {"fit": self.model} if self.gradient is None else {"fit": self.model, "gradient": self.gradient}

    def run(self, work: Work) -> None:
        """Train, going on from the journal where it has a record of this fit."""
        if not len(self.data):
            raise NacreError(f"stage {work.stage.index + 1} has no image to train on: give every stage images.")
        if work.augment.mix != "none" and (whole := self._unmixed()):
            raise NacreError(
                f"augment.mix is {work.augment.mix!r}, but this method's {' and '.join(whole)} can only be asked of whole images: "
                "set augment.mix=none, or choose another method."
            )
        with trainable(self.model, self.only, self.still) as parameters:
            pace = {parameter: share for part, share in self.pace.items() for parameter in part.parameters()}
            optimiser = self.optim.build(parameters, pace)
            deck = Deck(self.data, work.augment, work.runtime, self.optim.batch, self.rehearsal, self.views)
            if self.gradient is not None:
                self.gradient.to(work.runtime.device)
            modules = self.others()
            done = resume(work, modules, optimiser)
            work.watch.training = work.runtime.world == 1  # several processes would not leave after the same epoch
            work.watch.fit(work.stage, work.phase, len(self.data), self.optim.epochs - done)
            for epoch in range(done, self.optim.epochs):
                row = self._epoch(work, deck, optimiser, parameters, epoch)
                work.journal.rows.append(row)
                work.watch.epoch(row)
                if epoch + 1 < self.optim.epochs:
                    leaving = work.watch.leaving
                    work.journal.save(work.phase, epoch + 1, lambda: fit_state(modules, optimiser), now=leaving)
                    if leaving:
                        raise Stopped

    def _unmixed(self) -> list[str]:
        """What of this fit takes an image's label for the whole truth."""
        gradient = ["gradient"] if self.gradient is not None and self.gradient.unmixed else []
        return self.loss.unmixed + gradient

    def _epoch(self, work: Work, deck: Deck, optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], epoch: int) -> Row:
        """One pass; returns its line of the log, whose numbers reach the host only here, at its end."""
        runtime, steps, began = work.runtime, deck.steps, time.perf_counter()
        forward = runtime.forward(self.model)
        total = torch.zeros(len(self.loss.terms), device=runtime.device)
        extra: dict[str, Tensor] = {}
        for number, dealt in enumerate(deck.epoch(work.seed, work.stage.index, work.phase, epoch)):
            progress = (epoch + number / steps) / self.optim.epochs
            self.optim.steer(optimiser, progress)
            batch = dealt.batch(self.model, runtime.format)
            batch = turned(batch) if self.turns else batch
            with runtime.autocast():
                old = self._teach(batch.images)
                out = forward(batch.images, decode=self.loss.decodes)
            step = Step(batch, out, old, self.model, work.stage, progress)
            loss, values = self.loss(step)
            if number == steps - 1:
                extra = diagnostics(step, self.loss, values)
            optimiser.zero_grad(set_to_none=True)
            runtime.fabric.backward(loss * dealt.share)
            runtime.average(parameter.grad for parameter in parameters)
            if self.gradient is not None:
                self.gradient.before(step, runtime)
            if self.optim.clip:
                nn.utils.clip_grad_norm_(parameters, self.optim.clip)
            optimiser.step()
            if self.gradient is not None:
                self.gradient.after(self.model)
            total += torch.stack([value.detach() for value in values.values()])
            work.watch.step(len(dealt.labels) * runtime.world)
        means = dict(zip(self.loss.terms, (total / steps).tolist(), strict=True))
        self._check(work, means, epoch / self.optim.epochs)
        place: Row = {"stage": work.stage.index + 1, "phase": work.phase + 1, "epoch": epoch + 1}
        speed = {"lr": self.optim.rate(epoch / self.optim.epochs), "seconds": time.perf_counter() - began}
        return {**place, **means, **{name: float(value) for name, value in extra.items()}, **speed, "images": len(self.data)}

    @torch.no_grad()
    def _teach(self, images: Tensor) -> Output | None:
        return None if self.teacher is None else self.teacher(images)

    def _check(self, work: Work, means: Mapping[str, float], progress: float) -> None:
        """Stop at numbers that are none, and pass on the terms' concerns."""
        bad = [name for name, mean in means.items() if not math.isfinite(mean)]
        if bad:
            raise NacreError(
                f"{' and '.join(bad)} became {means[bad[0]]} in stage {work.stage.index + 1}: lower optim.lr, "
                "or set optim.clip=1 or optim.warmup=0.1."
            )
        for name, weighted in self.loss.terms.items():
            concern = weighted.term.concern(means[name], progress)
            if concern and work.runtime.main:
                work.watch.concern(f"stage {work.stage.index + 1}: {concern}")


@contextmanager
def trainable(model: Model, only: Sequence[nn.Module] | None, still: Sequence[nn.Module] = ()) -> Iterator[list[nn.Parameter]]:
    """Withhold trainability: yields the parameters to train, and gives everything back as it was.

    What is held still is in inference form, so its running statistics stay as they are.
    """
    was = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    mode = model.training
    model.train(only is None)
    for part in only or ():
        part.train()
    for part in still:
        part.eval()
    kept = {parameter for part in ([model] if only is None else only) for parameter in part.parameters()}
    kept -= {parameter for part in still for parameter in part.parameters()}
    for parameter, flag in was:
        parameter.requires_grad_(flag and parameter in kept)
    try:
        yield [parameter for parameter in model.parameters() if parameter.requires_grad]
    finally:
        for parameter, flag in was:
            parameter.requires_grad_(flag)
            parameter.grad = None
        model.train(mode)


def turned(batch: Batch) -> Batch:
    """Every image in four quarter turns: [4 B, C, H, W], in which H = W."""
    images, target = (torch.cat([pixels.rot90(turn, (2, 3)) for turn in range(4)]) for pixels in (batch.images, batch.clean))
    return Batch(images.contiguous(), batch.labels.repeat(4), None if batch.target is None else target)


def fit_state(modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Modules and optimiser as named tensors."""
    state = {f"{part}/{name}": tensor for part, module in modules.items() for name, tensor in module.state_dict().items()}
    for number, parameter in enumerate(stepped(optimiser)):
        for name, value in optimiser.state.get(parameter, {}).items():
            if value is not None:
                state[f"optimiser/{number}/{name}"] = torch.as_tensor(value)
    return state


def stepped(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters of all groups."""
    return [parameter for group in optimiser.param_groups for parameter in group["params"]]


def resume(work: Work, modules: Mapping[str, nn.Module], optimiser: torch.optim.Optimizer) -> int:
    """Load the journal's record of this fit, if there is one; returns the number of finished epochs."""
    found = work.journal.ongoing(work.phase)
    if found is None:
        return 0
    state, epochs = found
    for part, module in modules.items():
        module.load_state_dict(below(part, state))
    parameters = stepped(optimiser)
    for name, tensor in state.items():
        if name.startswith("optimiser/"):
            _, number, key = name.split("/")
            parameter = parameters[int(number)]
            # laid out in memory like the parameter: the same kernels, so the same bits
            slot = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor)
            optimiser.state[parameter][key] = slot.detach().copy_(tensor)
    return epochs
