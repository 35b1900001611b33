"""A module whose size is part of its state, so that plain `load_state_dict` restores a grown network."""

from __future__ import annotations

from abc import ABC, abstractmethod

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
