"""What layers see of images, and the spaces that it spans.

Shapes: D inputs of a layer, n places at which it is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.models.model import Model


def widen_spaces(bases: dict[str, Tensor], model: Model, images: Tensor, threshold: float, most: int, draw: torch.Generator) -> None:
    """Widen the space of every convolution of the backbone, by the name of its weight, by what it sees of normalised images.

    Args:
        bases: see `widened`; changed in place.
        model: in inference form.
        images: [B, C, H, W].
        threshold: see `widened`.
        most: places that are looked at per layer, at random.
        draw: draws them.
    """

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def look(layer: nn.Module, given: tuple[Tensor, ...]) -> None:
            assert isinstance(layer, nn.Conv2d)
            bases[name] = widened(bases.get(name), patches(layer, given[0], most, draw).double(), threshold)

        return look

    hooks = [layer.register_forward_pre_hook(watch(f"{name}.weight")) for name, layer in convolutions(model).items()]
    model(images)
    for hook in hooks:
        hook.remove()


def convolutions(model: nn.Module) -> Mapping[str, nn.Conv2d]:
    """The convolutions of the backbone by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv2d) and name.startswith("backbone.")}


def patches(layer: nn.Conv2d, images: Tensor, most: int, draw: torch.Generator) -> Tensor:
    """What a convolution sees of its input [B, C, H, W] at `most` places at random, or at all: [inputs x kernel, places]."""
    high, wide = layer.kernel_size
    down, right = (int(pad) for pad in layer.padding)
    padded = F.pad(images.float(), (right, right, down, down))
    windows = padded.unfold(2, high, layer.stride[0]).unfold(3, wide, layer.stride[1])  # a view: [B, C, h, w, high, wide]
    count, _, h, w = windows.shape[:4]
    place = torch.randperm(count * h * w, generator=draw)[:most].to(images.device)
    return windows[place // (h * w), :, place // w % h, place % w].flatten(1).T


def widened(basis: Tensor | None, inputs: Tensor, threshold: float) -> Tensor:
    """Add the fewest directions with which the space holds its share of the inputs' squared length (Saha et al., ICLR 2021, eq. 9).

    Args:
        basis: orthonormal columns [D, r]; None: nothing yet.
        inputs: [D, n].
        threshold: the share.

    Returns:
        Orthonormal columns [D, r + more], float32.
    """
    held = inputs.new_zeros(len(inputs), 0) if basis is None else basis.double()
    total = inputs.square().sum()
    rest = inputs - held @ (held.T @ inputs)
    # of its triangle, which has the same left vectors and no row per place
    left, values, _ = torch.linalg.svd(torch.linalg.qr(rest.T, mode="r").R.T, full_matrices=False)
    share = (total - rest.square().sum() + torch.cat([values.new_zeros(1), values.square().cumsum(0)])) / total
    more = int((share < threshold - 1e-12).sum())
    more = min(more, len(inputs) - held.shape[1], int((values > 1e-9 * values.max().clamp_min(1e-30)).sum()))
    basis, _ = torch.linalg.qr(torch.cat([held, left[:, :more]], 1))
    # laid out as a file would give it back: the same kernels, so the same bits
    return basis.float().contiguous()
