"""Knowledge: all that survives a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from nacre.data.memory import Memory
from nacre.models.model import Model


@dataclass(eq=False)
class Knowledge:
    """What a learner carries from one stage to the next."""

    model: Model
    memory: Memory
    teacher: Model | None = None
    """The model as it was when the stage began, in inference form; made anew at every stage, so no file holds it."""
    statistics: dict[str, Tensor] = field(default_factory=dict)
    """Whatever else a method must remember, by name."""

    def state(self) -> dict[str, Tensor]:
        """Everything that lasts, as named tensors."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "memory": self.memory.state(),
            "statistics": self.statistics,
        }
        return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave.

        Raises:
            RuntimeError: the model's architecture is not the one that the state came from.
        """
        device = next(self.model.parameters()).device
        self.model.load_state_dict(below("model", state))
        self.memory.restore(below("memory", state))
        self.statistics = {name: tensor.to(device) for name, tensor in below("statistics", state).items()}


def below(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named `part/...`, without that prefix."""
    return {name.removeprefix(f"{part}/"): tensor for name, tensor in state.items() if name.startswith(f"{part}/")}
