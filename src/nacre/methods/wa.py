"""Weight aligning: new rows of the head get the old ones' length (Zhao et al., CVPR 2020, eq. 6-8)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from nacre.data.memory import PerClass
from nacre.data.stream import Stage
from nacre.methods.shared import aligned, distilling_fit
from nacre.training.gradients import Positive
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Phase, Remember


@dataclass(frozen=True, kw_only=True)
class WA(Method):
    """Distil, then scale the new classes' rows so that their mean norm is the old ones'; the head's biases stay as they are."""

    family = "representation"
    paper = "Zhao et al., CVPR 2020"
    budget = PerClass(20)
    needs = frozenset({"exemplars", "old model"})

    temperature: float = 2.0
    """Of the distillation."""
    positive: bool = True
    """Keep the rows from negative numbers, without which their norms say little of their logits (section 4.3)."""

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Fit, align, remember."""
        fit = distilling_fit(knowledge, stage, self.temperature, self.optim_of(stage))
        yield replace(fit, gradient=Positive()) if self.positive else fit
        yield aligned(stage)
        yield Remember()
