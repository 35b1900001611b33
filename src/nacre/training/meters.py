"""What the log tells beside the terms: how they pull at the features, and how large features and logits are.

Shapes: B samples, D features, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nacre.losses.loss import Loss, Step


def diagnostics(step: Step, loss: Loss, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Numbers of one step, before its backward pass.

    Args:
        step: the step.
        loss: its loss.
        values: each term of the loss, before its weight.

    Returns:
        Scalars: `feature_norm`, `logit_known` and `logit_new` (means over the batch), and, where both terms are there,
        `gradient_ratio` (reconstruction over classification, weights included) and `gradient_cosine` at the last map.
    """
    known = step.stage.known
    logits = step.out.logits.detach()
    found = {"feature_norm": step.out.features.detach().norm(dim=1).mean(), "logit_new": logits[:, known:].mean()}
    if known:
        found["logit_known"] = logits[:, :known].mean()
    if {"classification", "reconstruction"} <= set(values) and step.out.maps[-1].requires_grad:
        pull = {
            name: gradient(values[name], step.out.maps[-1]) * loss.terms[name].at(step) for name in ("classification", "reconstruction")
        }
        size = {name: tensor.norm() for name, tensor in pull.items()}
        found["gradient_ratio"] = size["reconstruction"] / size["classification"].clamp_min(1e-12)
        inner = (pull["classification"] * pull["reconstruction"]).sum()
        found["gradient_cosine"] = inner / (size["classification"] * size["reconstruction"]).clamp_min(1e-12)
    return found


def gradient(value: Tensor, at: Tensor) -> Tensor:
    """The gradient of a scalar, float32; zeros where it does not depend on `at`."""
    (found,) = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)
    return torch.zeros_like(at, dtype=torch.float32) if found is None else found.float()
