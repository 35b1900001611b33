"""Computing in bfloat16, also on processors without instructions for it.

There PyTorch's own bfloat16 convolutions are many times slower than float32, so that a study begun on one machine could not go on
on another.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

PRODUCTS = (torch.conv2d, F.linear)
"""The operations of a backbone that autocast computes in bfloat16."""


@contextmanager
def computing(precision: Literal["auto", "fp32", "bf16"], device: torch.device) -> Iterator[None]:
    """Compute in a precision: `bf16` is autocast, everything else float32."""
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        if precision == "bf16" and device.type == "cpu" and lacks_bf16():
            with Rounded():
                yield
        else:
            yield


def lacks_bf16() -> bool:
    """Whether this is an x86 processor, or one made to compute like it, whose vectors know no bfloat16."""
    return platform.machine().lower() in ("x86_64", "amd64") and torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")


class Rounded(TorchFunctionMode):
    """Convolutions and linear maps in float32, of operands and with results rounded to bfloat16; their gradients likewise.

    That is what the instructions do, but for the order in which they add up: they multiply bfloat16 numbers and add in float32.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Compute one operation."""
        kwargs = kwargs or {}
        if func not in PRODUCTS or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            rounded = func(*map(as_if, args), **{name: as_if(value) for name, value in kwargs.items()})
        return rounded.bfloat16()


def as_if(value: Any) -> Any:
    """A tensor's values rounded to bfloat16, in float32; anything else as it is."""
    return value.bfloat16().float() if isinstance(value, Tensor) else value
