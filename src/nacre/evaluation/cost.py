"""What a model costs: bytes, parameters, arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from importlib.resources import files

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nacre.data.memory import UNLIMITED
from nacre.data.protocols import stage_sizes
from nacre.data.source import ImageSpec, Samples, Source
from nacre.data.stream import Stage, Stream
from nacre.models.model import Model
from nacre.seeds import generator, seeded
from nacre.training.inference import evaluating
from nacre.training.journal import Journal
from nacre.training.knowledge import Knowledge
from nacre.training.learner import Learner
from nacre.training.method import Method
from nacre.training.phases import Fit, Watch, Work
from nacre.training.runtime import Hardware, Runtime

SPEC = ImageSpec((3, 32, 32))
"""Of CIFAR-100's images."""
CLASSES, PROTOCOL, BACKBONE = 100, "b0-inc10", "resnet32"
"""Under which methods are compared by the bytes they carry."""
FEWEST, MOST = 4, 500
"""Images of a class where a method keeps none, and where it keeps all, as many as CIFAR-100 has."""


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def footprint(knowledge: Knowledge) -> dict[str, int]:
    """Bytes by part.

    Returns:
        `deployed`: what prediction needs, the model without its decoder; `carried`: all that goes from stage to stage, which
        is `model`, `exemplars` and `statistics`. The teacher is made from the model anew and carries nothing.
    """
    model = size(knowledge.model.state_dict().values())
    decoder = size(knowledge.model.decoder.state_dict().values()) if knowledge.model.decoder is not None else 0
    parts = {
        "model": model,
        "exemplars": size(knowledge.memory.state().values()),
        "statistics": size(knowledge.statistics.values()),
    }
    return {"deployed": model - decoder, "carried": sum(parts.values()), **parts}


def arithmetic(model: Model) -> dict[str, int]:
    """`parameters`, with and without the decoder, and floating point operations per image to predict (a multiply-add is 2)."""
    decoder = sum(p.numel() for p in model.decoder.parameters()) if model.decoder is not None else 0
    parameters = sum(p.numel() for p in model.parameters())
    device = next(model.parameters()).device
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *model.spec.shape, device=device))
    return {"parameters": parameters - decoder, "decoder_parameters": decoder, "flops_per_image": counter.get_total_flops()}


def carried(method: Method) -> int:
    """Bytes of all that a method carries when it has learnt a hundred classes in ten stages, with ResNet-32 and its own budget.

    Nothing is trained, since weights take the same bytes whatever they are; everything else of every stage is done, on images of
    noise, of which every class has enough to fill the memory. Where `Method.varying` says so, training and real images bring more.
    """
    quota = method.budget.quota(CLASSES, math.prod(SPEC.shape))
    count = MOST if quota == UNLIMITED else max(quota, FEWEST)
    labels = torch.arange(CLASSES).repeat_interleave(count)
    images = torch.randint(0, 256, (len(labels), *SPEC.shape), dtype=torch.uint8, generator=generator(0, "noise"))
    samples = Samples.of(images, labels)
    source = Source(samples, samples.take(labels[:0]), tuple(map(str, range(CLASSES))), SPEC.augment)
    hardware = Hardware(device="cpu", precision="fp32", layout="contiguous", threads=torch.get_num_threads())
    learner = Learner(replace(method, backbone=BACKBONE), SPEC, runtime=Runtime(hardware))
    for stage in Stream(source, stage_sizes(PROTOCOL, CLASSES), range(CLASSES)):
        unfitted(learner, stage)
    return footprint(learner.knowledge)["carried"]


def unfitted(learner: Learner, stage: Stage, instead: Callable[[Fit], object] = lambda fit: None) -> None:
    """Do all of a stage but its fits, each of which is given to `instead` when its turn comes, with its models as they are then."""
    with seeded(learner.seed, "unfitted", stage.index):
        learner.prepare(stage)
        for number, phase in enumerate(learner.method.lesson(learner.knowledge, stage)):
            if isinstance(phase, Fit):
                instead(phase)
            else:
                phase.run(Work(learner.runtime, learner.knowledge, stage, learner.spec.augment, learner.seed, number, Journal(), Watch()))


def carried_bytes() -> dict[str, int]:
    """What `carried` found for every method that is trained from scratch, by name; `python benchmarks/methods.py --bytes` writes it."""
    found: dict[str, int] = json.loads(files("nacre.methods").joinpath("carried.json").read_text(encoding="utf-8"))
    return found
