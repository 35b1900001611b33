"""What layers see of images, and the spaces that it spans.

Shapes: D inputs of a layer, n places at which it is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.models.model import Model


def inputs(model: Model, images: Tensor) -> dict[str, Tensor]:
    """What every convolution of the backbone sees of normalised images: [D, n] by the name of its weight."""
    found: dict[str, Tensor] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda layer, given: found.update({f"{name}.weight": patches(layer, given[0])})

    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in convolutions(model).items()]
    model(images)
    for hook in hooks:
        hook.remove()
    return found


def convolutions(model: nn.Module) -> Mapping[str, nn.Conv2d]:
    """The convolutions of the backbone by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv2d) and name.startswith("backbone.")}


def patches(layer: nn.Module, images: Tensor) -> Tensor:
    """What a convolution sees of its input at every place: [inputs x kernel, places]."""
    assert isinstance(layer, nn.Conv2d)
    size, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    return F.unfold(images.float(), size, padding=padding, stride=stride).transpose(0, 1).flatten(1)


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
    rest = inputs - held @ (held.T @ inputs)
    left, values, _ = torch.linalg.svd(rest, full_matrices=False)
    total = inputs.square().sum()
    share = (total - rest.square().sum() + torch.cat([values.new_zeros(1), values.square().cumsum(0)])) / total
    more = int((share < threshold - 1e-12).sum())
    more = min(more, len(inputs) - held.shape[1], int((values > 1e-9 * values.max().clamp_min(1e-30)).sum()))
    basis, _ = torch.linalg.qr(torch.cat([held, left[:, :more]], 1))
    # laid out as a file would give it back: the same kernels, so the same bits
    return basis.float().contiguous()
