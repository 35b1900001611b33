"""Learning to prompt: one pool of prompts for a frozen transformer (Wang et al., CVPR 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.losses.prompts import Pull
from nacre.methods.shared import prompted, prompted_phases
from nacre.models.model import Model
from nacre.models.prompts import Pool
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Phase


@dataclass(frozen=True, kw_only=True)
class L2P(Method):
    """The prompts whose keys are nearest to an image stand before its tokens; they, their keys and the head are all that learns.

    q(x) is what the frozen transformer makes of x without prompts. The N keys of largest cosine with q(x) choose the prompts, the
    features are the mean of what leaves the transformer where the prompts stand, and the loss is L(x) + lambda sum (1 - cos(q(x), k))
    over the chosen keys. Every image chooses for itself, as in the paper; the authors' code lets a batch vote. Prompts have no place
    of their own, and the paper's optional penalty for prompts that are chosen often is not there. Prompts are drawn from
    -1 to 1, as in the ports to PyTorch. Numbers are those of the field's
    comparisons.
    """

    family = "pre-trained"
    paper = "Wang et al., CVPR 2022"
    needs = frozenset({"pre-training"})

    backbone: str = "timm:vit_base_patch16_224.augreg_in21k"
    optim: Optim = Optim(name="adamw", lr=0.001875, weight_decay=0.0, schedule="constant", clip=1.0, epochs=5, batch=16)
    """Adam: AdamW without weight decay is the same."""
    prompts: int = 10
    """In the pool."""
    length: int = 5
    """Tokens of a prompt."""
    top: int = 5
    """N: prompts that an image chooses."""
    pull: float = 0.1
    """lambda: of the chosen keys' distance from the query."""

    def __post_init__(self) -> None:
        if not 1 <= self.top <= self.prompts or self.length < 1:
            raise ValueError(f"top is {self.top} of {self.prompts} prompts of length {self.length}: choose 1 to all, of 1 token or more")

    def build(self, spec: ImageSpec) -> Model:
        """With a pool of prompts."""
        return prompted(self, spec, lambda net: Pool(net.dim, self.prompts, self.length, self.top))

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """One fit."""
        yield from prompted_phases(knowledge, stage, self.optim_of(stage), pull=self.pull * Pull())
