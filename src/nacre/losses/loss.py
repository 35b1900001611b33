"""What is asked of an answer: named terms, each a function of one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from nacre.data.stream import Stage
from nacre.models.model import Model
from nacre.models.output import Output


@dataclass(frozen=True, eq=False)
class Batch:
    """B samples as the network sees them."""

    images: Tensor
    """[B, C, H, W], float: augmented and normalised."""
    labels: Tensor
    """[B], int64: positions in order of arrival."""
    target: Tensor | None = None
    """[B, C, H, W]: the images before anything was cut out or mixed in; None where that is the images."""
    partner: Tensor | None = None
    """[B], int64: labels of the images that are mixed in; None where nothing is mixed."""
    share: Tensor | None = None
    """[B]: weight of `labels` against `partner`, in [0.5, 1]."""
    fresh: int | None = None
    """How many samples, the first ones, are new; the others were remembered and joined the step. None where nothing joins."""
    stored: Tensor | None = None
    """[B - fresh, K]: what was remembered beside the images."""
    remembered: Batch | None = None
    """Remembered samples that stand beside this batch."""

    @property
    def clean(self) -> Tensor:
        """What a decoder is asked for: [B, C, H, W]."""
        return self.images if self.target is None else self.target

    def beside(self, remembered: Batch) -> Batch:
        """This batch with another one beside it."""
        return replace(self, remembered=remembered)


@dataclass(frozen=True, eq=False)
class Step:
    """All that a term may look at."""

    batch: Batch
    out: Output
    old: Output | None
    """The teacher's answer to the same images, where the phase has a teacher."""
    model: Model
    stage: Stage
    progress: float
    """Share of the phase that is done, in [0, 1)."""


class Term(ABC):
    """One number asked to be small. `weight * term` is a term too."""

    decodes: bool = False
    """Whether the step must hold a reconstruction."""
    unmixed: bool = False
    """Whether it takes `labels` for the whole truth, so that images must not be mixed."""

    @abstractmethod
    def __call__(self, step: Step) -> Tensor:
        """The batch mean of what this term measures: a scalar."""

    def __rmul__(self, weight: float) -> Weighted:
        return Weighted(self, weight)

    def concern(self, mean: float, progress: float) -> str | None:
        """What to warn of when the mean over an epoch is `mean`, and `progress` of the phase was done before it."""
        return None


Ramp = Callable[[Step], float]


@dataclass(frozen=True)
class Weighted:
    """A term and its weight in the sum, times an optional ramp over the steps."""

    term: Term
    weight: float = 1.0
    ramp: Ramp | None = None

    def __rmul__(self, weight: float) -> Weighted:
        return Weighted(self.term, weight * self.weight, self.ramp)

    def at(self, step: Step) -> float:
        """The weight at one step."""
        return self.weight if self.ramp is None else self.weight * self.ramp(step)


class Loss:
    """A weighted sum of named terms; the names are the log's columns, and a term of weight 0 is no term.

    Args:
        terms: by name, such as `classification=CrossEntropy()`.
    """

    def __init__(self, **terms: Term | Weighted) -> None:
        weighted = {name: 1.0 * term for name, term in terms.items()}
        self.terms: Final[Mapping[str, Weighted]] = {name: term for name, term in weighted.items() if term.weight}

    @property
    def decodes(self) -> bool:
        """Whether any term looks at the reconstruction."""
        return any(weighted.term.decodes for weighted in self.terms.values())

    @property
    def unmixed(self) -> list[str]:
        """Terms for which images must not be mixed."""
        return [name for name, weighted in self.terms.items() if weighted.term.unmixed]

    def weight(self, name: str) -> float:
        """The weight of a term; 0 where there is none of that name."""
        return self.terms[name].weight if name in self.terms else 0.0

    def adding(self, **terms: Term | Weighted) -> Loss:
        """This loss with more terms."""
        return Loss(**{**self.terms, **terms})

    def __call__(self, step: Step) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum to descend, and each term before its weight, all scalars."""
        values = {name: weighted.term(step) for name, weighted in self.terms.items()}
        total = sum(self.terms[name].at(step) * value for name, value in values.items())
        assert isinstance(total, Tensor)
        return total, values
