"""From images to feature maps.

Shapes: B images, C channels, H x W pixels; D channels in the last map.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

from nacre.models.norm import BatchNorm


class Backbone(nn.Module, ABC):
    """Normalised images [B, C, H, W] -> feature maps by depth; the last has `dim` channels."""

    dim: int
    reduction: int
    """How many times smaller than the image the last map is, rounded up."""

    @abstractmethod
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> maps [B, D_i, h_i, w_i], the last with D = `dim`."""

    def with_aux(self, images: Tensor) -> tuple[tuple[Tensor, ...], Mapping[str, Tensor]]:
        """The maps of `forward`, and what else terms of this backbone's own method look at (`Output.aux`)."""
        return self(images), {}

    def bare(self) -> Backbone:
        """The backbone that weights from elsewhere are for: this one, or the one inside."""
        return self


def conv_norm(inputs: int, outputs: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """A convolution without bias and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, BatchNorm(outputs))


class SmallNet(Backbone):
    """Five 3x3 convolutions in three depths, for images of at most 32 pixels such as digits (82 k parameters, D = 64)."""

    dim = 64
    reduction = 4

    def __init__(self, channels: int) -> None:
        Backbone.__init__(self)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(conv_norm(channels, 32), nn.ReLU(inplace=True)),
                nn.Sequential(conv_norm(32, 64, stride=2), nn.ReLU(inplace=True), conv_norm(64, 64), nn.ReLU(inplace=True)),
                nn.Sequential(conv_norm(64, 64, stride=2), nn.ReLU(inplace=True), conv_norm(64, self.dim), nn.ReLU(inplace=True)),
            ]
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> three maps at 1, 1/2 and 1/4 of the size."""
        return through(self.stages, images)


def through(stages: nn.ModuleList, x: Tensor) -> tuple[Tensor, ...]:
    """Run stages one after the other and keep what each gives."""
    maps = []
    for stage in stages:
        x = stage(x)
        maps.append(x)
    return tuple(maps)


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., CVPR 2016, fig. 5 left)."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: nn.Module) -> None:
        nn.Module.__init__(self)
        self.first = conv_norm(inputs, outputs, stride)
        self.second = conv_norm(outputs, outputs)
        self.shortcut = shortcut
        self.signed = False

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] -> [B, outputs, h / stride, w / stride]."""
        y = self.second(F.relu(self.first(x), inplace=True))  # batch norm needs its input again, not its output
        y = y.add_(self.shortcut(x))
        return y if self.signed else F.relu(y, inplace=True)


class Pad(nn.Module):
    """The shortcut without parameters: every other pixel, zeros for the channels that are missing (option A)."""

    def __init__(self, missing: int, stride: int) -> None:
        nn.Module.__init__(self)
        self.missing, self.stride = missing, stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, h, w] -> [B, D + missing, h / stride, w / stride]."""
        every = F.avg_pool2d(x, 1, self.stride)  # a slice's gradient would come back in another memory layout, and slow down what it meets
        return F.pad(every, (0, 0, 0, 0, 0, self.missing))


class CifarResNet(Backbone):
    """ResNet of 6n + 2 layers for small images: widths 16, 32, 64 (He et al., CVPR 2016, section 4.2).

    n = 5 is the field's ResNet-32 with 463,504 parameters before the head.
    """

    dim = 64
    reduction = 4

    def __init__(self, channels: int, blocks: int) -> None:
        Backbone.__init__(self)
        widths = [16, 16, 32, 64]
        self.stem = nn.Sequential(conv_norm(channels, 16), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList(
            nn.Sequential(*(self._block(inputs if i == 0 else outputs, outputs) for i in range(blocks)))
            for inputs, outputs in pairwise(widths)
        )

    @staticmethod
    def _block(inputs: int, outputs: int) -> Basic:
        stride = 1 if inputs == outputs else 2
        return Basic(inputs, outputs, stride, Pad(outputs - inputs, stride) if stride > 1 else nn.Identity())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> three maps at 1, 1/2 and 1/4 of the size."""
        return through(self.stages, self.stem(images))


class ResNet18(Backbone):
    """ResNet-18 (He et al., CVPR 2016, table 1), 512-d.

    The stem is the paper's 7x7 convolution and pooling for photographs, or one 3x3 convolution for small images.
    """

    dim = 512

    def __init__(self, channels: int, *, small: bool) -> None:
        Backbone.__init__(self)
        self.reduction = 8 if small else 32
        widths = [64, 64, 128, 256, 512]
        if small:
            self.stem = nn.Sequential(conv_norm(channels, 64), nn.ReLU(inplace=True))
        else:
            self.stem = nn.Sequential(conv_norm(channels, 64, stride=2, kernel=7), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1))
        self.stages = nn.ModuleList(
            nn.Sequential(self._block(inputs, outputs), Basic(outputs, outputs, 1, nn.Identity())) for inputs, outputs in pairwise(widths)
        )

    @staticmethod
    def _block(inputs: int, outputs: int) -> Basic:
        if inputs == outputs:
            return Basic(inputs, outputs, 1, nn.Identity())
        return Basic(inputs, outputs, 2, conv_norm(inputs, outputs, stride=2, kernel=1))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> four maps; at 1, 1/2, 1/4, 1/8 of the size behind the small stem, a quarter of that behind the other."""
        return through(self.stages, self.stem(images))


def signed(backbone: Backbone) -> None:
    """Take away the last rectifier, so that features may be negative (Hou et al., CVPR 2019, section 4.1).

    Raises:
        NacreError: the backbone does not end in one that is known.
    """
    *_, last = (module for module in backbone.modules() if isinstance(module, Basic | nn.ReLU))
    if isinstance(last, Basic):
        last.signed = True
        return
    for module in backbone.modules():
        for name, child in module.named_children():
            if child is last:
                setattr(module, name, nn.Identity())


BACKBONES: dict[str, Callable[[int], Backbone]] = {
    "small": SmallNet,
    "resnet20": lambda channels: CifarResNet(channels, 3),
    "resnet32": lambda channels: CifarResNet(channels, 5),
    "resnet18-small": lambda channels: ResNet18(channels, small=True),
    "resnet18": lambda channels: ResNet18(channels, small=False),
}


def fused(module: nn.Module) -> nn.Module:
    """Fold every batch norm of a module in inference form into the convolution before it, in place.

    The answers stay the same up to rounding, and nothing of the result can be trained.
    """
    for child in module.children():
        if isinstance(child, nn.Sequential):
            for i in range(len(child) - 1):
                conv, norm = child[i], child[i + 1]
                if isinstance(conv, nn.Conv2d) and isinstance(norm, BatchNorm):
                    child[i], child[i + 1] = fuse_conv_bn_eval(conv, norm), nn.Identity()
        fused(child)
    return module
