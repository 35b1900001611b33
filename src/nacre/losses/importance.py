"""How much each parameter matters to what was learnt, and the term that holds it there.

Shapes: n images, K classes, P parameters; a parameter's importance and anchor have its shape, of the classes known then.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor

from nacre.losses.loss import Step, Term
from nacre.losses.per_sample import Outcome, anchored, per_sample_gradients
from nacre.models.model import Model


def importance(model: Model, images: Tensor, uniform: Tensor, outcome: Outcome, power: int) -> dict[str, Tensor]:
    """Sum over images of |d outcome / d parameter| to a power, sample by sample: by parameter name.

    Args:
        model: in inference form.
        images: [n, C, H, W], normalised.
        uniform: [n], in [0, 1).
        outcome: see `nacre.losses.per_sample.Outcome`.
        power: 1 or 2.
    """
    gradients = per_sample_gradients(model, images, uniform, outcome)
    return {name: gradient.abs().pow(power).sum(0) for name, gradient in gradients}


def log_likelihood(logits: Tensor, uniform: Tensor) -> Tensor:
    """Log probability of labels drawn from the model's own answers: its squared gradient is the Fisher information's diagonal.

    With the true labels instead it would be the empirical Fisher, which is another thing (van de Ven, ICLR blog posts 2025).
    """
    own = logits.detach().softmax(-1).cumsum(-1)
    drawn = (own[..., :-1] < uniform[..., None]).sum(-1, keepdim=True)
    return logits.log_softmax(-1).gather(-1, drawn)[..., 0]


def squared_length(logits: Tensor, uniform: Tensor) -> Tensor:
    """Squared length of the answers (Aljundi et al., ECCV 2018, section 4.1)."""
    return logits.square().sum(-1)


class Elastic(Term):
    """sum_i importance_i (theta_i - anchor_i)^2; classes that came later are free.

    Args:
        weights: importance by parameter name.
        anchors: where the parameters were, by name.
    """

    def __init__(self, weights: Mapping[str, Tensor], anchors: Mapping[str, Tensor]) -> None:
        self.shapes: Final = {name: anchor.shape for name, anchor in anchors.items()}
        self.weights = flat(weights[name] for name in anchors)
        self.anchors = flat(anchors.values())

    def __call__(self, step: Step) -> Tensor:
        """A scalar, 0 or more."""
        return (self.weights * (self.known(dict(anchored(step.model))) - self.anchors).square()).sum()

    def pull(self, model: Model) -> dict[str, Tensor]:
        """The gradient of this term by parameter name; zero for what came later."""
        here = dict(anchored(model))
        parts = (2 * self.weights * (self.known(here).detach() - self.anchors)).split([shape.numel() for shape in self.shapes.values()])
        pieces = zip(self.shapes.items(), parts, strict=True)
        return {name: enlarged(part.view(shape), here[name].shape) for (name, shape), part in pieces}

    def known(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The anchored part of all parameters: [P]."""
        return flat(parameters[name][tuple(slice(size) for size in shape)] for name, shape in self.shapes.items())


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """Tensors as one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def enlarged(tensor: Tensor, shape: torch.Size) -> Tensor:
    """A tensor in the corner of zeros of a larger shape, as rows of new classes begin."""
    if tensor.shape == shape:
        return tensor
    out = tensor.new_zeros(shape)
    out[tuple(slice(size) for size in tensor.shape)] = tensor
    return out


def grown(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by name, each enlarged to the shape that the new one of its name has; zeros for what came later."""
    return {name: enlarged(old[name], tensor.shape) if name in old else torch.zeros_like(tensor) for name, tensor in new.items()}
