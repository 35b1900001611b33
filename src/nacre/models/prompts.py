"""Prompts for a frozen vision transformer: learnt tokens, among which an image's query chooses.

Shapes: B images; T tokens, D numbers each; M prompts or components, L tokens long; N blocks that take prefixes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.errors import NacreError
from nacre.models.backbones import Backbone
from nacre.models.growing import Growing
from nacre.models.transformers import Prefix, Transformer, prefixed


@dataclass(frozen=True, eq=False)
class Prompt:
    """What is put before the tokens of B images."""

    front: Tensor | None = None
    """[B, P, D]: tokens in front of the sequence, the mean of whose outputs is the features; None where the net condenses its own."""
    prefixes: Mapping[int, Prefix] = field(default_factory=dict)
    """Of some blocks' attention."""
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    """What terms look at."""


class Prompts(nn.Module, ABC):
    """Learnt prompts and how they are chosen."""

    blocks: tuple[int, ...] = ()
    """Those that take prefixes."""

    @abstractmethod
    def forward(self, query: Tensor) -> Prompt:
        """Queries [B, D] -> what is put before the images' tokens."""


class Prompted(Backbone):
    """A frozen transformer that sees every image twice: without prompts, which gives the query, then with what the query chose.

    Args:
        transformer: in inference form, and never trained, from now on.
        prompts: what is trained.

    Raises:
        NacreError: a block that should take a prefix computes something else than attention and a hidden layer.
    """

    def __init__(self, transformer: Transformer, prompts: Prompts) -> None:
        Backbone.__init__(self)
        self.transformer, self.prompts = transformer.requires_grad_(False), prompts
        self.dim, self.reduction = transformer.dim, transformer.reduction
        self.train()
        for i in prompts.blocks:
            if not takes_prefix(transformer.blocks[i], self.dim):
                raise NacreError(f"block {i} of this transformer takes no prefix: use one whose blocks are plain, or method l2p.")

    def train(self, mode: bool = True) -> Prompted:
        """Training form for the prompts alone."""
        nn.Module.train(self, mode)
        self.transformer.eval()
        return self

    def bare(self) -> Backbone:
        """The transformer."""
        return self.transformer

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> ([B, D, 1, 1],)."""
        return self.with_aux(images)[0]

    def with_aux(self, images: Tensor) -> tuple[tuple[Tensor, ...], Mapping[str, Tensor]]:
        """[B, C, H, W] -> ([B, D, 1, 1],), and what the prompts tell."""
        with torch.no_grad():
            tokens = self.transformer.embed(images)
            query = self.transformer.condense(self._through(tokens, {}))
        with torch.autocast(images.device.type, enabled=False):  # which prompt is nearest should not hang on a rounding
            prompt = self.prompts(query.float())
        if prompt.front is None:
            features = self.transformer.condense(self._through(tokens, prompt.prefixes))
        else:
            whole = self._through(torch.cat([prompt.front.to(tokens.dtype), tokens], 1), prompt.prefixes)
            features = self.transformer.normed(whole[:, : prompt.front.shape[1]]).mean(1)
        return (features[:, :, None, None],), prompt.aux

    def _through(self, tokens: Tensor, prefixes: Mapping[int, Prefix]) -> Tensor:
        for i, block in enumerate(self.transformer.blocks):
            tokens = prefixed(block, tokens, prefixes[i]) if i in prefixes else block(tokens)
        return tokens


def takes_prefix(block: nn.Module, dim: int) -> bool:
    """Whether a block computes what `prefixed` takes it for."""
    x = torch.linspace(-1, 1, 3 * dim).square().view(1, 3, dim)
    try:
        with torch.no_grad():
            return torch.allclose(prefixed(block, x, None), block(x), atol=1e-4)
    except AttributeError:
        return False


def within(blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Blocks of a transformer of `depth` blocks; those behind its last are that one."""
    return tuple(sorted({min(i, depth - 1) for i in blocks}))


def cosine(query: Tensor, keys: Tensor) -> Tensor:
    """Cosines of queries [B, D] with keys [M, D]: [B, M]."""
    return F.normalize(query) @ F.normalize(keys).T


def drawn(*shape: int) -> nn.Parameter:
    """Numbers of [-1, 1)."""
    return nn.Parameter(torch.empty(*shape).uniform_(-1, 1))


class Pool(Prompts):
    """One pool for all stages; the prompts with the nearest keys stand in front of the sequence (Wang et al., CVPR 2022, section 4).

    Args:
        dim: D.
        count: M.
        length: L.
        top: how many are chosen.
    """

    def __init__(self, dim: int, count: int, length: int, top: int) -> None:
        nn.Module.__init__(self)
        self.top = top
        self.keys, self.tokens = drawn(count, dim), drawn(count, length, dim)

    def forward(self, query: Tensor) -> Prompt:
        """Tells `near`, the cosines of the chosen keys: [B, top]."""
        near, which = cosine(query, self.keys).topk(self.top)
        return Prompt(front=self.tokens[which].flatten(1, 2), aux={"near": near})


