"""A data set described: counts, sizes, channel statistics, and a picture of its classes.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nacre import files
from nacre.data.source import Samples, Source
from nacre.seeds import generator

PAPER, INK = (252, 252, 251), (40, 48, 60)


def portrait(source: Source) -> dict[str, Any]:
    """Numbers of a data set, as JSON; channel statistics in [0, 1], over at most 20,000 training images."""
    train, test = (torch.bincount(part.labels, minlength=len(source.classes)).tolist() for part in (source.train, source.test))
    mean, std = channel_statistics(source.train)
    channels, height, width = source.spec.shape
    return {
        "classes": len(source.classes),
        "train": len(source.train),
        "test": len(source.test),
        "channels": channels,
        "size": [height, width],
        "mean": mean,
        "std": std,
        "fewest": min(a + b for a, b in zip(train, test, strict=True)),
        "most": max(a + b for a, b in zip(train, test, strict=True)),
        "counts": [list(row) for row in zip(source.classes, train, test, strict=True)],
        "notes": list(source.notes),
    }


def channel_statistics(samples: Samples, most: int = 20_000) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of every channel, in [0, 1]."""
    some = samples.take(torch.linspace(0, len(samples) - 1, min(len(samples), most)).long())
    total = square = torch.zeros(samples.images.shape[1], dtype=torch.float64)
    chunks = torch.arange(len(some)).split(256)
    for rows in chunks:
        pixels = some.pixels(rows).double() / 255
        total = total + pixels.mean((2, 3)).sum(0)
        square = square + pixels.square().mean((2, 3)).sum(0)
    mean = total / len(some)
    return mean.tolist(), (square / len(some) - mean.square()).clamp_min(0).sqrt().tolist()


def contact_sheet(source: Source, path: Path, *, viewed: bool = False, rows: int = 24, columns: int = 12) -> None:
    """Draw `columns` training images of each of the first `rows` classes, with their names, as PNG.

    Args:
        source: the data set.
        path: of the picture.
        viewed: draw half as many images, each with what training sees of it to its right.
        rows: most classes.
        columns: most pictures of a class; even.
    """
    _, height, width = source.spec.shape
    side = max(32, min(96, max(height, width)))
    shown = source.classes[:rows]
    chosen = [some(source.train, label, columns // 2 if viewed else columns) for label in range(len(shown))]
    labels = torch.cat([torch.full((len(images),), label) for label, images in enumerate(chosen)])
    views = views_of(torch.cat(chosen), source)
    font = ImageFont.load_default(13)
    margin, gap = 190, 4
    sheet = Image.new("RGB", (margin + columns * (side + gap) + 12, len(shown) * (side + gap) + 16), PAPER)
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(shown):
        top = 8 + row * (side + gap)
        pen.text((12, top + side // 2 - 8), shortened(name, font, margin - 24), fill=INK, font=font)
        pairs = torch.stack([chosen[row], views[labels == row]], 1).flatten(0, 1) if viewed else chosen[row]
        for column, image in enumerate(pairs):
            sheet.paste(tile(image, side), (margin + column * (side + gap), top))
    out = io.BytesIO()
    sheet.save(out, "PNG")
    files.write(path, out.getvalue())


def some(samples: Samples, label: int, count: int) -> Tensor:
    """Up to `count` images of a class, drawn at random, always the same."""
    mine = torch.nonzero(samples.labels == label).flatten()
    return samples.pixels(mine[torch.randperm(len(mine), generator=generator(0, "contact sheet", label))[:count]])


def views_of(images: Tensor, source: Source) -> Tensor:
    """What training sees of images [n, C, H, W]; they meet in a drawn order, so that other classes are mixed in."""
    draw = generator(0, "views")
    order = torch.randperm(len(images), generator=draw)
    seen = source.augment(images[order], torch.rand(len(images), source.augment.draws, generator=draw))
    return torch.empty_like(images).index_copy(0, order, seen)


def shortened(name: str, font: Any, width: int) -> str:
    """A name with its end left out where it is wider than so many pixels."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength(name + "…") > width:
        name = name[:-1]
    return name + "…"


def tile(image: Tensor, side: int) -> Image.Image:
    """An image [C, H, W] in a square of so many pixels; small ones keep their sharp pixels."""
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
