"""Gradient projection memory: weights move only where earlier inputs do not see it (Saha et al., ICLR 2021)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.data.stream import Stage
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.seeds import generator
from nacre.training.gradients import Project
from nacre.training.inference import evaluating
from nacre.training.knowledge import Knowledge, below
from nacre.training.method import Method
from nacre.training.phases import Adjust, Fit, Phase, Work


@dataclass(frozen=True, kw_only=True)
class GPM(Method):
    """Keep, for every layer, the space that its inputs span, and take it out of all later gradients (algorithm 1).

    After the first stage batch norms are held still and there is no weight decay, for both would move old answers. Labels are
    compared among the new classes alone; the paper has a head per task.
    """

    family = "weight regularization"
    paper = "Saha et al., ICLR 2021"
    varying = True

    threshold: float = 0.97
    """epsilon: share of the inputs' squared length that the space must hold, in (0, 1]."""
    samples: int = 128
    """Images whose inputs are looked at."""
    columns: int = 4096
    """Most input patches of a layer."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, orthogonal to what was kept; then keep what the stage's inputs add."""
        model, bases = knowledge.model, below("basis", knowledge.statistics)
        loss, optim = Loss(classification=CrossEntropy(first=stage.first)), self.optim_of(stage)
        if bases:
            norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
            optim = replace(optim, weight_decay=0.0)
            yield Fit(loss, stage.train, model, still=norms, optim=optim, gradient=Project(bases))
        else:
            yield Fit(loss, stage.train, model, optim=optim)
        yield Adjust("input spaces", self.keep)

    def keep(self, work: Work) -> None:
        """Join the space of this stage's inputs to that of the earlier ones, layer by layer."""
        k, draw = work.knowledge, generator(work.seed, "inputs", work.stage.index)
        some = work.stage.train.take(torch.randperm(len(work.stage.train), generator=draw)[: self.samples])
        inputs: dict[str, Tensor] = {}

        def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
            return lambda layer, given: inputs.update({name: patches(layer, given[0])})

        hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers(k.model).items()]
        with evaluating(k.model):
            out = k.model(k.model.normalise(work.runtime.images(some.pixels())))
        for hook in hooks:
            hook.remove()
        inputs["head.rows"] = out.features.T
        for name, columns in inputs.items():
            chosen = columns[:, torch.randperm(columns.shape[1], generator=draw)[: self.columns].to(columns.device)]
            key = f"basis/{name}.weight"
            k.statistics[key] = widened(k.statistics.get(key), chosen.double(), self.threshold)


def layers(model: nn.Module) -> Mapping[str, nn.Conv2d]:
    """The convolutions of the backbone by name."""
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.Conv2d) and name.startswith("backbone.")}


def patches(layer: nn.Module, images: Tensor) -> Tensor:
    """What a convolution sees of its input at every place: [inputs x kernel, places]."""
    assert isinstance(layer, nn.Conv2d)
    size, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
    return F.unfold(images.float(), size, padding=padding, stride=stride).transpose(0, 1).flatten(1)


def widened(basis: Tensor | None, inputs: Tensor, threshold: float) -> Tensor:
    """Add the fewest directions with which the space holds its share of the inputs' squared length (eq. 9).

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
