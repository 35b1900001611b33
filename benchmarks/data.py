"""How fast photographs are decoded, and whether a step ever waits for its data.

Decoding: photographs made here go through the cache with all cores, against Pillow alone on one core in the same run.
Loading: ResNet-18 at 64 and 224 pixels. The loader by itself (order, pixels, augmentation) against the bare forward, backward
and step; and the real loop against the bare step, with the data resident and mapped from disk. They take turns in the same
process, and the median of the paired ratios counts.

    python benchmarks/data.py [--json]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from loop import bare, real
from nacre.data import cache
from nacre.data.augment import natural_augment
from nacre.data.decode import Form
from nacre.data.listing import Files
from nacre.data.memory import Memory, PerClass
from nacre.data.source import ImageSpec, Samples
from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.methods.finetune import Finetune
from nacre.training.deck import Deck
from nacre.training.journal import Journal
from nacre.training.knowledge import Knowledge
from nacre.training.optim import Optim
from nacre.training.phases import Fit, Watch, Work
from nacre.training.runtime import Hardware, Runtime
from nacre.training.speed import settle

CLASSES = 10
BATCHES = {64: 64, 224: 16}
"""Images of a step by their size in pixels."""


class Cramped(Runtime):
    """A runtime without memory for data, so that a Deck reads from the map."""

    def free_bytes(self) -> int:
        """None."""
        return 0


def photographs(folder: Path, count: int) -> Files:
    """JPEG files of 640 x 480 pixels with something like a photograph's detail."""
    rng = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
        noisy = np.asarray(coarse).astype(np.int16) + rng.integers(-12, 13, (480, 640, 1))
        out = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(out, "JPEG", quality=90)
        (folder / f"{number:05d}.jpg").write_bytes(out.getvalue())
    return Files(sorted(folder.iterdir()), str(folder), folder)


def pillow_alone(paths: Sequence[Path]) -> float:
    """Seconds of one core that reads, decodes, resizes the shorter side to 256 and cuts 224 x 224, image by image."""
    began = time.perf_counter()
    for path in paths:
        with Image.open(path) as image:
            scale = 256 / min(image.size)
            size = round(image.width * scale), round(image.height * scale)
            left, top = (size[0] - 224) // 2, (size[1] - 224) // 2
            np.asarray(image.convert("RGB").resize(size, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224)))
    return time.perf_counter() - began


def through_the_cache(files: Files) -> float:
    """Seconds to decode everything into an empty cache."""
    for entry in cache.entries():
        cache.remove(entry.key)
    began = time.perf_counter()
    cache.decoded(files, Form(3, 224, 224, 256 / 224))
    return time.perf_counter() - began


def decoding(count: int, rounds: int) -> dict[str, Any]:
    """Images per second, ours and Pillow's."""
    with tempfile.TemporaryDirectory() as folder:
        files = photographs(Path(folder), count)
        pairs = [(through_the_cache(files), pillow_alone(files.paths)) for _ in range(rounds)]
    cores = cache.cores()
    return {
        "images_per_second": count / median(ours for ours, _ in pairs),
        "per_core": count / median(ours for ours, _ in pairs) / cores,
        "pillow_alone": count / median(alone for _, alone in pairs),
        "ratio": median(alone / ours for ours, alone in pairs),
        "ratio_per_core": median(alone / ours for ours, alone in pairs) / cores,
        "cores": cores,
    }


def mapped(count: int, size: int) -> torch.Tensor:
    """Images [count, 3, size, size] that lie in a file."""
    path = cache.folder() / f"benchmark-{size}"
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.memmap(path, np.uint8, "w+", shape=(count, 3, size, size))
    pixels[:] = np.random.default_rng(0).integers(0, 256, pixels.shape, dtype=np.uint8)
    pixels.flush()
    return torch.from_numpy(pixels)


