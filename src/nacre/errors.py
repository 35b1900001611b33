"""The one error a user is meant to read: what was found, what was wanted, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class NacreError(ValueError):
    """A mistake in what was given to nacre; the command line prints it and exits with code 2."""


def nearest(value: str, allowed: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the allowed name closest to `value`, or the empty string."""
    close = difflib.get_close_matches(value.lower(), list(allowed), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


def choose(what: str, value: str, allowed: Mapping[str, T]) -> T:
    """Look `value` up among the named things of one kind, or say which names there are.

    Raises:
        NacreError: `value` is no key of `allowed`.
    """
    if value not in allowed:
        raise NacreError(f"unknown {what} {value!r}: use one of {', '.join(allowed)}.{nearest(value, allowed)}")
    return allowed[value]
