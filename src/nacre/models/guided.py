"""A backbone that grows under the guidance of a net that no label ever steered.

Shapes: B images, C x H x W pixels; T positions of the last map, d channels of one branch, D of all; K new classes.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.data.source import ImageSpec
from nacre.models.backbones import Backbone
from nacre.models.expandable import Expandable
from nacre.models.growing import Growing
from nacre.models.heads import Linear
from nacre.models.model import Model


class Guided(Backbone):
    """Branches that answer, and beside them a task-agnostic net, which runs in training alone (Zheng et al., CVPR 2025: TagFex).

    In training the agnostic net's last map is the first of the maps. What belongs to its own training sits here too: the projector of
    its contrast, the predictor of its old features, and the attention that merges its map with the newest branch's.

    Args:
        first: a backbone, which becomes the first branch; the agnostic net begins as a copy of it.
        hidden: width of the projector's hidden layer.
        projected: of its output.
    """

    def __init__(self, first: Backbone, hidden: int, projected: int) -> None:
        nn.Module.__init__(self)
        self.reduction = first.reduction
        self.agnostic = copy.deepcopy(first)
        self.specific = Expandable(first)
        self.projector = nn.Sequential(nn.Linear(first.dim, hidden), nn.ReLU(), nn.Linear(hidden, projected))
        self.predictor = nn.Linear(first.dim, first.dim)
        self.merge = Merge(first.dim)

    @property
    def dim(self) -> int:  # type: ignore[override]
        """D."""
        return self.specific.dim

    def guide(self, spec: ImageSpec) -> Model:
        """The agnostic net as it is, in inference form, as a model of its own."""
        model = Model(copy.deepcopy(self.agnostic), Linear(self.agnostic.dim), spec)
        return model.frozen().to(self.predictor.weight.device)

    def widen(self, classes: int, closeness: float) -> None:
        """Add a branch between the newest one and the agnostic net, and attention that answers for the new classes.

        Args:
            classes: how many are new.
            closeness: share of the newest branch in the new one, in [0, 1]; the rest is the agnostic net's.
        """
        self.merge.resize(classes)
        self.specific.resize(len(self.specific.branches) + 1)
        with torch.no_grad():
            for new, guide in zip(self.specific.branches[-1].parameters(), self.agnostic.parameters(), strict=True):
                new.mul_(closeness).add_(guide, alpha=1 - closeness)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """[B, C, H, W] -> maps of the newest branch, the last joined with all branches'; in training the agnostic one first."""
        maps = self.specific(images)
        return (self.agnostic(images)[-1], *maps) if self.training else maps


def guided(model: Model) -> Guided:
    """A model's backbone by its kind."""
    assert isinstance(model.backbone, Guided), "this term is for a guided backbone, see TagFex"
    return model.backbone


class Merge(Growing):
    """Attention of one map's positions to two maps at once, and a classifier of what it gathers (Zheng et al., CVPR 2025, section 4.2).

    It serves the training of one stage; between stages it has no classes and no weights.
    """

    def __init__(self, dim: int) -> None:
        Growing.__init__(self)
        self.dim, self.classes = dim, 0
        self.heads = math.gcd(dim, 8)
        self.parts = nn.ModuleDict()

    def size(self) -> list[int]:
        """[K]."""
        return [self.classes]

    def numbers(self, *size: int) -> int:
        """Five square matrices, two norms and the classifier; none of all where there are no classes."""
        return (5 * self.dim**2 + 4 * self.dim + size[0] * (self.dim + 1)) * (size[0] > 0)

    def resize(self, *size: int) -> None:
        """Begin afresh, for K classes."""
        (self.classes,) = size
        self.parts = nn.ModuleDict()
        if not self.classes:
            return
        for name in ("query", "key", "value", "guide_key", "guide_value"):
            self.parts[name] = nn.Linear(self.dim, self.dim, bias=False)
            nn.init.xavier_normal_(self.parts[name].weight)  # type: ignore[arg-type]
        norms = {name: nn.LayerNorm(self.dim) for name in ("norm", "guide_norm")}
        self.parts.update({**norms, "classifier": nn.Linear(self.dim, self.classes)})

    def forward(self, own: Tensor, guide: Tensor) -> Tensor:
        """Maps of the newest branch and of the agnostic net, [B, d, h, w] each -> logits of the new classes [B, K]."""
        x = self.parts["norm"](own.flatten(2).transpose(1, 2))
        y = self.parts["guide_norm"](guide.flatten(2).transpose(1, 2))
        query, key, value = self.parts["query"](x), self.parts["key"](x), self.parts["value"](x)
        key, value = torch.cat([key, self.parts["guide_key"](y)], 1), torch.cat([value, self.parts["guide_value"](y)], 1)
        split = [part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)]
        merged = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        logits: Tensor = self.parts["classifier"](merged.mean(1))
        return logits
