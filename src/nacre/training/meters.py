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
        Scalars: `feature_norm`, `logit_known` and `logit_new` (means over the batch), and, where classification and reconstruction
        both reach the last map, `gradient_ratio` (reconstruction over classification, weights included) and `gradient_cosine` there.
    """
    known = step.stage.known
    logits = step.out.logits.detach()
    found = {"feature_norm": step.out.features.detach().norm(dim=1).mean(), "logit_new": logits[:, known:].mean()}
    if known:
        found["logit_known"] = logits[:, :known].mean()
    if {"classification", "reconstruction"} <= set(values) and step.out.maps[-1].requires_grad:
        learnt, redrawn = (gradient(values[name], step.out.maps[-1]) for name in ("classification", "reconstruction"))
        if learnt is not None and redrawn is not None:
            learnt, redrawn = learnt * loss.terms["classification"].at(step), redrawn * loss.terms["reconstruction"].at(step)
            found["gradient_ratio"] = redrawn.norm() / learnt.norm().clamp_min(1e-12)
            found["gradient_cosine"] = (learnt * redrawn).sum() / (learnt.norm() * redrawn.norm()).clamp_min(1e-12)
    return found


def gradient(value: Tensor, at: Tensor) -> Tensor | None:
    """The gradient of a scalar, float32; None where it does not depend on `at`."""
    (found,) = torch.autograd.grad(value, at, retain_graph=True, allow_unused=True)
    return None if found is None else found.float()
