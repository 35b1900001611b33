"""Named protocols: how many classes each stage brings."""

from __future__ import annotations

import re

from nacre.errors import NacreError


def stage_sizes(protocol: str, classes: int) -> list[int]:
    """Classes per stage under a protocol of the field.

    Args:
        protocol: `bB-incN`: B classes in the first stage (B = 0: N like every other), then N a stage; a last stage
            takes what is left and may be smaller.
        classes: how many there are.

    Returns:
        Positive numbers that sum to `classes`.

    Raises:
        NacreError: the protocol is not of that form, or does not fit the number of classes.
    """
    match = re.fullmatch(r"b(\d+)-inc(\d+)", protocol)
    if not match:
        raise NacreError(f"unknown protocol {protocol!r}: use bB-incN, such as b0-inc2 or b50-inc10 (B classes first, then N a stage).")
    base, step = int(match[1]), int(match[2])
    if step == 0 or max(base, step) > classes:
        raise NacreError(f"protocol {protocol!r} does not fit {classes} classes: N must be 1 or more, and neither B nor N above {classes}.")
    first = base or step
    full, rest = divmod(classes - first, step)
    return [first, *[step] * full, *([rest] if rest else [])]