class Staged(Prompts, Growing):
    """Prompts with a part per stage, of which the newest alone learns; there is one from the beginning."""

    parts: nn.ModuleList

    @abstractmethod
    def fresh(self) -> nn.ParameterDict:
        """What a stage adds, by name."""

    def every(self, name: str) -> list[Tensor]:
        """What is called `name` in the part of each stage."""
        return [cast(nn.ParameterDict, part)[name] for part in self.parts]

    def size(self) -> list[int]:
        """Number of parts."""
        return [len(self.parts)]

    def resize(self, *size: int) -> None:
        """Add parts, or keep the first ones; all but the newest are frozen."""
        (count,) = size
        if not count:
            raise ValueError("prompts of no stage do not answer")
        kept, device = list(self.parts)[:count], next(self.parameters()).device
        self.parts = nn.ModuleList([*kept, *(self.fresh().to(device) for _ in range(count - len(kept)))])
        for part in list(self.parts)[:-1]:
            part.requires_grad_(False)

    def numbers(self, *size: int) -> int:
        """Those of the parts."""
        return size[0] * sum(parameter.numel() for parameter in self.parts[0].parameters())


class Experts(Staged):
    """A general prefix for all images, and an expert of each stage with a key (Wang et al., ECCV 2022, section 4).

    Training looks at the stage's own expert, the newest; else the expert with the nearest key answers.

    Args:
        dim: D.
        general: blocks that take the general prefix.
        expert: blocks that take an expert's.
        length: L, of keys and as many values.

    Raises:
        NacreError: a block would take both.
    """

    def __init__(self, dim: int, general: tuple[int, ...], expert: tuple[int, ...], length: int) -> None:
        nn.Module.__init__(self)
        if set(general) & set(expert):
            raise NacreError(f"general prompts for blocks {general} and expert ones for {expert}: a block takes one kind.")
        self.dim, self.length, self.apart, self.blocks = dim, length, expert, general + expert
        self.general = drawn(len(general), 2, length, dim)
        self.parts = nn.ModuleList([self.fresh()])

    def fresh(self) -> nn.ParameterDict:
        """A key [D] and its prefixes [N, 2, L, D]."""
        return nn.ParameterDict({"key": drawn(self.dim), "prefixes": drawn(len(self.apart), 2, self.length, self.dim)})

    def forward(self, query: Tensor) -> Prompt:
        """Tells `near`, the cosine of the expert's key: [B, 1]."""
        near = cosine(query, torch.stack(self.every("key")))
        which = torch.full_like(near[:, 0], len(self.parts) - 1, dtype=torch.long) if self.training else near.argmax(1)
        expert = torch.stack(self.every("prefixes"))[which]
        general = self.general.expand(query.shape[0], -1, -1, -1, -1)
        pairs = torch.cat([general, expert], 1)
        return Prompt(prefixes=by_block(self.blocks, pairs), aux={"near": near.gather(1, which[:, None])})


class Components(Staged):
    """Components that are added up, weighted by how an image's query, attended by each, meets its key (Smith et al., CVPR 2023, section 4).

    Args:
        dim: D.
        blocks: those that take the sum; each has components of its own.
        count: M, of a stage.
        length: L, of keys and as many values.
    """

    def __init__(self, dim: int, blocks: tuple[int, ...], count: int, length: int) -> None:
        nn.Module.__init__(self)
        self.dim, self.blocks, self.count, self.length = dim, blocks, count, length
        self.parts = nn.ModuleList([self.fresh()])

    def fresh(self) -> nn.ParameterDict:
        """Keys and attention [N, M, D] and prefixes [N, M, 2, L, D], orthonormal within a block as far as there is room."""
        shapes = {"key": (self.dim,), "attention": (self.dim,), "prefixes": (2, self.length, self.dim)}
        rows = {
            name: torch.stack([nn.init.orthogonal_(torch.empty(self.count, *shape)) for _ in self.blocks]) for name, shape in shapes.items()
        }
        return nn.ParameterDict({name: nn.Parameter(value) for name, value in rows.items()})

    def forward(self, query: Tensor) -> Prompt:
        """Tells `key`, `attention` and `prefixes` of all stages: [N, M, numbers of each]."""
        keys, attention, prefixes = (torch.cat(self.every(name), 1) for name in ("key", "attention", "prefixes"))
        pairs = torch.einsum("bnm,nmkld->bnkld", resemblance(query, attention, keys), prefixes)
        told = {"key": keys, "attention": attention, "prefixes": prefixes.flatten(2)}
        return Prompt(prefixes=by_block(self.blocks, pairs), aux=told)


def resemblance(query: Tensor, attention: Tensor, keys: Tensor) -> Tensor:
    """Cosine of query * attention with the key of every component: [B, D], [N, M, D] twice -> [B, N, M]."""
    product = torch.einsum("bd,nmd->bnm", query, attention * keys)
    length = torch.einsum("bd,nmd->bnm", query.square(), attention.square()).sqrt() * keys.norm(dim=2)
    cosines: Tensor = product / length.clamp_min(1e-8)
    return cosines


def by_block(blocks: Sequence[int], pairs: Tensor) -> dict[int, Prefix]:
    """Keys and values [B, N, 2, L, D] of N blocks."""
    return {block: (pairs[:, n, 0], pairs[:, n, 1]) for n, block in enumerate(blocks)}
