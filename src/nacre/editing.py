"""Changes to a learner between lessons: classes forgotten on purpose or renamed, the model made smaller."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nacre.data.listing import legible
from nacre.data.memory import Memory, PerClass
from nacre.errors import NacreError, choose
from nacre.evaluation import cost, novelty, panel
from nacre.lesson import shares
from nacre.modelfile import stored
from nacre.training.learner import Learner

ENTRY = 300
"""Bytes that a further line of its history adds to a file's header, at most."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """What a change did to the accuracy on held-out images of the classes that remain, in [0, 1]; None where there are none."""

    before: float | None
    after: float | None


def drop(learner: Learner, names: Sequence[str]) -> Change:
    """Forget classes: their rows of head and readout, exemplars, held-out images and statistics.

    Args:
        learner: between two stages.
        names: of the classes.

    Raises:
        NacreError: a class is unknown, or none would remain.
    """
    position = {name: label for label, name in enumerate(learner.classes)}
    gone = {choose("class", name, position) for name in names}
    kept = torch.tensor([label for label in range(len(position)) if label not in gone], dtype=torch.long)
    if not len(kept):
        raise NacreError("no class would remain: delete the file instead, or drop fewer classes.")
    remaining = learner.knowledge.held.samples().take(torch.isin(learner.knowledge.held.labels, kept))
    before = shares(learner, remaining, 0)["all"]
    learner.knowledge.select(kept, (*learner.method.by_class, panel.THEN, "novelty/mean", "novelty/deviation"))
    for name in ("classes", "came", "images"):
        values = getattr(learner, name)
        setattr(learner, name, tuple(values[label] for label in kept.tolist()))
    novelty.calibrate(learner)
    return Change(before=before, after=shares(learner, learner.knowledge.held.samples(), 0)["all"])


def rename(learner: Learner, old: str, new: str) -> None:
    """Call a class otherwise.

    Raises:
        NacreError: there is no such class, the new name is taken, or it is none.
    """
    label = choose("class", old, {name: label for label, name in enumerate(learner.classes)})
    if new in learner.classes and new != old:
        raise NacreError(f"there is a class {new!r} already: choose another name.")
    if not new.strip() or legible(new) != new:
        raise NacreError(f"{legible(new)!r} is no name: use letters that can be printed.")
    learner.classes = (*learner.classes[:label], new, *learner.classes[label + 1 :])


def shrink(learner: Learner, most: int, fixed: int) -> Change:
    """Store numbers at half precision, and keep fewer exemplars and held-out images per class until all fits.

    Args:
        learner: between two stages; its budgets shrink with its memories.
        most: bytes of the file.
        fixed: bytes of the file that are neither numbers nor images, its header.

    Raises:
        NacreError: it does not fit without any image.
    """
    knowledge, whole = learner.knowledge, learner.knowledge.held.samples()
    before = shares(learner, whole, 0)["all"]
    learner.half = True
    bare = fixed + ENTRY + cost.size(value for name, value in stored(learner).items() if not name.startswith(("memory/", "held/")))
    memories = (knowledge.memory, knowledge.held)
    for each in range(max(map(most_of_a_class, memories)), -1, -1):
        if bare + sum(image_bytes(memory) * len(first_of_each(memory.labels, each)) for memory in memories) <= most:
            break
    else:
        raise NacreError(f"the model takes {bare / 1e6:.2f} MB without any image: give at least that, by --to {-(-bare // 1000)}KB.")
    for memory in memories:
        if most_of_a_class(memory) > each:
            memory.take(first_of_each(memory.labels, each))
            memory.budget = PerClass(each)
    rounded = stored(learner)
    with torch.no_grad():
        for name, value in learner.state().items():
            value.copy_(rounded[name])  # what the file will hold, so that the accuracy is the file's
    novelty.calibrate(learner)
    return Change(before=before, after=shares(learner, whole, 0)["all"])


def image_bytes(memory: Memory) -> int:
    """What one image takes, with its label and what is stored beside it."""
    return math.prod(memory.images.shape[1:]) + memory.labels.element_size() + memory.stored.shape[1] * memory.stored.element_size()


def most_of_a_class(memory: Memory) -> int:
    """How many images the best served class has."""
    return int(torch.bincount(memory.labels).max()) if len(memory) else 0


def first_of_each(labels: Tensor, each: int) -> Tensor:
    """Positions of the first `each` of every class, for labels [M] in ascending order."""
    place = torch.arange(len(labels)) - torch.searchsorted(labels, labels)
    return torch.nonzero(place < each).flatten()
