"""The phases a stage is made of: Fit, the one loop of the package, Remember and Adjust.

Shapes: n samples of the fit, B of a step, C x H x W pixels.
"""

from __future__ import annotations

import math
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nacre.data.augment import Augment, View
from nacre.data.source import Samples
from nacre.data.stream import Stage
from nacre.errors import NacreError
from nacre.losses.loss import Batch, Loss, Step
from nacre.models.model import Model
from nacre.models.output import Output
from nacre.seeds import generator
from nacre.training.inference import features
from nacre.training.journal import Journal, Row
from nacre.training.knowledge import Knowledge
from nacre.training.meters import diagnostics
from nacre.training.optim import Optim
from nacre.training.runtime import Runtime


class Watch:
    """Hears how a run goes; this one keeps silent, but for concerns."""

    def decoded(self, done: int, total: int) -> None:
        """So many of the data set's images are decoded."""

    def fit(self, stage: Stage, phase: int, samples: int, epochs: int) -> None:
        """A fit begins."""

    def step(self, images: int) -> None:
        """A step over so many images was handed to the device."""

    def epoch(self, row: Row) -> None:
        """An epoch ended, with this line for the log."""

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

    def run(self, work: Work) -> None:
        """Update the memory."""
        k = work.knowledge
        k.memory.update(work.stage, lambda samples: features(k.model, samples, work.runtime), work.seed)


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
    """Train these parts and hold the rest of the model still; None trains all that is trainable."""
    optim: Optim = Optim()
    gradient: Callable[[Model], None] | None = None
    """Changes the gradients between backward and step."""

    def others(self) -> Mapping[str, nn.Module]:
        """The model, in case it is not the knowledge's own."""
        return {"fit": self.model}

    def run(self, work: Work) -> None:
        """Train, going on from the journal where it has a record of this fit."""
        if not len(self.data):
            raise NacreError(f"stage {work.stage.index + 1} has no image to train on: give every stage images.")
        with trainable(self.model, self.only) as parameters:
            optimiser = self.optim.build(parameters)
            deck = Deck(self.data, work.augment, work.runtime, self.optim.batch)
            done = resume(work, self.model, optimiser)
            work.watch.fit(work.stage, work.phase, len(self.data), self.optim.epochs - done)
            for epoch in range(done, self.optim.epochs):
                row = self._epoch(work, deck, optimiser, parameters, epoch)
                work.journal.rows.append(row)
                work.watch.epoch(row)
                if epoch + 1 < self.optim.epochs:
                    work.journal.save(work.phase, epoch + 1, lambda: fit_state(self.model, optimiser))

    def _epoch(self, work: Work, deck: Deck, optimiser: torch.optim.Optimizer, parameters: list[nn.Parameter], epoch: int) -> Row:
        """One pass; returns its line of the log, whose numbers reach the host only here, at its end."""
        runtime, steps, began = work.runtime, deck.steps, time.perf_counter()
        forward = runtime.forward(self.model)
        total = torch.zeros(len(self.loss.terms), device=runtime.device)
        extra: dict[str, Tensor] = {}
        for number, (view, labels, share) in enumerate(deck.epoch(work.seed, work.stage.index, work.phase, epoch)):
            progress = (epoch + number / steps) / self.optim.epochs
            for group in optimiser.param_groups:
                group["lr"] = self.optim.rate(progress)
            batch = seen(view, labels, self.model, runtime)
            with runtime.autocast():
                old = self._teach(batch.images)
                out = forward(batch.images, decode=self.loss.decodes)
            step = Step(batch, out, old, self.model, work.stage, progress)
            loss, values = self.loss(step)
            if number == steps - 1:
                extra = diagnostics(step, self.loss, values)
            optimiser.zero_grad(set_to_none=True)
            runtime.fabric.backward(loss * share)
            runtime.average_gradients(parameters)
            if self.gradient is not None:
                self.gradient(self.model)
            if self.optim.clip:
                nn.utils.clip_grad_norm_(parameters, self.optim.clip)
            optimiser.step()
            total += torch.stack([value.detach() for value in values.values()])
            work.watch.step(len(labels) * runtime.world)
        means = dict(zip(self.loss.terms, (total / steps).tolist(), strict=True))
        self._check(work, means, epoch / self.optim.epochs)
        place: Row = {"stage": work.stage.index + 1, "phase": work.phase + 1, "epoch": epoch + 1}
        speed = {"lr": self.optim.rate(epoch / self.optim.epochs), "seconds": time.perf_counter() - began}
        return {**place, **means, **{name: float(value) for name, value in extra.items()}, **speed, "images": len(deck.samples)}

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


def seen(view: View, labels: Tensor, model: Model, runtime: Runtime) -> Batch:
    """A view [B] as the model takes it."""
    images = model.normalise(view.pixels).contiguous(memory_format=runtime.format)
    target = None if view.clean is view.pixels else model.normalise(view.clean).contiguous(memory_format=runtime.format)
    return Batch(images, labels, target, None if view.partner is None else labels[view.partner], view.share)


