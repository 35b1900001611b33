"""One file that holds a learner: a safetensors file with a JSON header, written atomically, read without running code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from torch import Tensor

from nacre import files, settings
from nacre.data.augment import Augment
from nacre.data.listing import legible
from nacre.data.memory import budget
from nacre.data.source import ImageSpec
from nacre.errors import NacreError, choose
from nacre.methods import METHODS
from nacre.training.learner import Learner
from nacre.training.method import Method
from nacre.training.runtime import Runtime

KIND = "model"
RETIRED = (("decoding", "anchor", 0.0),)
"""Of a method's settings, those that are gone but stand in older files: part, name, and the value under which they did nothing."""
Channels = Annotated[int, Field(ge=1, le=4)]
Side = Annotated[int, Field(ge=1, le=2048)]


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
        described = Described.model_validate(header)
        method, spec = method_of(described.method), described.spec()
        bounded(method, tensors)
        learner = Learner(
            method, spec, memory=budget(described.memory), selection=described.selection, seed=described.seed, runtime=runtime
        )
        learner.half = described.half
        learner.knowledge.held.budget = budget(described.held)
        learner.restore(tensors, described.classes, described.stages, described.came, described.images)
        return learner, described.more
    except (LookupError, TypeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise NacreError(f"{path} cannot be understood ({reason(error)}): use a copy that is whole.") from None


def reason(error: Exception) -> str:
    """What is wrong, in a line."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    if "loading state_dict" in str(error):
        return "its tensors are not those of its method and images"
    return str(error).partition("\n")[0] or type(error).__name__


Share = float | None


Shares = dict[Literal["all", "old", "new"], Share]


class Told(BaseModel):
    """What is told of a lesson or a change, see `nacre.lesson`."""

    model_config = ConfigDict(strict=True)

    date: str
    data: str = ""
    change: str = ""
    stage: Annotated[int, Field(ge=0, le=10**6)] = 0
    new: list[str] = []
    further: list[str] = []
    images: Annotated[int, Field(ge=0, lt=2**63)] = 0
    checked: Annotated[int, Field(ge=0, lt=2**63)] = 0
    before: Shares = {}
    after: Shares = {}
    drift: Share = None
    seconds: float = 0.0


class Examined(BaseModel):
    """What is told at least of a stage of a run."""

    model_config = ConfigDict(strict=True)

    stage: Annotated[int, Field(ge=0, le=10**6)]
    classes: list[str]
    accuracy: Share
    old: Share
    new: Share


class Described(BaseModel):
    """What a model file's header must say; whatever is in it may come from anybody."""

    model_config = ConfigDict(strict=False, extra="ignore")

    method: dict[str, Any]
    memory: str
    selection: str
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    shape: tuple[Channels, Side, Side]
    augment: dict[str, Any]
    classes: tuple[Annotated[str, Field(min_length=1, max_length=4096)], ...]
    stages: Annotated[int, Field(ge=0, le=10**6)]
    came: tuple[Annotated[int, Field(ge=0)], ...] = ()
    images: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = ()
    half: bool = False
    held: str = "none"
    margin: Annotated[float, Field(ge=1, le=4)] = 1.0
    more: dict[str, Any] = {}

    @model_validator(mode="after")
    def sensible(self) -> Described:
        """Names can be printed and tell classes apart, and what is told of the past has its form."""
        told = TypeAdapter(list[Told]).validate_python(self.more.get("lessons", []))
        TypeAdapter(list[Examined]).validate_python(self.more.get("history", []))
        if told:
            self.more["lessons"] = [lesson.model_dump(exclude_unset=True) for lesson in told]
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("two classes have the same name")
        if any(legible(name) != name for name in self.classes):
            raise ValueError("a class has a name that cannot be printed")
        return self

    def spec(self) -> ImageSpec:
        """Of the images."""
        return ImageSpec(self.shape, settings.build(Augment, self.augment, "augment."), self.margin)


def bounded(method: Method, tensors: Mapping[str, Tensor]) -> None:
    """See to it that building the model takes no more than what the file holds.

    Raises:
        ValueError: it would.
    """
    width = getattr(method, "width", 0)
    if width**2 > sum(tensor.numel() for tensor in tensors.values()):
        raise ValueError(f"method.width is {width}, beyond what the file holds")


def method_settings(method: Method) -> dict[str, Any]:
    """A method's name and its complete settings."""
    names = {cls: name for name, cls in METHODS.items()}
    return {"name": names[type(method)], **settings.plain(method)}


def current(table: Mapping[str, Any]) -> dict[str, Any]:
    """A method's settings as an older file holds them, without those that are gone (`RETIRED`) where they did nothing."""
    return {
        part: {name: value for name, value in inner.items() if (part, name, value) not in RETIRED} if isinstance(inner, Mapping) else inner
        for part, inner in table.items()
    }


def method_of(table: Mapping[str, Any]) -> Method:
    """The method that `method_settings` describes, also in an older file; settings left out take the method's defaults.

    Raises:
        NacreError: there is no such method, or a setting is unknown or does not fit.
    """
    given = current(table)
    cls = choose("method", str(given.pop("name", "reconstruction")), METHODS)
    return settings.build(cls, given, "method.")
