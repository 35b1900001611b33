"""Backbone, head and decoder as one model, from uint8 pixels to an Output.

Shapes: B images, C channels, H x W pixels; K classes.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from nacre.data.source import ImageSpec, Samples
from nacre.errors import NacreError, choose
from nacre.models.backbones import Backbone, fused
from nacre.models.decoders import Decoder
from nacre.models.growing import Growing
from nacre.models.heads import HEADS, Head
from nacre.models.output import Output
from nacre.models.registry import backbone
from nacre.seeds import seeded


class Normalise(nn.Module):
    """uint8 pixels -> float32 with mean 0 and variance 1 per channel over the training images of stage 1.

    So a squared error in these units is a fraction of the channel's variance. A channel without variance counts with 1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def learn(self, samples: Samples, chunk: int = 2**22) -> None:
        """Take mean and variance from samples, reading about `chunk` values at a time."""
        total = square = torch.zeros(len(self.mean), dtype=torch.float64)
        for rows in torch.arange(len(samples)).split(max(1, chunk // math.prod(samples.images.shape[1:]))):
            pixels = samples.pixels(rows).to(torch.float64) / 255
            total = total + pixels.sum((0, 2, 3))
            square = square + pixels.square().sum((0, 2, 3))
        _, _, height, width = samples.images.shape
        count = len(samples) * height * width
        mean = total / count
        variance = (square / count - mean.square()).clamp_min(0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(variance > 1e-8, variance, 1).sqrt())

    def given(self, mean: Tensor, std: Tensor) -> None:
        """Take mean and deviation, [C] each, from elsewhere."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def forward(self, images: Tensor) -> Tensor:
        """[B, C, H, W], uint8 -> float32, in channels-last layout where the images are."""
        scale = (1 / (255 * self.std))[:, None, None]
        return images.float() * scale - (self.mean / self.std)[:, None, None]

    def inverse(self, images: Tensor) -> Tensor:
        """[B, C, H, W], normalised float -> uint8, clipped."""
        pixels = (images * self.std[:, None, None] + self.mean[:, None, None]) * 255
        return pixels.round().clamp(0, 255).to(torch.uint8)


class Model(nn.Module):
    """One network: features from the backbone, logits from the head, and, where asked, the image from the decoder.

    Args:
        backbone: images -> feature maps.
        head: features -> logits, trained with the backbone.
        spec: of the images.
        decoder: last feature map -> image.
        readout: features -> logits; where there is one, it answers `predict` in place of the head.
    """

    def __init__(
        self, backbone: Backbone, head: Head, spec: ImageSpec, decoder: Decoder | None = None, readout: Growing | None = None
    ) -> None:
        nn.Module.__init__(self)
        self.spec = spec
        self.normalise = Normalise(spec.channels)
        self.backbone = backbone
        self.head = head
        self.decoder = decoder
        self.readout = readout

    @property
    def classes(self) -> int:
        """How many classes the head knows."""
        return self.head.size()[0]

    def grow(self, classes: int) -> None:
        """Let the head answer for `classes` classes."""
        self.head.resize(classes)

    def select(self, classes: Tensor) -> None:
        """Answer for some classes alone: positions [k], ascending."""
        self.head.select(classes)
        if self.readout is not None:
            self.readout.select(classes)

    def forward(self, images: Tensor, *, decode: bool = False) -> Output:
        """Answer normalised images.

        Args:
            images: [B, C, H, W], float, from `normalise`.
            decode: also reconstruct; needs a decoder.
        """
        maps, aux = self.backbone.with_aux(images)
        with torch.autocast(images.device.type, enabled=False):  # the head is small, and bf16 would round its logits
            features = maps[-1].float().mean((2, 3))
            logits = self.head(features)
        reconstruction = None
        if decode and self.decoder is not None:
            reconstruction = self.decoder.of(maps).float()
        return Output(maps, features, logits, reconstruction, aux)

    def answer(self, features: Tensor) -> Tensor:
        """Logits [B, K] of the declared readout, or of the head where there is none, for features [B, D]."""
        answer: Tensor = (self.readout or self.head)(features)
        return answer

    def frozen(self, *, answers: bool = True) -> Model:
        """A copy in inference form: no gradients, batch norms folded into the convolutions before them.

        Args:
            answers: with its readout, which may be larger than the network; a teacher needs none.
        """
        whole = self
        if not answers:
            whole = Model(self.backbone, self.head, self.spec, self.decoder)
            whole.normalise = self.normalise
        twin = copy.deepcopy(whole).eval().requires_grad_(False)
        fused(twin)
        return twin


def build_model(name: str, head: str, spec: ImageSpec, *, readout: Callable[[int], Growing] | None = None) -> Model:
    """A model without classes.

    Args:
        name: of the backbone, see `nacre.models.registry.backbone`.
        head: a key of `HEADS`.
        spec: of the images.
        readout: makes what answers in place of the head, from the number of features, such as `NearestMean`.
    """
    trunk = backbone(name, spec)
    return Model(trunk, choose("head", head, HEADS)(trunk.dim), spec, readout=None if readout is None else readout(trunk.dim))


def with_decoder(model: Model, tap: int = 1) -> Model:
    """Give a model on the CPU its decoder, drawn from random numbers of its own so that nothing else of the run changes.

    Args:
        model: without one.
        tap: the map it starts from, 1 for the deepest.

    Raises:
        NacreError: the backbone gives fewer maps.
    """
    shape = model.spec.shape
    start: tuple[int, ...] = (model.backbone.dim, *(-(-side // model.backbone.reduction) for side in shape[1:]))
    if tap > 1:
        with torch.no_grad():
            maps = model.backbone.eval()(torch.zeros(1, *shape))
        model.backbone.train()
        if tap > len(maps):
            raise NacreError(f"decoding.tap is {tap}, but {type(model.backbone).__name__} gives {len(maps)} maps: choose 1 to {len(maps)}.")
        start = tuple(maps[-tap].shape[1:])
    with seeded(torch.initial_seed(), "decoder"):
        model.decoder = Decoder(start[0], (start[1], start[2]), shape, tap=tap)
    return model
