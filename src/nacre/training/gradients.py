"""What a method does to gradients between backward and step.

Each is a module, so that what it gathers over a fit is journalled with the model and a killed fit goes on bit-equal.

Shapes: P parameters in all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.losses.importance import Elastic
from nacre.losses.loss import Step
from nacre.losses.per_sample import anchored
from nacre.models.gated import gated
from nacre.models.model import Model
from nacre.training.runtime import Runtime


class Gradients(nn.Module, ABC):
    """Sees every step of a fit twice: when its gradients are there, and when it is done."""

    unmixed: bool = False
    """Whether it takes labels for the whole truth, so that images must not be mixed."""

    @abstractmethod
    def before(self, step: Step, runtime: Runtime) -> None:
        """The gradients are there, averaged over the processes; they may be changed."""

    def after(self, model: Model) -> None:
        """The optimiser has stepped."""


class NoConflict(Gradients):
    """Takes away what would raise the loss of the remembered samples (Chaudhry et al., ICLR 2019, eq. 11: A-GEM)."""

    unmixed = True

    def before(self, step: Step, runtime: Runtime) -> None:
        """G - (g . r) / (r . r) r wherever g . r < 0, with r the gradient of the samples beside the batch."""
        if step.batch.remembered is None:
            return
        parameters = [parameter for parameter in step.model.parameters() if parameter.grad is not None]
        with torch.enable_grad(), runtime.autocast():
            out = step.model(step.batch.remembered.images)
        reference = list(torch.autograd.grad(F.cross_entropy(out.logits, step.batch.remembered.labels), parameters, materialize_grads=True))
        runtime.average(reference)
        gradients = [parameter.grad for parameter in parameters]
        dot, square = inner(gradients, reference), inner(reference, reference)
        scale = torch.where(dot < 0, dot / square.clamp_min(1e-30), 0)  # on the device: the step waits for nothing
        for gradient, other in zip(gradients, reference, strict=True):
            assert gradient is not None
            gradient.sub_(scale * other)


def inner(first: list[Tensor | None] | list[Tensor], second: list[Tensor]) -> Tensor:
    """The inner product of two lists of tensors: a scalar."""
    return torch.stack([(a * b).sum() for a, b in zip(first, second, strict=True) if a is not None]).sum()


class Positive(Gradients):
    """Keeps the head's rows from having negative numbers (Zhao et al., CVPR 2020, section 4.3)."""

    def before(self, step: Step, runtime: Runtime) -> None:
        """Gradients stay as they are."""

    @torch.no_grad()
    def after(self, model: Model) -> None:
        """Cut what became negative."""
        model.head.rows.weight.clamp_(min=0)


class HoldRows(Gradients):
    """Keeps the first classes' rows of a cosine head from turning; only their directions count.

    Args:
        classes: how many.
    """

    def __init__(self, classes: int) -> None:
        nn.Module.__init__(self)
        self.classes = classes

    def before(self, step: Step, runtime: Runtime) -> None:
        """No gradient for them; weight decay may shorten them."""
        gradient = step.model.head.rows.weight.grad
        if gradient is not None:
            gradient[: self.classes * (len(gradient) // step.model.classes)] = 0


class Sharpen(Gradients):
    """Makes gates ever more of a yes or a no over every epoch (Yan et al., CVPR 2021, section 3.4; Serra et al., ICML 2018, eq. 3-5).

    Sharpness climbs linearly from 1 / s to s, and the gates' gradients are given the size they would have at sharpness 1.

    Args:
        most: s.
        epochs: of the fit.
    """

    def __init__(self, most: float, epochs: int) -> None:
        Gradients.__init__(self)
        self.most, self.epochs, self.progress = most, epochs, 0.0

    @torch.no_grad()
    def before(self, step: Step, runtime: Runtime) -> None:
        """Undo what the sharpness does to the gradients."""
        self.progress = step.progress * self.epochs % 1
        for block in gated(step.model.backbone):
            for gate in block.gates:
                if gate.grad is not None:
                    slope = [value.sigmoid() * (1 - value.sigmoid()) for value in (gate, (block.sharpness * gate).clamp(-15, 15))]
                    gate.grad.mul_(slope[0] / (block.sharpness * slope[1]).clamp_min(1e-9))

    def after(self, model: Model) -> None:
        """Sharpen."""
        for block in gated(model.backbone):
            block.sharpness.fill_(1 / self.most + (self.most - 1 / self.most) * self.progress)


class Project(Gradients):
    """Keeps weights from moving within what earlier inputs of their layers span (Saha et al., ICLR 2021, eq. 6-7: GPM).

    Args:
        bases: by parameter name, orthonormal columns [inputs, r] of the space that must not be touched.
    """

    def __init__(self, bases: Mapping[str, Tensor]) -> None:
        nn.Module.__init__(self)
        self.bases = dict(bases)

    def before(self, step: Step, runtime: Runtime) -> None:
        """Each gradient, as a matrix of outputs by inputs, minus its part in the layer's space."""
        for name, parameter in step.model.named_parameters():
            if name in self.bases and parameter.grad is not None:
                gradient, basis = parameter.grad.flatten(1), self.bases[name]
                parameter.grad.sub_((gradient @ basis @ basis.T).view_as(parameter.grad))


class Path(Gradients):
    """Adds up how far each parameter's steps lowered the loss (Zenke et al., ICML 2017, eq. 3: SI).

    Args:
        model: whose path it is.
        pull: the elastic term that the loss holds, and its weight; its own gradient is not the data's and does not count.
    """

    def __init__(self, model: Model, pull: tuple[Elastic, float] | None) -> None:
        nn.Module.__init__(self)
        self.pull = pull
        self._gradient: dict[str, Tensor] = {}
        self._start: dict[str, Tensor] = {}
        for name, parameter in anchored(model):
            self.register_buffer(name.replace(".", "/"), torch.zeros_like(parameter))

    def before(self, step: Step, runtime: Runtime) -> None:
        """Note gradients and places."""
        self._start = {name: parameter.detach().clone() for name, parameter in anchored(step.model)}
        self._gradient = {name: parameter.grad.clone() for name, parameter in anchored(step.model) if parameter.grad is not None}
        if self.pull is not None:
            elastic, weight = self.pull
            pulls = elastic.pull(step.model)
            self._gradient = {name: own - weight * pulls[name] if name in pulls else own for name, own in self._gradient.items()}

    def after(self, model: Model) -> None:
        """Add minus gradient times step."""
        for name, parameter in anchored(model):
            if name in self._gradient:
                self.get_buffer(name.replace(".", "/")).sub_(self._gradient[name] * (parameter.detach() - self._start[name]))

    def lengths(self) -> dict[str, Tensor]:
        """What was added up, by parameter name."""
        return {name.replace("/", "."): buffer for name, buffer in self.named_buffers()}
