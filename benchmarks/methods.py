"""Images per second and peak memory of every method's later stages, over those of plain replay; and the bytes each carries.

Every method learns the second of two small stages, with ResNet-32 at 32 x 32 pixels in one thread unless told otherwise. Its fits,
as it yields them but for one epoch and a common batch, take turns with those of replay, and the median of the paired ratios counts. An
image counts in every fit that shows it. What a method does in the stage beside its fits (exemplars, importance, closed forms) is timed
apart, and spread over the images that as many epochs as `--epochs` says would show. A method without a fit is timed over all it does in
the stage.

What to expect follows from the fit alone, by one rule. Per image shown, a layer costs its multiplications once to go forward, once
more where its weights learn, and once more where something before it learns. So frozen branches, frozen trunks and fits of a head
alone cost their forward pass, and the decoder what its layers cost. A teacher costs its forward pass. `turns` shows everything four
times, `views` so many times. Rehearsal in a ratio shows so many images more; one that stands apart, for a gradient of its own, shows
them to the model alone. Losses, gradients' treatment and heads are expected to cost nothing, so that their cost is what falls short.
Beside the fits, PyTorch's own counter counts the operations of convolutions and products of matrices, and ours those of factors,
inverses and solutions. An operation counts by the bytes of its numbers, because so many fewer fit into a vector: half of one in bf16,
two in double precision. Those of any other kind, such as a support vector machine or a clustering, are expected to cost nothing.

Peak memory is the growth of a process of its own over the whole stage, over that of replay; the median of three processes counts,
whose allocator gives large blocks back.
What to expect again follows from the fits: a layer that learns, or before which something learns, keeps what it is given until the
gradients are there, and so does a batch norm. So a step holds that for every image that it shows at once, beside a gradient and a
momentum for every weight that learns, and the largest fit counts. Without a fit it is a chunk of images on its way through the
network, of which those maps are held that something still refers to when a layer runs. Beside either are all models of the fits, their
readouts' tables included, and the statistics that a method carries from stage to stage.

    python benchmarks/methods.py [--methods NAME ...] [--rounds N] [--json | --markdown]
    python benchmarks/methods.py --bytes     writes the bytes that `nacre methods` shows
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import nacre.methods
from nacre.data.augment import Augment
from nacre.data.memory import NOTHING, PerClass
from nacre.data.source import ImageSpec, Samples
from nacre.data.stream import Stage
from nacre.evaluation.cost import carried, unfitted
from nacre.methods import METHODS
from nacre.models.model import Model
from nacre.models.norm import BatchNorm
from nacre.training.inference import chunk, evaluating
from nacre.training.journal import Journal
from nacre.training.learner import Learner
from nacre.training.phases import Fit, Watch, Work, trainable
from nacre.training.runtime import Hardware, Runtime
from nacre.training.speed import settle

CLASSES = 4
"""Of each stage."""
FROM_SCRATCH = [name for name, cls in METHODS.items() if "pre-training" not in cls.needs]
WIDE = 4
"""Bytes of a weight, a gradient, a momentum."""
ALLOWED = 0.15
"""By so much a method may fall short of what is expected."""


@dataclass
class Rig:
    """A method before the fits of its second stage."""

    learner: Learner
    stage: Stage
    fits: Sequence[Fit]
    epochs: int
    """Over which what is done beside the fits is spread."""
    beside: float
    """Seconds of it."""
    counted: float = 0.0
    """Operations of it, on numbers of four bytes."""

    def seconds(self) -> float:
        """What the fits take and their share of the rest, or the whole stage where there is no fit."""
        work = Work(self.learner.runtime, self.learner.knowledge, self.stage, self.learner.spec.augment, 0, 0, Journal(), Watch())
        synchronise(work.runtime)
        began = time.perf_counter()
        for fit in self.fits:
            fit.run(work)
        if not self.fits:
            unfitted(self.learner, self.stage)
        synchronise(work.runtime)
        return time.perf_counter() - began + self.share * self.beside

    @property
    def share(self) -> float:
        """Of what is done beside the fits, in one epoch; all of it is timed anew where there is no fit."""
        return 1 / self.epochs if self.fits else 0.0

    @property
    def images(self) -> int:
        """How many the fits count."""
        return sum(len(fit.data) for fit in self.fits) or len(self.stage.train)

    @property
    def wide(self) -> int:
        """Bytes of a number in a fit."""
        return 2 if self.learner.runtime.hardware.precision == "bf16" else WIDE

    def operations(self) -> float:
        """Operations on numbers of four bytes that an image is expected to cost."""
        beside = self.share * self.counted if self.fits else self.counted
        return (sum(len(fit.data) * operations(fit) for fit in self.fits) * self.wide / WIDE + beside) / self.images

    def held(self) -> float:
        """Bytes that the stage is expected to hold at most."""
        own = self.learner.knowledge.model
        models = [model for fit in self.fits for model in (fit.model, fit.teacher) if model is not None] or [own]
        tables = {id(table): table.nbytes for model in models for table in (*model.parameters(), *model.buffers())}
        still = sum(tables.values()) + sum(tensor.nbytes for tensor in self.learner.knowledge.statistics.values())
        steps = [self.wide * fit.optim.batch * kept(fit) + 2 * WIDE * learning(fit) for fit in self.fits]
        return still + max([self.wide * chunk(*own.spec.shape[-2:]) * passing(own), *steps])


def synchronise(runtime: Runtime) -> None:
    """Wait for the device."""
    if runtime.device.type == "cuda":
        torch.cuda.synchronize(runtime.device)


def rig(name: str, runtime: Runtime, options: argparse.Namespace) -> Rig:
    """Let a method learn a first stage without its fits, and prepare the second; replay's batches then divide evenly.

    It is done three times, the last one by a slower program that counts operations; the shorter time of the others is taken.
    """
    whole = [prepared(name, runtime, options) for _ in range(2)]
    with FlopCounterMode(display=False, custom_mapping=ALGEBRA) as counter:
        prepared(name, runtime, options, counter)
    return replace(min(whole, key=lambda one: one.beside), counted=counter.get_total_flops())


def prepared(name: str, runtime: Runtime, options: argparse.Namespace, counter: FlopCounterMode | None = None) -> Rig:
    """The same once; a counter begins anew before the second stage."""
    cls = METHODS[name]
    spec = ImageSpec((3, options.size, options.size), Augment(shift=4, flip=True))
    kept = max(1, options.batch // CLASSES)
    budget = cls.budget if cls.budget == NOTHING else PerClass(kept)
    given = {name: getattr(options, name) for name in ("backbone", "width") if name in vars(options) and name in cls.__dataclass_fields__}
    learner = Learner(replace(cls(), **given), spec, memory=budget, runtime=runtime)
    unfitted(learner, stage(0, kept, spec))
    yielded: list[Fit] = []
    later = stage(1, kept * max(1, options.steps - 1), spec)
    if counter is not None:
        counter.flop_counts.clear()
    synchronise(runtime)
    began = time.perf_counter()
    unfitted(learner, later, lambda fit: yielded.append(copy.deepcopy(fit, {id(fit.data): fit.data})))
    synchronise(runtime)
    beside = time.perf_counter() - began
    fits = [replace(fit, optim=replace(fit.optim, epochs=1, batch=options.batch, lr=1e-4, warmup=0.0)) for fit in yielded]
    return Rig(learner, later, fits, options.epochs, beside)


def stage(index: int, count: int, spec: ImageSpec) -> Stage:
    """A stage of so many images of noise per class."""
    classes = range(index * CLASSES, (index + 1) * CLASSES)
    labels = torch.arange(classes.start, classes.stop).repeat(count)
    draw = torch.Generator().manual_seed(index)
    samples = Samples.of(torch.randint(0, 256, (len(labels), *spec.shape), dtype=torch.uint8, generator=draw), labels)
    return Stage(index, classes.start, classes.stop, tuple(map(str, classes)), samples, samples.take(labels < 0))


def product(*given: Tensor, out_val: Tensor, **rest: object) -> float:
    """Operations of the product of the last two matrices given."""
    return width(out_val) * 2 * out_val.numel() * given[-2].shape[-1]


def factor(matrix: Tensor, *given: object, **rest: object) -> float:
    """Operations of Cholesky's factor of n x n: n^3 / 3."""
    return width(matrix) * len(matrix) ** 3 / 3


