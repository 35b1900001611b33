"""Images per second of the real loop over those of a bare forward, backward and step of the same model.

The loop is `Fit.run` as a run uses it: uint8 images, augmentation, normalisation, named terms, logging. The bare step has
its tensors already on the device in the run's precision and layout. Loop and bare step take turns in the same process, and
the median of the paired ratios counts. In a distillation stage both include the teacher's forward pass.

    python benchmarks/loop.py [--json]
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from statistics import median

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from nacre.data.augment import Augment
from nacre.data.memory import Memory, PerClass
from nacre.data.source import ImageSpec, Samples
from nacre.data.stream import Stage
from nacre.losses.distillation import distillation
from nacre.losses.reconstruction import unexplained
from nacre.methods.reconstruction_plain import ReconstructionPlain
from nacre.training.journal import Journal
from nacre.training.knowledge import Knowledge
from nacre.training.method import Decoding
from nacre.training.optim import Optim
from nacre.training.phases import Fit, Watch, Work
from nacre.training.runtime import Hardware, Runtime
from nacre.training.speed import settle

SPEC = ImageSpec((3, 32, 32), Augment(shift=4, flip=True))
CLASSES = 100
VARIANTS = {
    "first_stage": (0, None),
    "first_stage_decoder": (0, Decoding(warmup=0)),
    "distillation_stage": (CLASSES // 2, None),
    "distillation_stage_decoder": (CLASSES // 2, Decoding(warmup=0)),
}


@dataclass
class Rig:
    """One variant, ready to run either way."""

    loop: Fit
    work: Work
    bare_seconds: list[float]
    loop_seconds: list[float]


def rig(known: int, decoding: Decoding | None, runtime: Runtime, options: argparse.Namespace) -> Rig:
    """Build model, teacher and data of one variant."""
    torch.manual_seed(0)
    count = options.batch * options.steps
    labels = torch.arange(count) % CLASSES
    samples = Samples.of(torch.randint(0, 256, (count, *SPEC.shape), dtype=torch.uint8), labels)
    stage = Stage(int(known > 0), known, CLASSES, ("",) * (CLASSES - known), samples, samples)
    method = ReconstructionPlain(
        head="linear", backbone=options.backbone, decoding=decoding, optim=Optim(batch=options.batch, epochs=1, lr=0.01)
    )
    knowledge = Knowledge(method.whole(SPEC), Memory(PerClass(1), "random", SPEC.shape))
    knowledge.memory.restore({"images": samples.images[:1], "labels": labels[:1]})
    knowledge.model.grow(max(known, 1))
    knowledge.teacher = runtime.place(knowledge.model.frozen()) if known else None
    knowledge.model.grow(CLASSES)
    runtime.place(knowledge.model)
    fit = next(iter(method.lesson(knowledge, stage)))
    assert isinstance(fit, Fit)
    fit = Fit(fit.loss, samples, fit.model, fit.teacher if known else None, optim=fit.optim)
    return Rig(fit, Work(runtime, knowledge, stage, SPEC.augment, 0, 0, Journal(), Watch()), [], [])


def bare(fit: Fit, work: Work, batch: int, steps: int, decoding: Decoding | None) -> float:
    """Seconds of forward, backward and step on tensors that are already there."""
    runtime, model, teacher, known = work.runtime, fit.model.train(), fit.teacher, work.stage.known
    images = torch.randn(batch, *fit.data.images.shape[1:], device=runtime.device).contiguous(memory_format=runtime.format)
    labels = torch.randint(0, model.classes, (batch,), device=runtime.device)
    optimiser = fit.optim.build(model.parameters())
    share = known / CLASSES
    synchronise(runtime)
    began = time.perf_counter()
    for _ in range(steps):
        with runtime.autocast():
            if teacher is not None:
                with torch.no_grad():
                    old = teacher(images).logits
            out = model(images, decode=decoding is not None)
        loss = F.cross_entropy(out.logits, labels)
        if decoding is not None:
            loss = loss + decoding.weight * unexplained(out.reconstruction, images)
        if teacher is not None:
            loss = (1 - share) * loss + share * distillation(out.logits[:, :known], old, 2.0)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    synchronise(runtime)
    return time.perf_counter() - began


def real(fit: Fit, work: Work) -> float:
    """Seconds of the loop over as many images."""
    synchronise(work.runtime)
    began = time.perf_counter()
    fit.run(work)
    synchronise(work.runtime)
    return time.perf_counter() - began


def synchronise(runtime: Runtime) -> None:
    """Wait for the device."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """Run everything; returns what is printed."""
    runtime = Runtime(Hardware(device=options.device, precision=options.precision))
    settle(runtime, ReconstructionPlain(backbone=options.backbone).whole(SPEC), options.batch)
    rigs = {name: rig(known, decoding, runtime, options) for name, (known, decoding) in VARIANTS.items()}
    for turn in range(options.rounds + 1):
        for name, (_, decoding) in VARIANTS.items():
            one = rigs[name]
            seconds = bare(one.loop, one.work, options.batch, options.steps, decoding), real(one.loop, one.work)
            if turn:  # the first turn warms up
                one.bare_seconds.append(seconds[0])
                one.loop_seconds.append(seconds[1])
    count = options.batch * options.steps
    ratios = {name: [b / r for b, r in zip(one.bare_seconds, one.loop_seconds, strict=True)] for name, one in rigs.items()}
    with_decoder, without = rigs["first_stage_decoder"].loop_seconds, rigs["first_stage"].loop_seconds
    return {
        "first_stage": median(ratios["first_stage"]),
        "distillation_stage": median(ratios["distillation_stage"]),
        "decoder_cost": median(a / b for a, b in zip(with_decoder, without, strict=True)) - 1,
        "images_per_second": {
            **{name: count / median(one.loop_seconds) for name, one in rigs.items()},
            **{f"{name}_bare": count / median(one.bare_seconds) for name, one in rigs.items()},
        },
        "ratios": {name: {"median": median(values), "least": min(values), "most": max(values)} for name, values in ratios.items()},
        "peak_bytes": runtime.peak_bytes(),
        "device": runtime.describe(),
        "precision": runtime.hardware.precision,
        "layout": runtime.hardware.layout,
        "backbone": options.backbone,
        "batch": options.batch,
        "rounds": options.rounds,
        "torch": torch.__version__,
    }


def show(found: dict[str, object]) -> None:
    """Print the table."""
    table = Table(
        "stage", "loop, images/s", "bare, images/s", "loop / bare", "least - most", title=f"{found['backbone']}, batch {found['batch']}"
    )
    speed, ratios = found["images_per_second"], found["ratios"]
    assert isinstance(speed, dict)
    assert isinstance(ratios, dict)
    for name, ratio in ratios.items():
        span = f"{ratio['least']:.3f} - {ratio['most']:.3f}"
        table.add_row(name.replace("_", " "), f"{speed[name]:,.0f}", f"{speed[f'{name}_bare']:,.0f}", f"{ratio['median']:.3f}", span)
    console = Console()
    console.print(table)
    console.print(f"the decoder costs {100 * float(str(found['decoder_cost'])):.1f} % more time in a first stage")
    console.print(f"peak memory {int(str(found['peak_bytes'])) / 1e6:,.0f} MB; {found['device']}, {found['precision']}, {found['layout']}")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--backbone", default="resnet32")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=8, help="steps of a turn")
    parser.add_argument("--rounds", type=int, default=9, help="turns that count")
    options = parser.parse_args()
    found = measure(options)
    if options.json:
        print(json.dumps(found))
    else:
        show(found)


if __name__ == "__main__":
    main()
