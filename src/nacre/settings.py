"""Settings as text and back: nested dataclasses, plain dictionaries, TOML; all mistakes in one message.

TOML has no word for nothing, so None is written as "none".
"""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Mapping
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from nacre.errors import NacreError, nearest

S = TypeVar("S")


def plain(settings: Any) -> Any:
    """A dataclass as dictionaries, lists and numbers, complete."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {field.name: plain(getattr(settings, field.name)) for field in own(type(settings))}
    if isinstance(settings, tuple):
        return [plain(item) for item in settings]
    return "none" if settings is None else settings


def build(cls: type[S], given: Mapping[str, Any], where: str = "") -> S:
    """Make a dataclass from the settings given; the others keep their defaults, in nested dataclasses too.

    Args:
        cls: a dataclass whose fields all have defaults.
        given: by field name, nested; text counts as the number it spells.
        where: dotted place of these settings, for messages.

    Raises:
        NacreError: names every unknown key with the nearest one that exists, and every value that does not fit.
    """
    wrong: list[str] = []
    values = merged(cls, plain(cls()), given, where, wrong)
    try:
        built: S = checker(cls).validate_python(values)  # type: ignore[arg-type]  # a class is hashable
    except ValidationError as error:
        for item in error.errors():
            place = where + ".".join(str(part) for part in item["loc"] if str(part) in keys(cls))
            reason = item["msg"].removeprefix("Value error, ")
            value = "" if isinstance(item["input"], Mapping) else f" = {item['input']!r}"
            wrong.append(f"{place}{value}: {reason}" if place != where else reason)
    if not wrong:
        return built
    raise NacreError("\n".join(dict.fromkeys(wrong)))


@functools.cache
def checker(cls: type) -> TypeAdapter[Any]:
    """What checks a dataclass's settings; it takes ten milliseconds to make, and a study asks for it hundreds of times."""
    return TypeAdapter(cls)


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    """The types of a dataclass's fields, resolved."""
    return get_type_hints(cls)


def own(cls: type) -> list[dataclasses.Field[Any]]:
    """The fields that are settings: all but those whose metadata say that they are read elsewhere."""
    return [field for field in dataclasses.fields(cls) if not field.metadata.get("elsewhere")]


def keys(cls: type) -> frozenset[str]:
    """Names of all fields of a dataclass and of the dataclasses in it."""
    inner = [
        keys(part)
        for hint in hints(cls).values()
        for part in (hint, *get_args(hint))
        if dataclasses.is_dataclass(part) and isinstance(part, type)
    ]
    return frozenset(field.name for field in dataclasses.fields(cls)).union(*inner)


def merged(cls: type, base: Mapping[str, Any], given: Mapping[str, Any], where: str, wrong: list[str]) -> dict[str, Any]:
    """`base` overlaid with `given`, with None for "none" where a field admits it; unknown keys go to `wrong`."""
    fields = {field.name: hints(cls)[field.name] for field in own(cls)}
    values = dict(base)
    for key, value in given.items():
        if key not in fields:
            wrong.append(f"unknown setting {where + key!r}: use one of {', '.join(where + name for name in fields)}.{nearest(key, fields)}")
            continue
        values[key] = value
    for key, value in values.items():
        options = get_args(fields[key]) if isinstance(fields[key], types.UnionType) else (fields[key],)
        table = next((option for option in options if dataclasses.is_dataclass(option) and isinstance(option, type)), None)
        if value == "none" and type(None) in options:
            values[key] = None
        elif table is not None and isinstance(value, Mapping):
            before = base.get(key)
            start = before if isinstance(before, Mapping) else plain(table())
            values[key] = merged(table, start, value, f"{where}{key}.", wrong)
    return values


def place(settings: dict[str, Any], key: str, value: Any) -> None:
    """Put a value into nested dictionaries at a dotted key."""
    *path, name = key.split(".")
    for part in path:
        inner = settings.setdefault(part, {})
        if not isinstance(inner, dict):
            inner = settings[part] = {}
        settings = inner
    settings[name] = value
