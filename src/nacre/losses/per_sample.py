"""The gradients of every image apart, from one pass over all of them together.

What a layer is given and the gradient of what it gives back hold all that the gradients of its own parameters need, image by image
(Goodfellow, arXiv:1510.01799). So the pass is a plain one in the run's precision. Convolutions and batch norms have formulas, any other
layer is differentiated by itself, image by image, and only what no layer shows needs a second whole pass.

Shapes: n images, K classes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple, TypeGuard

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vjp, vmap
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from nacre.models.model import Model
from nacre.models.norm import BatchNorm

Outcome = Callable[[Tensor, Tensor], Tensor]
"""Logits [n, K] and uniform numbers [n] -> [n]: of each image, what is differentiated."""


class Call(NamedTuple):
    """What a layer was given, and the gradient of what it gave back: [n, ...] both."""

    given: Tensor
    gradient: Tensor


def anchored(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that answer: those of backbone and head."""
    return ((name, parameter) for name, parameter in model.named_parameters() if name.startswith(("backbone.", "head.")))


def per_sample_gradients(model: Model, images: Tensor, uniform: Tensor, outcome: Outcome) -> Iterator[tuple[str, Tensor]]:
    """Names, and gradients of every image's outcome, [n, *shape], of the parameters that answer; one layer's at a time are held.

    Args:
        model: in inference form, so that no image sees another through a batch norm.
        images: [n, C, H, W], normalised.
        uniform: [n], in [0, 1).
        outcome: see `Outcome`.
    """
    missing = {name: parameter.detach() for name, parameter in anchored(model)}
    names = layers(model)
    seen = calls(model, names, images, lambda logits: outcome(logits, uniform))
    for layer, name in names.items():
        for own, gradient in of_layer(layer, seen.pop(layer, [])).items():
            del missing[f"{name}.{own}"]
            yield f"{name}.{own}", gradient
    if missing:
        yield from one_by_one(model, missing, images, uniform, outcome).items()


def layers(model: Model) -> dict[nn.Module, str]:
    """The head as a whole, and what in the backbone has parameters of its own and no parts: names by module."""
    parts = {part: name for name, part in model.backbone.named_modules(prefix="backbone") if not any(part.children())}
    found = {model.head: "head"} | {part: name for part, name in parts.items() if any(True for _ in part.parameters())}
    owners = Counter(id(parameter) for part in found for parameter in part.parameters())
    return {part: name for part, name in found.items() if all(owners[id(parameter)] == 1 for parameter in part.parameters())}


def calls(model: Model, names: Mapping[nn.Module, str], images: Tensor, scores: Callable[[Tensor], Tensor]) -> dict[nn.Module, list[Call]]:
    """The calls of these layers in one pass there and back.

    A layer is left out where a call does not show all: its rows are not the images, something is given beside them or changed in place,
    or its output has no gradient.
    """
    made: dict[nn.Module, list[Call]] = defaultdict(list)
    entered = Counter[nn.Module]()

    def note(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], out: Any) -> None:
        entered[layer] += 1
        if named or len(given) != 1 or not by_image(given[0], out, len(images)):
            return
        inputs, version = given[0].detach(), given[0]._version

        def keep(gradient: Tensor) -> None:
            if inputs._version == version:
                made[layer].append(Call(inputs, gradient))

        out.register_hook(keep)  # a hook stays with what `out` is now, even if the next layer changes it in place

    with torch.enable_grad(), ExitStack() as stack:
        for layer in names:
            stack.enter_context(layer.register_forward_hook(note, with_kwargs=True))
        images = images.detach().requires_grad_()  # their gradient passes every layer, and asks for no parameter's over all images
        logits = model(images.view_as(images)).logits  # a view, because PyTorch's counter of operations can follow no leaf here
        torch.autograd.grad(scores(logits).sum(), images)
    return {layer: found for layer, found in made.items() if len(found) == entered[layer]}


def by_image(given: Any, out: Any, count: int) -> bool:
    """Whether both are tensors with a row per image, the second another one than the first and with a gradient."""
    tensors = all(isinstance(value, Tensor) and value.dim() > 0 and len(value) == count for value in (given, out))
    return tensors and out.requires_grad and out.data_ptr() != given.data_ptr()


@torch.no_grad()
def of_layer(layer: nn.Module, seen: list[Call]) -> dict[str, Tensor]:
    """Gradients [n, *shape] of a layer's own parameters, in float32, from all calls of it; none where there is none."""
    found: dict[str, Tensor] = {}
    for call in seen:
        with torch.autocast(call.given.device.type, enabled=False):
            mine = of_call(layer, call.given.float(), call.gradient.float())
        found = {name: found[name] + gradient if found else gradient for name, gradient in mine.items()}
    return found


def of_call(layer: nn.Module, given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """The same from one call. Only the very classes have formulas: a subclass may compute something else."""
    if isinstance(layer, nn.BatchNorm2d) and type(layer) in (nn.BatchNorm2d, BatchNorm):
        normed = F.batch_norm(given, layer.running_mean, layer.running_var, eps=layer.eps)
        return {"weight": (gradient * normed).sum((2, 3)), "bias": gradient.sum((2, 3))}
    if zero_padded(layer):
        bias = {} if layer.bias is None else {"bias": gradient.sum((2, 3))}
        return {"weight": of_kernel(layer, given, gradient)} | bias
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def one(given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
        pull = vjp(lambda own: functional_call(layer, own, (given[None],)), parameters)[1]
        pulled: dict[str, Tensor] = pull(gradient[None])[0]
        return pulled

    found: dict[str, Tensor] = vmap(one)(given, gradient)
    return found


def zero_padded(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether a layer is a convolution whose padding is so many zeros: what `conv2d_weight` computes."""
    return type(layer) is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)


def of_kernel(layer: nn.Conv2d, given: Tensor, gradient: Tensor) -> Tensor:
    """Gradients of a convolution's weight: those of one convolution in which every image is a group of channels."""
    n, (outputs, *kernel) = len(given), layer.weight.shape
    images, gradients = given.flatten(0, 1)[None], gradient.flatten(0, 1)[None]
    found: Tensor = conv2d_weight(images, [n * outputs, *kernel], gradients, layer.stride, layer.padding, layer.dilation, n * layer.groups)
    return found.view(n, outputs, *kernel)


def one_by_one(model: Model, parameters: dict[str, Tensor], images: Tensor, uniform: Tensor, outcome: Outcome) -> dict[str, Tensor]:
    """The same for parameters that no layer shows, such as a transformer's places: a whole pass in float32, image by image."""

    def one(parameters: dict[str, Tensor], image: Tensor, chance: Tensor) -> Tensor:
        return outcome(functional_call(model, parameters, (image[None],)).logits, chance[None])[0]

    with torch.autocast(images.device.type, enabled=False):
        found: dict[str, Tensor] = vmap(grad(one), in_dims=(None, 0, 0))(parameters, images, uniform)
    return found
