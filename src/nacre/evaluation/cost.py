"""What a model costs: bytes, parameters, arithmetic."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nacre.models.model import Model
from nacre.training.inference import evaluating
from nacre.training.knowledge import Knowledge


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def footprint(knowledge: Knowledge) -> dict[str, int]:
    """Bytes by part.

    Returns:
        `deployed`: what prediction needs, the model without its decoder; `carried`: all that goes from stage to stage, which
        is `model`, `exemplars` and `statistics`. The teacher is made from the model anew and carries nothing.
    """
    model = size(knowledge.model.state_dict().values())
    decoder = size(knowledge.model.decoder.state_dict().values()) if knowledge.model.decoder is not None else 0
    parts = {
        "model": model,
        "exemplars": size(knowledge.memory.state().values()),
        "statistics": size(knowledge.statistics.values()),
    }
    return {"deployed": model - decoder, "carried": sum(parts.values()), **parts}


def arithmetic(model: Model) -> dict[str, int]:
    """`parameters`, with and without the decoder, and floating point operations per image to predict (a multiply-add is 2)."""
    decoder = sum(p.numel() for p in model.decoder.parameters()) if model.decoder is not None else 0
    parameters = sum(p.numel() for p in model.parameters())
    device = next(model.parameters()).device
    with evaluating(model), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, *model.spec.shape, device=device))
    return {"parameters": parameters - decoder, "decoder_parameters": decoder, "flops_per_image": counter.get_total_flops()}
