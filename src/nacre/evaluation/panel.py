"""Forgetting made visible: exemplars, their reconstruction when their class came, and now.

Shapes: K classes, C channels, H x W pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nacre import files
from nacre.data.source import Samples
from nacre.data.stream import Stage
from nacre.errors import NacreError
from nacre.training.inference import outputs
from nacre.training.learner import Learner

THEN = "reconstruction_then"
"""Name of the statistic that keeps the old reconstructions."""


@dataclass(frozen=True, eq=False)
class Panel:
    """One exemplar of every class, each [K, C, H, W], uint8."""

    images: Tensor
    then: Tensor
    now: Tensor
    errors: Tensor
    """[K]: fraction of variance unexplained, now."""


def first_exemplars(learner: Learner) -> Samples | None:
    """The most worthy exemplar of every class; None where a class has none."""
    memory = learner.knowledge.memory.samples()
    firsts = [int(torch.nonzero(memory.labels == label)[0]) for label in memory.labels.unique()]
    return memory.take(torch.tensor(firsts)) if firsts and len(firsts) == len(learner.classes) else None


def reconstruct(learner: Learner, samples: Samples) -> tuple[Tensor, Tensor]:
    """Reconstructions as uint8 images, and each one's fraction of variance unexplained."""
    model, parts, errors = learner.knowledge.model, [], []
    for images, out in outputs(model, samples, learner.runtime, decode=True):
        assert out.reconstruction is not None
        parts.append(model.normalise.inverse(out.reconstruction).cpu())
        errors.append((out.reconstruction - images).square().mean((1, 2, 3)).cpu())
    return torch.cat(parts), torch.cat(errors)


def keep(learner: Learner, stage: Stage) -> None:
    """After a stage: keep how the first exemplars of the classes it brought are reconstructed, C x H x W bytes per class."""
    exemplars = first_exemplars(learner)
    if exemplars is None or learner.knowledge.model.decoder is None:
        return
    now, _ = reconstruct(learner, exemplars)
    before = learner.knowledge.statistics.get(THEN, now[:0]).cpu()
    then = torch.cat([before, now[len(before) :]])
    brought = stage.train.labels.unique()
    then[brought] = now[brought]  # further images of a known class may have given it another first exemplar
    learner.knowledge.statistics[THEN] = then


def panel(learner: Learner) -> Panel | None:
    """The pictures; None without a decoder, or without exemplars."""
    exemplars, then = first_exemplars(learner), learner.knowledge.statistics.get(THEN)
    if exemplars is None or then is None or learner.knowledge.model.decoder is None:
        return None
    if then.shape != (len(exemplars), *learner.spec.shape) or then.dtype != torch.uint8:
        raise NacreError("the model's old reconstructions do not fit its classes: use a copy that is whole.")
    now, errors = reconstruct(learner, exemplars)
    return Panel(exemplars.pixels(), then.cpu(), now, errors)


def draw(shown: Panel, names: Sequence[str], path: Path, side: int = 96) -> None:
    """Write the pictures as one PNG: a column per class, its exemplar, its reconstruction then, and now.

    Args:
        shown: the pictures.
        names: of the classes.
        path: where.
        side: of a picture, in pixels.
    """
    from PIL import Image, ImageDraw, ImageFont

    gap, label, margin = 8, 22, 68
    across = min(len(names), 12)
    down = -(-len(names) // across)
    height = 3 * (side + gap) + label + gap
    sheet = Image.new("RGB", (margin + across * (side + gap) + gap, down * height + gap), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, name in enumerate(names):
        left, top = margin + gap + number % across * (side + gap), gap + number // across * height
        for row, word in enumerate(("exemplar", "then", "now") if number % across == 0 else ()):
            pen.text((gap, top + row * (side + gap) + side // 2 - 8), word, fill="#666666", font=font)
        for row, pictures in enumerate((shown.images, shown.then, shown.now)):
            pixels = pictures[number]
            picture = Image.fromarray((pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)).numpy())
            how = Image.Resampling.NEAREST if max(picture.size) < side else Image.Resampling.BOX
            sheet.paste(picture.convert("RGB").resize((side, side), how), (left, top + row * (side + gap)))
        while name and pen.textlength(name, font) > side:
            name = name.removesuffix("…")[:-1] + "…"
        pen.text((left, top + 3 * (side + gap)), name, fill="#333333", font=font)
    out = io.BytesIO()
    sheet.save(out, "PNG")
    files.write(path, out.getvalue())


def growth(learner: Learner, shown: Panel) -> Tensor:
    """By how much the unexplained variance of each class's exemplar grew since the class came: [K], a drift without labels."""
    normalise = learner.knowledge.model.normalise
    images, then, now = (normalise(learner.runtime.images(pixels)) for pixels in (shown.images, shown.then, shown.now))
    more: Tensor = ((now - images).square() - (then - images).square()).mean((1, 2, 3))
    return more.cpu()