class Deck:
    """The samples of one fit: on the device as uint8 where they fit, else read from where they lie, batch by batch.

    Args:
        samples: n of them.
        augment: the training view.
        runtime: of this process, which takes its share of every batch.
        batch: largest number of samples in a step over all processes.
    """

    def __init__(self, samples: Samples, augment: Augment, runtime: Runtime, batch: int) -> None:
        self.samples = samples
        self.augment = augment
        self.runtime = runtime
        self.steps = math.ceil(len(samples) / batch)
        self.labels = samples.labels.to(runtime.device)
        self.resident = None
        if math.prod(samples.images.shape[1:]) * len(samples) < runtime.free_bytes() / 4:
            self.resident = runtime.images(samples.pixels())

    def epoch(self, seed: int, *place: int) -> Iterator[tuple[View, Tensor, float]]:
        """Yield (view of B images, labels [B], share) of all steps, on the device, in an order of this epoch's own.

        All random numbers of the epoch are drawn here, at once. The share makes the mean over processes of the batch means
        the mean over the batch where it does not divide evenly; it is 1 in a single process.
        """
        device, rank, world = self.runtime.device, self.runtime.rank, self.runtime.world
        draw = generator(seed, "epoch", *place)
        order = torch.randperm(len(self.samples), generator=draw)
        uniform = torch.rand(len(self.samples), self.augment.draws, generator=draw).to(device).tensor_split(self.steps)
        hands = [hand[rank::world] for hand in order.to(device).tensor_split(self.steps)]
        with self._pixels(hands, [hand[rank::world] for hand in order.tensor_split(self.steps)]) as dealt:
            for hand, numbers, pixels in zip(hands, uniform, dealt, strict=True):
                yield (
                    self.augment.view(self.runtime.images(pixels), numbers[rank::world]),
                    self.labels[hand],
                    len(hand) * world / len(numbers),
                )

    def _pixels(self, hands: Sequence[Tensor], on_host: Sequence[Tensor]) -> AbstractContextManager[Iterator[Tensor]]:
        """The pixels of each step: taken from the device, or read on a thread while the step before is under way."""
        if self.resident is not None:
            resident = self.resident
            return nullcontext(resident[hand] for hand in hands)
        return ahead(self.runtime.pinned(self.samples.pixels(hand)) for hand in on_host)


@contextmanager
def ahead(items: Iterator[Tensor], depth: int = 3) -> Iterator[Iterator[Tensor]]:
    """Make items on a thread, up to `depth` of them before they are asked for; an error comes where its item would have come."""
    with ThreadPoolExecutor(1, "prefetch") as pool:
        waiting = deque(pool.submit(next, items, None) for _ in range(depth))

        def taken() -> Iterator[Tensor]:
            while (item := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next, items, None))
                yield item

        yield taken()


@contextmanager
def trainable(model: Model, only: Sequence[nn.Module] | None) -> Iterator[list[nn.Parameter]]:
    """Lend trainability: yields the parameters to train, and gives everything back as it was.

    What is held still is in inference form, so its running statistics stay as they are.
    """
    was = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    mode = model.training
    model.train(only is None)
    if only is not None:
        model.requires_grad_(False)
        for part in only:
            part.train().requires_grad_(True)
    try:
        yield [parameter for parameter in model.parameters() if parameter.requires_grad]
    finally:
        for parameter, flag in was:
            parameter.requires_grad_(flag)
            parameter.grad = None
        model.train(mode)


def fit_state(model: Model, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Model and optimiser as named tensors."""
    state = {f"model/{name}": tensor for name, tensor in model.state_dict().items()}
    for group in optimiser.param_groups:
        for number, parameter in enumerate(group["params"]):
            for name, value in optimiser.state.get(parameter, {}).items():
                if value is not None:
                    state[f"optimiser/{number}/{name}"] = torch.as_tensor(value)
    return state


def resume(work: Work, model: Model, optimiser: torch.optim.Optimizer) -> int:
    """Load the journal's record of this fit, if there is one; returns the number of finished epochs."""
    found = work.journal.ongoing(work.phase)
    if found is None:
        return 0
    state, epochs = found
    model.load_state_dict({name.removeprefix("model/"): tensor for name, tensor in state.items() if name.startswith("model/")})
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    for name, tensor in state.items():
        if name.startswith("optimiser/"):
            _, number, key = name.split("/")
            parameter = parameters[int(number)]
            # laid out in memory like the parameter: the same kernels, so the same bits
            slot = torch.empty_like(parameter) if tensor.shape == parameter.shape else torch.empty_like(tensor)
            optimiser.state[parameter][key] = slot.detach().copy_(tensor)
    return epochs
