"""The gradients of every image apart, from one pass over all of them together.

What a layer is given and the gradient of what it gives back hold all that the gradients of its own parameters need, image by image
(Goodfellow, arXiv:1510.01799). So the pass itself is a plain one in the run's precision, and no layer is run image by image.

Shapes: n images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from nacre.models.model import Model

Outcome = Callable[[Tensor, Tensor], Tensor]
"""Logits [n, K] and uniform numbers [n] -> [n]: of each image, what is differentiated."""


class Call(NamedTuple):
    """What a layer was given, and the gradient of what it gave back: [n, ...] both."""

    layer: nn.Module
    given: Tensor
    gradient: Tensor


def anchored(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that answer: those of backbone and head."""
    return ((name, parameter) for name, parameter in model.named_parameters() if name.startswith(("backbone.", "head.")))


def per_sample_gradients(model: Model, images: Tensor, uniform: Tensor, outcome: Outcome) -> dict[str, Tensor]:
    """Gradients of every image's outcome: [n, *shape] by name, of the parameters that answer.

    Args:
        model: in inference form, so that no image sees another through a batch norm.
        images: [n, C, H, W], normalised.
        uniform: [n], in [0, 1).
        outcome: see `Outcome`.
    """
    names, found = layers(model), dict[str, Tensor]()
    seen = calls(model, names, images, lambda logits: outcome(logits, uniform))
    with torch.autocast(images.device.type, enabled=False):
        for call in seen:
            for own, gradient in of_call(call).items():
                name = f"{names[call.layer]}.{own}"
                found[name] = found[name] + gradient if name in found else gradient
        rest = {name: parameter.detach() for name, parameter in anchored(model) if name not in found}
        return found | (one_by_one(model, rest, images, uniform, outcome) if rest else {})


def layers(model: Model) -> dict[nn.Module, str]:
    """The head as a whole, and what in the backbone has parameters and no parts: names by module."""
    leaves = ((name, part) for name, part in model.backbone.named_modules(prefix="backbone") if not any(part.children()))
    return {model.head: "head"} | {part: name for name, part in leaves if any(True for _ in part.parameters())}


def calls(model: Model, names: Mapping[nn.Module, str], images: Tensor, scores: Callable[[Tensor], Tensor]) -> list[Call]:
    """Every call of these layers in one pass there and back, but for layers whose rows are not the images."""
    made: list[Call] = []
    unfit: set[nn.Module] = set()

    def note(layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        if out.requires_grad and len(out) == len(given[0]) == len(images):
            what = given[0].detach()
            out.register_hook(lambda gradient: made.append(Call(layer, what, gradient)))  # of `out` as it is now: it may change in place
        else:
            unfit.add(layer)

    with torch.enable_grad(), ExitStack() as stack:
        for layer in names:
            stack.enter_context(layer.register_forward_hook(note))
        images = images.detach().requires_grad_()  # their gradient passes every layer, and asks for no parameter's over all images
        logits = model(images.view_as(images)).logits  # a view, because PyTorch's counter of operations can follow no leaf here
        torch.autograd.grad(scores(logits).sum(), images)
    return [call for call in made if call.layer not in unfit]


def of_call(call: Call) -> dict[str, Tensor]:
    """Gradients [n, *shape] of a layer's own parameters, float32."""
    layer, given, gradient = call.layer, call.given.float(), call.gradient.float()
    if isinstance(layer, nn.BatchNorm2d):
        normed = F.batch_norm(given, layer.running_mean, layer.running_var, eps=layer.eps)
        return {"weight": (gradient * normed).sum((2, 3)), "bias": gradient.sum((2, 3))}
    if zero_padded(layer):
        bias = {} if layer.bias is None else {"bias": gradient.sum((2, 3))}
        return {"weight": of_kernel(layer, given, gradient)} | bias
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def one(given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        pull = vjp(lambda own: functional_call(layer, own, (given[None],)), parameters)[1]
        mine: dict[str, Tensor] = pull(gradient[None])[0]
        return mine

    found: dict[str, Tensor] = vmap(one)(given, gradient)
    return found


def zero_padded(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution with so many zeros around the image."""
    return isinstance(layer, nn.Conv2d) and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def of_kernel(layer: nn.Conv2d, given: Tensor, gradient: Tensor) -> Tensor:
    """Gradients of a convolution's weight: those of one convolution in which every image is a group of channels."""
    n, (deep, *rest) = len(given), layer.weight.shape
    images, gradients = given.flatten(0, 1)[None], gradient.flatten(0, 1)[None]
    found: Tensor = conv2d_weight(images, [n * deep, *rest], gradients, layer.stride, layer.padding, layer.dilation, n * layer.groups)
    return found.view(n, deep, *rest)


def one_by_one(model: Model, parameters: dict[str, Tensor], images: Tensor, uniform: Tensor, outcome: Outcome) -> dict[str, Tensor]:
    """The same for parameters that no layer shows, such as a transformer's places: a whole pass in float32, image by image."""

    def one(parameters: dict[str, Tensor], image: Tensor, chance: Tensor) -> Tensor:
        return outcome(functional_call(model, parameters, (image[None],)).logits, chance[None])[0]

    found: dict[str, Tensor] = vmap(grad(one), in_dims=(None, 0, 0))(parameters, images, uniform)
    return found
