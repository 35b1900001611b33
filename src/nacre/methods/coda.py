"""CODA-Prompt: prompts put together from components by attention (Smith et al., CVPR 2023)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.losses.prompts import Orthogonality
from nacre.methods.shared import grow_prompts, prompted, prompted_phases
from nacre.models.model import Model
from nacre.models.prompts import Components, within
from nacre.models.transformers import Transformer
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.optim import Optim
from nacre.training.phases import Phase


@dataclass(frozen=True, kw_only=True)
class CODAPrompt(Method):
    """A block's prefix is the sum of all components, each weighted by the cosine of q(x) * A with its key K.

    Every stage adds components and freezes those before it, and the loss is L(x) + lambda (O(P) + O(K) + O(A)) over all of them, with
    O(B) = |B B^T - 1|^2; half of a component's tokens stand before the keys of a block's attention, half before the values. The paper
    shares 100 components among ten stages; here a stage brings ten, however many will come. O is the mean over the matrix, so that
    lambda does not hang on its size; the authors' code takes a millionth of that. Components of one stage begin orthonormal.
    """

    family = "pre-trained"
    paper = "Smith et al., CVPR 2023"
    needs = frozenset({"pre-training", "growing size"})

    backbone: str = "timm:vit_base_patch16_224.augreg_in21k"
    optim: Optim = Optim(name="adamw", lr=0.001, weight_decay=0.0, schedule="cosine", epochs=20, batch=128)
    """Adam: AdamW without weight decay is the same."""
    blocks: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Those that take a prefix, from 0; those behind the transformer's last are that one."""
    components: int = 10
    """Of a stage, in every block."""
    length: int = 8
    """Tokens of a component: half keys, half values."""
    orthogonality: float = 0.1
    """lambda."""

    def __post_init__(self) -> None:
        if min(self.components, self.length // 2) < 1 or self.length % 2 or not self.blocks or min(self.blocks) < 0:
            raise ValueError(
                f"{self.components} components of length {self.length} in blocks {self.blocks}: "
                "name 1 or more, of an even length, and blocks from 0"
            )

    def build(self, spec: ImageSpec) -> Model:
        """With the first stage's components."""
        return prompted(self, spec, self.composed)

    def composed(self, net: Transformer) -> Components:
        """Prompts for a transformer."""
        return Components(net.dim, within(self.blocks, len(net.blocks)), self.components, self.length // 2)

    def grow(self, knowledge: Knowledge, stage: Stage) -> None:
        """Components for the stage."""
        grow_prompts(knowledge.model, stage)

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """One fit."""
        yield from prompted_phases(knowledge, stage, self.optim_of(stage), orthogonality=self.orthogonality * Orthogonality())
