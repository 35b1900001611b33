"""Knowledge: all that survives a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

from nacre.data.memory import NOTHING, Memory
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
    held: Memory = field(init=False)
    """Images that training never sees, to check and to calibrate on; none unless the budget is raised."""

    def __post_init__(self) -> None:
        self.held = Memory(NOTHING, "random", self.model.spec.shape)

    def select(self, classes: Tensor, by_class: tuple[str, ...]) -> None:
        """Keep some classes alone, which count from 0 on then.

        Args:
            classes: positions [k], ascending.
            by_class: how the names of statistics with rows by class begin.
        """
        count = self.model.classes
        self.model.select(classes)
        self.memory.narrow(classes)
        self.held.narrow(classes)
        for name, rows in self.statistics.items():
            if name.startswith(by_class):
                self.statistics[name] = rows.unflatten(0, (count, -1))[classes.to(rows.device)].flatten(0, 1)

    def state(self) -> dict[str, Tensor]:
        """Everything that lasts, as named tensors."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "memory": self.memory.state(),
            "statistics": self.statistics,
            "held": self.held.state() if len(self.held) else {},
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
        held = below("held", state)
        if held:
            self.held.restore(held)
        self.statistics = {name: tensor.to(device) for name, tensor in below("statistics", state).items()}


def below(part: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors named `part/...`, without that prefix."""
    return {name.removeprefix(f"{part}/"): tensor for name, tensor in state.items() if name.startswith(f"{part}/")}