def backward_and_forward(sides: Tensor, triangle: Tensor, *given: object, **rest: object) -> float:
    """Operations of solving twice for k right sides with a triangle n x n: 2 n^2 k."""
    return width(sides) * 2 * sides.numel() * len(triangle)


def elimination(matrix: Tensor, sides: Tensor, *given: object, **rest: object) -> float:
    """Operations of Gauss's elimination of n x n with k right sides: 2 n^3 / 3 + 2 n^2 k."""
    return width(matrix) * (2 * len(matrix) ** 3 / 3 + 2 * sides.numel() * len(matrix))


def inverse(matrix: Tensor, *given: object, **rest: object) -> float:
    """Operations of inverting n x n: 2 n^3."""
    return width(matrix) * 2 * len(matrix) ** 3


def convolution(given: Tensor, weight: Tensor, *rest: object, out_val: Tensor) -> float:
    """Operations of a convolution."""
    return width(out_val) * 2 * out_val.numel() * weight[0].numel()


def convolution_back(gradient: Tensor, given: Tensor, weight: Tensor, *rest: Any, out_val: object) -> float:
    """Operations of a convolution's gradients of images and of weights: each what its forward pass takes.

    PyTorch's own formula counts groups, of which every image is one where gradients are taken apart, as if all saw all.
    """
    *_, wanted = rest
    return width(gradient) * 2 * gradient.numel() * weight[0].numel() * sum(wanted[:2])