def work_of(runtime: Runtime, size: int, steps: int) -> tuple[Fit, Work]:
    """A first stage of ResNet-18, ready to run."""
    batch = BATCHES[size]
    images = mapped(batch * steps, size)
    spec = ImageSpec((3, size, size), natural_augment(images[:2]))
    samples = Samples.of(images, torch.arange(batch * steps) % CLASSES)
    method = Finetune(backbone="resnet18")
    torch.manual_seed(0)
    knowledge = Knowledge(method.whole(spec), Memory(PerClass(0), "random", spec.shape))
    knowledge.model.grow(CLASSES)
    settle(runtime, knowledge.model, batch)
    runtime.place(knowledge.model)
    stage = Stage(0, 0, CLASSES, ("",) * CLASSES, samples, samples)
    fit = Fit(Loss(classification=CrossEntropy()), samples, knowledge.model, optim=Optim(batch=batch, epochs=1, lr=0.01))
    return fit, Work(runtime, knowledge, stage, spec.augment, 0, 0, Journal(), Watch())


def loader_alone(fit: Fit, work: Work) -> float:
    """Seconds of an epoch of views, with nothing done to them."""
    deck = Deck(fit.data, work.augment, work.runtime, fit.optim.batch)
    began = time.perf_counter()
    for _ in deck.epoch(0, 0):
        pass
    return time.perf_counter() - began


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """Loader and loop against the bare step, for every size and place of the data."""
    hardware = Hardware(device=options.device, precision=options.precision)
    found = {}
    for size in options.sizes:
        rigs = {name: work_of(kind(hardware), size, options.steps) for name, kind in (("resident", Runtime), ("mapped", Cramped))}
        seconds: dict[str, list[tuple[float, float, float]]] = {name: [] for name in rigs}
        for turn in range(options.rounds + 1):
            for name, (fit, work) in rigs.items():
                three = bare(fit, work, fit.optim.batch, options.steps, None), real(fit, work), loader_alone(fit, work)
                seconds[name] += [three] if turn else []  # the first turn warms up
        for name, turns in seconds.items():
            count = BATCHES[size] * options.steps
            found[f"{size}_{name}"] = {
                "loader_images_per_second": count / median(load for _, _, load in turns),
                "step_images_per_second": count / median(step for step, _, _ in turns),
                "loader_over_step": median(step / load for step, _, load in turns),
                "loop_over_step": median(step / loop for step, loop, _ in turns),
                "least": min(step / loop for step, loop, _ in turns),
                "most": max(step / loop for step, loop, _ in turns),
            }
        pairs = zip(seconds["resident"], seconds["mapped"], strict=True)
        found[f"{size}_mapped"]["over_resident"] = median(resident[1] / mapped[1] for resident, mapped in pairs)
    return found


def show(found: dict[str, Any]) -> None:
    """Print the tables."""
    console, rates = Console(), found["decoding"]
    console.print(
        f"decoding 640 x 480 JPEG to 224: {rates['images_per_second']:,.0f} images/s on {rates['cores']} cores "
        f"({rates['per_core']:,.0f} a core); Pillow alone on one core {rates['pillow_alone']:,.0f}: "
        f"{rates['ratio']:.2f} times as fast, {rates['ratio_per_core']:.2f} per core"
    )
    table = Table(
        "size, data", "loader, images/s", "bare step, images/s", "loader / step", "loop / step", "least - most", "mapped / resident"
    )
    for name, row in found["loading"].items():
        table.add_row(
            name.replace("_", " "),
            f"{row['loader_images_per_second']:,.0f}",
            f"{row['step_images_per_second']:,.1f}",
            f"{row['loader_over_step']:,.1f}",
            f"{row['loop_over_step']:.3f}",
            f"{row['least']:.3f} - {row['most']:.3f}",
            f"{row['over_resident']:.3f}" if "over_resident" in row else "",
        )
    console.print(table)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the tables")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--images", type=int, default=400, help="photographs to decode")
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 224], choices=sorted(BATCHES))
    parser.add_argument("--steps", type=int, default=10, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=7, help="turns that count")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NACRE_CACHE"] = folder
        found = {"decoding": decoding(options.images, min(3, options.rounds)), "loading": loading(options)}
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
