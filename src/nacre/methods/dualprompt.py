"""DualPrompt: a general prompt for all stages, an expert prompt for each (Wang et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.losses.prompts import Pull
from nacre.methods.shared import grow_prompts, prompted, prompted_phases
from nacre.models.model import Model
from nacre.models.prompts import Experts, within
from nacre.models.transformers import Transformer
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Phase


@dataclass(frozen=True, kw_only=True)
class DualPrompt(Method):
    """Prefixes of attention: one that all stages learn in the first blocks, and behind it one of each stage, found by its key.

    A prefix stands before the keys and values of a block's attention, behind their projections as in the authors' code. A stage trains
    the general prefix, its own expert e_t and its key k_t: L(x) + lambda (1 - cos(q(x), k_t)), with q(x) from the frozen transformer.
    At test the expert with the key of largest cosine is taken. Every expert is drawn afresh; the authors' code begins with the one
    before it, and lets a batch vote on the expert, where every image chooses for itself here. Rate and length of prompts are the
    field's comparison's. In a stage with images of known classes these train its expert too.
    """

    family = "pre-trained"
    paper = "Wang et al., ECCV 2022"
    needs = frozenset({"pre-training", "growing size"})

    backbone: str = "timm:vit_base_patch16_224.augreg_in21k"
    optim: Optim = Optim(name="adamw", lr=0.001, weight_decay=0.0, schedule="constant", clip=1.0, epochs=5, batch=24)
    """Adam: AdamW without weight decay is the same."""
    general: tuple[int, ...] = (0, 1)
    """Blocks, from 0, that take the general prefix."""
    expert: tuple[int, ...] = (2, 3, 4)
    """Blocks that take the expert's; those behind the transformer's last are that one."""
    length: int = 5
    """Keys of a prefix, and as many values."""
    pull: float = 1.0
    """lambda: of the expert's key's distance from the query."""

    def __post_init__(self) -> None:
        if min(self.length, *self.general, *self.expert, 0) < 0 or not (self.length and self.general and self.expert):
            raise ValueError(f"blocks {self.general} and {self.expert} and length {self.length}: name blocks from 0, and 1 token or more")

    def build(self, spec: ImageSpec) -> Model:
        """With the first stage's expert."""
        return prompted(self, spec, self.experts)

    def experts(self, net: Transformer) -> Experts:
        """Prompts for a transformer."""
        depth = len(net.blocks)
        return Experts(net.dim, within(self.general, depth), within(self.expert, depth), self.length)

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """An expert for the stage."""
        grow_prompts(knowledge.model, stage)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """One fit."""
        yield from prompted_phases(knowledge, stage, self.optim_of(stage), pull=self.pull * Pull())