def width(value: Tensor) -> float:
    """By how much an operation counts: a vector holds so many numbers fewer."""
    return value.element_size() / WIDE


ALGEBRA: dict[Any, Any] = {
    **dict.fromkeys([torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm, torch.ops.aten.baddbmm], product),
    torch.ops.aten.convolution: convolution,
    torch.ops.aten.convolution_backward: convolution_back,
    torch.ops.aten.linalg_cholesky_ex: factor,
    torch.ops.aten.cholesky_solve: backward_and_forward,
    torch.ops.aten._linalg_solve_ex: elimination,
    torch.ops.aten.linalg_inv_ex: inverse,
}
"""How operations on matrices and images are counted."""
for formula in ALGEBRA.values():
    formula._get_raw = True  # it is given tensors, not their shapes: their width counts


class Cost(NamedTuple):
    """What an image costs on its way through a model, and back as far as something learns."""

    operations: float
    """Of floating point."""
    kept: float
    """Numbers held until the gradients are there."""


def operations(fit: Fit) -> float:
    """Floating point operations that one image of a fit is expected to cost; see this module's rule."""
    taught = 0.0
    if fit.teacher is not None:
        with torch.no_grad():
            taught = cost(fit.teacher, False).operations
    learning = learnt(fit).operations
    joined, apart = shown(fit)
    return joined * (learning + taught) + apart * learning


def kept(fit: Fit) -> float:
    """Numbers that a step of a fit is expected to hold for its gradients, per image of a batch; see this module's rule."""
    return max(shown(fit)) * learnt(fit).kept


def learning(fit: Fit) -> int:
    """How many numbers a fit learns."""
    with trainable(fit.model, fit.only, fit.still):
        return sum(weight.numel() for weight in fit.model.parameters() if weight.requires_grad)


def learnt(fit: Fit) -> Cost:
    """Of a fit's model, as far as it learns there."""
    with trainable(fit.model, fit.only, fit.still):
        return cost(fit.model, fit.loss.decodes)


def shown(fit: Fit) -> tuple[float, float]:
    """How often a fit shows each of its images, rehearsal and turns included: in one batch, and apart from it."""
    rehearsal = fit.rehearsal if fit.rehearsal is not None and len(fit.rehearsal.samples) else None
    ratio, apart = (0.0, False) if rehearsal is None else (rehearsal.ratio, rehearsal.apart)
    turns = 4 if fit.turns else 1
    return turns * (fit.views + ratio * (not apart)), turns * ratio * apart


