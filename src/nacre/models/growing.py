"""A module whose size is part of its state, so that plain `load_state_dict` restores a grown network."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn


class Growing(nn.Module, ABC):
    """A module that grows while it lives.

    Its size travels in the state dict as extra state. PyTorch reads a module's extra state after the module's own
    parameters and before its children, so whatever grows must sit in a child: `resize` makes it, loading fills it.
    """

    @abstractmethod
    def size(self) -> list[int]:
        """What `resize` needs to rebuild this module: a few numbers."""

    @abstractmethod
    def numbers(self, *size: int) -> int:
        """How many numbers a state has at least when this module has that size, so that a damaged one cannot make it grow at will."""

    @abstractmethod
    def resize(self, *size: int) -> None:
        """Grow to `size`, keeping what is there."""

    def select(self, classes: Tensor) -> None:
        """Keep some classes alone: positions [k], ascending. For heads and readouts.

        Raises:
            NotImplementedError: this module has no classes.
        """
        raise NotImplementedError(f"{type(self).__name__} has no classes")

    def get_extra_state(self) -> Tensor:
        """The size, [n], int64."""
        return torch.tensor(self.size())

    def set_extra_state(self, state: Tensor) -> None:
        """Take the size that a state dict carries; one that fits keeps its parameters, which an optimiser may hold."""
        if state.tolist() != self.size():
            self.resize(*state.tolist())

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """Refuse a size that the state itself has not the numbers for, before room is made for it."""
        size = state_dict.get(f"{prefix}_extra_state")
        if size is None or size.dtype != torch.int64 or size.ndim != 1 or not len(size) or bool((size < 0).any()):
            raise ValueError(f"{prefix or type(self).__name__} has no size that makes sense")
        there = sum(tensor.numel() for name, tensor in state_dict.items() if name.startswith(prefix))
        if self.numbers(*size.tolist()) > there:
            raise ValueError(f"{prefix or type(self).__name__} is said to be larger than what is there of it")
        nn.Module._load_from_state_dict(self, state_dict, prefix, *rest)
