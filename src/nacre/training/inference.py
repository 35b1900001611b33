"""A model's answers to many images, without gradients, chunk by chunk.

Shapes: n samples, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from nacre.data.source import Samples
from nacre.models.model import Model
from nacre.models.output import Output
from nacre.training.runtime import Runtime

CHUNK, PIXELS = 256, 2**18
"""Most images, and most pixels of a channel, per forward pass."""


def chunk(height: int, width: int) -> int:
    """How many images of so many pixels a forward pass takes."""
    return max(1, min(CHUNK, PIXELS // (height * width)))


@contextmanager
def evaluating(model: Model) -> Iterator[None]:
    """Inference form and no gradients inside; the model's mode as it was, after."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was)


def outputs(model: Model, samples: Samples, runtime: Runtime, *, decode: bool = False) -> Iterator[tuple[Tensor, Output]]:
    """Yield (normalised images, Output) for every chunk of `samples`, in their order, on the device."""
    with evaluating(model):
        for which in torch.arange(len(samples)).split(chunk(*samples.images.shape[-2:])):
            images = model.normalise(runtime.images(samples.pixels(which)))
            with runtime.autocast():
                out = model(images.contiguous(memory_format=runtime.format), decode=decode)
            yield images, out


def features(model: Model, samples: Samples, runtime: Runtime) -> Tensor:
    """Features [n, D], float32, on the device."""
    parts = [out.features for _, out in outputs(model, samples, runtime)]
    return torch.cat(parts) if parts else torch.empty(0, model.backbone.dim, device=runtime.device)


def logits(model: Model, samples: Samples, runtime: Runtime) -> Tensor:
    """Logits [n, K] of the declared readout, float32, on the device."""
    with torch.no_grad():
        return model.answer(features(model, samples, runtime))