def cost(model: Model, decode: bool) -> Cost:
    """Of one image."""
    spent: list[float] = []
    held: dict[int, Tensor] = {}

    def count(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        if out.requires_grad:
            held[id(given[0])] = given[0]  # once, however many layers are given it
        if not isinstance(layer, BatchNorm):
            assert isinstance(layer.weight, Tensor)
            forward = 2 * out[0].numel() * layer.weight[0].numel()
            learns = given[0].requires_grad + layer.weight.requires_grad
            spent.append(forward * (1 + out.requires_grad * learns))

    watched(model, count, decode)
    return Cost(sum(spent), sum(map_[0].numel() for map_ in held.values()))


def passing(model: Model) -> int:
    """Numbers per image that a pass without gradients is expected to hold at most."""
    seen: dict[int, weakref.ref[Tensor]] = {}
    most = [0]

    def count(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        seen.update({id(tensor): weakref.ref(tensor) for tensor in (given[0], out)})
        alive = {tensor.data_ptr(): tensor[0].numel() for ref in seen.values() if (tensor := ref()) is not None}
        most.append(sum(alive.values()))

    with evaluating(model):
        watched(model, count)
    return max(most)


def watched(model: Model, count: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None], decode: bool = False) -> None:
    """Show two blank images to a model, and every layer with what it is given and gives to `count`."""
    layers = [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear | BatchNorm)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    model(torch.zeros(2, *model.spec.shape, device=next(model.parameters()).device), decode=decode)
    for hook in hooks:
        hook.remove()


def runtime_of(options: argparse.Namespace) -> Runtime:
    """The hardware, with what `auto` means on it."""
    runtime = Runtime(Hardware(device=options.device, precision=options.precision, layout=options.layout, threads=options.threads))
    blank = METHODS["replay"](backbone=options.backbone).whole(ImageSpec((3, options.size, options.size)))
    settle(runtime, blank, options.batch)
    return runtime


def measure(name: str, plain: Rig, options: argparse.Namespace) -> dict[str, Any]:
    """One method in turns with replay."""
    mine = rig(name, plain.learner.runtime, options)
    turns = [(mine.seconds() / mine.images, plain.seconds() / plain.images) for _ in range(options.rounds + 1)][1:]  # the first warms up
    ratios = [other / own for own, other in turns]
    expected = plain.operations() / mine.operations()
    ratio = median(ratios)
    return {
        "method": name,
        "images_per_second": 1 / median(own for own, _ in turns),
        "ratio": ratio,
        "least": min(ratios),
        "most": max(ratios),
        "expected": expected,
        "shortfall": 1 - ratio / expected,
        "beside": mine.beside / len(mine.stage.train) / median(other for _, other in turns),
        "expected_memory": mine.held() / plain.held(),
    }


def growth(name: str, options: argparse.Namespace) -> int:
    """Bytes by which this process's peak grows over a method's stage; a smaller one before it loads what is loaded late."""
    runtime = runtime_of(options)
    small = argparse.Namespace(**{**vars(options), "backbone": "small", "width": 16, "batch": 8, "steps": 2})
    prepared(name, runtime, small).seconds()
    before = runtime.peak_bytes()
    prepared(name, runtime, options).seconds()
    return runtime.peak_bytes() - before


def growth_elsewhere(name: str, hardware: Hardware) -> int:
    """The same in processes of its own, with the options of this one, and what it has found to be fastest.

    Large blocks go back to the system when they are freed (the variable keeps `keep_freed` off), so that the peak is what was held at
    once, and not also what the allocator could not fill again, which is up to a quarter more, by the order in which sizes come.
    """
    found = ["--precision", hardware.precision, "--layout", hardware.layout]
    command = [sys.executable, __file__, *sys.argv[1:], *found, "--peak", name]
    plain = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(2**20)}
    return median(int(subprocess.run(command, env=plain, capture_output=True, text=True, check=True).stdout) for _ in range(3))


