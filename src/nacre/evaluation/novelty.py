"""What a model takes for novel: calibrated on images that training did not see."""

from __future__ import annotations

import torch
from torch import Tensor

from nacre.data.source import Samples
from nacre.errors import NacreError
from nacre.models.novelty import Novelty, calibrated, signals
from nacre.training.inference import outputs
from nacre.training.knowledge import below
from nacre.training.learner import Learner

FEWEST = 19
"""So many images have one in twenty at their end (with the next one, (19 + 1) / 20)."""
PART = "novelty"
"""Name of the tables among a knowledge's statistics."""


def known_images(learner: Learner) -> Samples:
    """Images to calibrate on: the held ones, and the exemplars too where those are too few to tell what one in twenty is."""
    held, memory = learner.knowledge.held.samples(), learner.knowledge.memory.samples()
    return held if len(held) >= FEWEST else held + memory


def tables(learner: Learner) -> dict[str, Tensor]:
    """The tables of `Novelty` for a learner as it is now; none where it has no image to calibrate on."""
    model, samples = learner.knowledge.model, known_images(learner)
    if len(samples) < FEWEST:
        return {}
    found, answers = [], []
    for images, out in outputs(model, samples, learner.runtime, decode=True):
        logits = model.answer(out.features)
        found.append(signals(images, out.reconstruction, logits))
        answers.append(logits.argmax(1))
    return calibrated(torch.cat(found), torch.cat(answers), len(learner.classes))


def calibrate(learner: Learner) -> None:
    """Let the knowledge carry the tables, for the model as it is now."""
    knowledge = learner.knowledge
    knowledge.statistics = {name: tensor for name, tensor in knowledge.statistics.items() if not name.startswith(f"{PART}/")}
    knowledge.statistics |= {f"{PART}/{name}": tensor for name, tensor in tables(learner).items()}


def detector(learner: Learner) -> Novelty | None:
    """Tells novel images from known ones; None where there is no image to calibrate on."""
    found = below(PART, learner.knowledge.statistics) or tables(learner)
    if not found:
        return None
    signals = 1 if learner.knowledge.model.decoder is None else 2
    shapes = {"mean": (len(learner.classes), signals), "deviation": (len(learner.classes), signals), "range": (2,)}
    if {name: tuple(table.shape) for name, table in found.items() if table.is_floating_point()} != shapes:
        raise NacreError("the model's tables of novelty do not fit its classes: use a copy that is whole.")
    return Novelty(found).to(learner.runtime.device)
