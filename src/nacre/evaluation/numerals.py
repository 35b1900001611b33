"""Numbers as people read them; a dash stands for none."""

from __future__ import annotations

import math
from collections.abc import Sequence


def shown(value: float | None, form: str) -> str:
    """A number in a format, with a proper minus and none before zero; a dash for none."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001 - a typographic dash
    text = format(value, form)
    if not text.strip("+-0., "):
        text = text.lstrip("+-")
    return text.replace("-", "−")  # noqa: RUF001 - a typographic minus


def percent(share: float | None) -> str:
    """A share in [0, 1] with one decimal; a dash for none."""
    text = shown(None if share is None else 100 * share, ".1f")
    return f"{text} %" if text[-1].isdigit() else text


def points(share: float | None) -> str:
    """A difference of shares in points, with its sign."""
    return shown(None if share is None else 100 * share, "+.1f")


def number(value: float | None) -> str:
    """Three digits behind the point; a dash for none."""
    return shown(value, ".3f")


def amount(value: float | None) -> str:
    """A large number with thousands apart; a dash for none."""
    return shown(value, ",.0f")


def scaled(value: float | None, units: Sequence[str]) -> str:
    """A number in the unit that suits it, each a thousand of the one before; a dash for none."""
    if value is None or not math.isfinite(value):
        return shown(None, "")
    step = 0
    while value >= 1000 and step + 1 < len(units):
        value, step = value / 1000, step + 1
    return f"{value:.{(0, 1, 1, 2)[min(step, 3)]}f} {units[step]}"


def bytes_text(count: float | None) -> str:
    """Bytes in the unit that suits them; a dash for none."""
    return scaled(count, ("B", "kB", "MB", "GB"))


def operations(count: float | None) -> str:
    """Floating point operations in the unit that suits them; a dash for none."""
    return scaled(count, ("FLOP", "kFLOP", "MFLOP", "GFLOP"))


def seconds_text(value: float | None) -> str:
    """Seconds, or minutes, or hours; a dash for none."""
    if value is None or not math.isfinite(value):
        return shown(None, "")
    if value < 120:
        return f"{value:.1f} s"
    return f"{value / 60:.1f} min" if value < 7200 else f"{value / 3600:.1f} h"