def report(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed."""
    runtime = runtime_of(options)
    follow = partial(track, console=Console(stderr=True), transient=True)
    peaks: dict[str, int] = {}
    if options.memory:
        peaks = {name: growth_elsewhere(name, runtime.hardware) for name in follow(dict.fromkeys(["replay", *options.methods]), "memory")}
    plain = rig("replay", runtime, options)
    rows = [measure(name, plain, options) for name in follow(options.methods, "speed")]
    for row in rows:
        row["memory"] = peaks[row["method"]] / peaks["replay"] if peaks.get("replay") else None
    return {
        "rows": rows,
        "short": [row["method"] for row in rows if row["shortfall"] > ALLOWED],
        "heavy": [row["method"] for row in rows if (row["memory"] or 0) > (1 + ALLOWED) * row["expected_memory"]],
        "replay_peak_bytes": peaks.get("replay"),
        "device": runtime.describe(),
        "precision": runtime.hardware.precision,
        "layout": runtime.hardware.layout,
        **{name: getattr(options, name) for name in ("backbone", "size", "batch", "steps", "rounds", "threads", "epochs")},
        "torch": torch.__version__,
    }


HEADS = ("method", "images/s", "ratio", "spread", "expected", "short", "beside", "memory", "expected memory")
"""Of the table."""


def cells(row: dict[str, Any]) -> list[str]:
    """What stands below the heads."""
    memory = "-" if row["memory"] is None else f"{row['memory']:.2f}"
    span = f"{row['least']:.2f} - {row['most']:.2f}"
    short = f"{100 * row['shortfall']:.0f} %"
    return [
        row["method"],
        f"{row['images_per_second']:,.0f}",
        f"{row['ratio']:.2f}",
        span,
        f"{row['expected']:.2f}",
        short,
        f"{row['beside']:.2f}",
        memory,
        f"{row['expected_memory']:.2f}",
    ]


def remarks(found: dict[str, Any]) -> list[str]:
    """What stands below the table."""
    short, heavy = (", ".join(found[name]) or "none" for name in ("short", "heavy"))
    return [
        f"{found['backbone']}, {found['size']} x {found['size']} pixels, batch {found['batch']}, {found['device']}, {found['precision']}, "
        f"{found['layout']}; ratio, memory and what is expected of them are over those of replay",
        f"beside: what a stage does beside its fits, in epochs of replay over its images; a stage has {found['epochs']} epochs",
        f"slower by more than {100 * ALLOWED:.0f} % than their passes lead one to expect: {short}",
        f"heavier by more than {100 * ALLOWED:.0f} % than what their steps hold leads one to expect: {heavy}",
    ]


def show(found: dict[str, Any]) -> None:
    """Print the table."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for head in HEADS:
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=True)
    for row in found["rows"]:
        table.add_row(*cells(row))
    wide = Console()
    Console(width=None if wide.is_terminal else 400).print(table)
    for line in remarks(found):
        wide.print(line)


def markdown(found: dict[str, Any]) -> str:
    """The table as it stands in a page."""
    lines = [HEADS, ["---", *["---:"] * (len(HEADS) - 1)], *([f"`{name}`", *rest] for name, *rest in map(cells, found["rows"]))]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), *(f"\n{line}." for line in remarks(found))])


def write_bytes() -> None:
    """Find what every method carries, and put it into the package."""
    torch.set_num_threads(1)
    found = {name: carried(METHODS[name]()) for name in track(FROM_SCRATCH, console=Console(stderr=True), transient=True)}
    path = Path(nacre.methods.__file__).parent / "carried.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    for name, count in found.items():
        print(f"{name:24}{count:>15,}")


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("--markdown", action="store_true", help="the table as Markdown")
    parser.add_argument("--bytes", action="store_true", help="find and write the bytes carried, and nothing else")
    parser.add_argument("--methods", nargs="+", choices=FROM_SCRATCH, default=FROM_SCRATCH, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5, help="turns that count")
    parser.add_argument("--steps", type=int, default=4, help="steps of a turn of replay")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=20, help="of a stage, over which what is done beside its fits is spread")
    parser.add_argument("--backbone", default="resnet32")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--layout", default="auto")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="peak memory too")
    parser.add_argument("--peak", choices=FROM_SCRATCH, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bytes:
        write_bytes()
    elif options.peak:
        print(growth(options.peak, options))
    elif options.json:
        print(json.dumps(report(options)))
    elif options.markdown:
        print(markdown(report(options)))
    else:
        show(report(options))


if __name__ == "__main__":
    main()
