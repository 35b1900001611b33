"""One file that holds a learner: a safetensors file with a JSON header, written atomically, read without running code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nacre import files, settings
from nacre.data.augment import Augment
from nacre.data.memory import budget
from nacre.data.source import ImageSpec
from nacre.errors import NacreError, choose
from nacre.methods import METHODS
from nacre.training.learner import Learner
from nacre.training.method import Method
from nacre.training.runtime import Runtime

KIND = "model"


def save(path: Path, learner: Learner, more: Mapping[str, Any] | None = None) -> None:
    """Write a learner, so that at any moment of a crash the old or the new file is there, whole.

    Args:
        path: where, by custom `*.nacre`.
        learner: between two stages.
        more: further JSON for the header, such as the accuracy matrix and the run's configuration.
    """
    memory = learner.knowledge.memory
    header = {
        "kind": KIND,
        "method": method_settings(learner.method),
        "memory": str(memory.budget),
        "selection": memory.selection,
        "seed": learner.seed,
        "shape": list(learner.spec.shape),
        "augment": settings.plain(learner.spec.augment),
        "classes": list(learner.classes),
        "stages": learner.stages,
        "half": learner.half,
        "came": list(learner.came),
        "images": list(learner.images),
        "held": str(learner.knowledge.held.budget),
        "margin": learner.spec.margin,
        "more": dict(more or {}),
    }
    files.write_tensors(path, stored(learner), header)


def stored(learner: Learner) -> dict[str, Tensor]:
    """A learner's state as its file keeps it: the model's float32 numbers at half precision where the learner says so and they fit."""
    if not learner.half:
        return learner.state()
    return {
        name: tensor.half() if name.startswith("model/") and tensor.dtype == torch.float32 and fits_half(tensor) else tensor
        for name, tensor in learner.state().items()
    }


def fits_half(tensor: Tensor) -> bool:
    """Whether no number is beyond the range of float16."""
    return bool((tensor.abs() < torch.finfo(torch.float16).max).all())


def load(path: Path, runtime: Runtime | None = None) -> tuple[Learner, dict[str, Any]]:
    """Read a learner, and what was saved as `more`.

    Args:
        path: of the file.
        runtime: where it shall live; by default the best device in fp32.

    Raises:
        NacreError: there is no such file, or it is damaged, of a newer format, or no model of nacre's.
    """
    tensors, header = files.read_tensors(path)
    if header.get("kind") != KIND:
        raise NacreError(f"{path} is nacre's, but no model: give a file such as model.nacre of a run.")
    try:
        learner = Learner(
            method_of(header["method"]),
            ImageSpec(tuple(header["shape"]), settings.build(Augment, header["augment"], "augment."), header.get("margin", 1.0)),
            memory=budget(header["memory"]),
            selection=header["selection"],
            seed=header["seed"],
            runtime=runtime,
        )
        learner.knowledge.held.budget = budget(header.get("held", "none"))
        came, images = (tuple(header.get(name, ())) for name in ("came", "images"))
        learner.half = bool(header.get("half", False))
        learner.restore(tensors, tuple(header["classes"]), header["stages"], came, images)
        return learner, dict(header["more"])
    except (KeyError, TypeError, ValueError) as error:
        raise NacreError(f"{path} cannot be understood ({error}): use a copy that is whole.") from None


def method_settings(method: Method) -> dict[str, Any]:
    """A method's name and its complete settings."""
    names = {cls: name for name, cls in METHODS.items()}
    return {"name": names[type(method)], **settings.plain(method)}


def method_of(table: Mapping[str, Any]) -> Method:
    """The method that `method_settings` describes; settings left out take the method's defaults.

    Raises:
        NacreError: there is no such method, or a setting is unknown or does not fit.
    """
    given = dict(table)
    cls = choose("method", str(given.pop("name", "reconstruction")), METHODS)
    return settings.build(cls, given, "method.")
