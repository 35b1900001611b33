"""From features to logits, for a number of classes that grows on the right.

Shapes: B images, D features, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.models.growing import Growing


class Rows(nn.Module):
    """One weight row, and where wanted one bias, per class."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        nn.Module.__init__(self)
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)


class Head(Growing):
    """Features [B, D] -> logits [B, K]; `resize(K)` adds classes on the right and keeps the others' rows."""

    def __init__(self, dim: int, *, bias: bool) -> None:
        Growing.__init__(self)
        self.dim = dim
        self.rows = Rows(torch.empty(0, dim), torch.empty(0) if bias else None)

    def size(self) -> list[int]:
        """[K]."""
        return [len(self.rows.weight)]

    def numbers(self, *size: int) -> int:
        """The rows, of which every class has one at least."""
        return size[0] * self.dim + 2 * len(size[1:])

    def resize(self, *size: int) -> None:
        """Keep the rows of the first K classes and draw the others as `nn.Linear` would."""
        (classes,) = size
        old, reach = self.rows, 1 / math.sqrt(self.dim)
        fresh = max(0, classes - len(old.weight))
        weight = torch.empty(fresh, self.dim).uniform_(-reach, reach).to(old.weight.device)
        bias = None if old.bias is None else torch.cat([old.bias.detach(), old.bias.new_empty(fresh).uniform_(-reach, reach)])
        self.rows = Rows(torch.cat([old.weight.detach(), weight])[:classes], None if bias is None else bias[:classes])

    def every(self, features: Tensor) -> Tensor:
        """What all rows say: [B, D] -> [B, rows], equally many for each class."""
        logits: Tensor = self(features)
        return logits

    def select(self, classes: Tensor) -> None:
        """Keep the rows of these classes, of which each has equally many."""
        each = len(self.rows.weight) // max(1, self.size()[0])
        kept = (classes.to(self.rows.weight.device)[:, None] * each + torch.arange(each, device=self.rows.weight.device)).flatten()
        self.rows = Rows(self.rows.weight.detach()[kept], None if self.rows.bias is None else self.rows.bias.detach()[kept])


class Linear(Head):
    """An affine head."""

    def __init__(self, dim: int) -> None:
        Head.__init__(self, dim, bias=True)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        return F.linear(features, self.rows.weight, self.rows.bias)


class Cosine(Head):
    """The cosine of features and class rows times one learned scale (Hou et al., CVPR 2019, eq. 3-4).

    Rows and features of any length answer alike, so newly trained classes cannot win by longer weights alone.
    """

    def __init__(self, dim: int, scale: float = 10.0) -> None:
        Head.__init__(self, dim, bias=False)
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        return self.scale * F.linear(F.normalize(features), F.normalize(self.rows.weight))


class Pair(nn.Module):
    """alpha and beta of one stage."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.alpha = nn.Parameter(torch.ones(()))
        self.beta = nn.Parameter(torch.zeros(()))

    def forward(self, logits: Tensor) -> Tensor:
        """Alpha z + beta."""
        return self.alpha * logits + self.beta


class BiasCorrected(Head):
    """An affine head whose logits of every stage's classes are corrected: alpha z + beta (Wu et al., CVPR 2019, eq. 4)."""

    def __init__(self, dim: int) -> None:
        Head.__init__(self, dim, bias=True)
        self.ends: list[int] = []
        self.pairs = nn.ModuleList()

    def size(self) -> list[int]:
        """[K, classes after the first stage, after the second, ...]."""
        return [*Head.size(self), *self.ends]

    def resize(self, *size: int) -> None:
        """Grow to K classes, the new ones being a stage of their own unless all stages are named."""
        classes, *ends = size
        if not ends:
            ends = self.ends + [classes] * (classes > max(self.ends, default=0))
        if ends != sorted(set(ends)) or (ends and not 0 < ends[0] <= ends[-1] <= classes):
            raise ValueError(f"stages that end at classes {ends[:5]} ... do not fit {classes} classes")
        Head.resize(self, classes)
        device = self.rows.weight.device
        self.ends, kept = ends, list(self.pairs)[: len(ends)]
        self.pairs = nn.ModuleList([*kept, *(Pair().to(device) for _ in range(len(ends) - len(kept)))])

    def select(self, classes: Tensor) -> None:
        """Keep the rows of these classes, and the corrections of stages that still have any."""
        Head.select(self, classes)
        ends = [int((classes < end).sum()) for end in self.ends]
        filled = [end > start for start, end in pairwise([0, *ends])]
        self.pairs = nn.ModuleList([pair for pair, some in zip(self.pairs, filled, strict=True) if some])
        self.ends = [end for end, some in zip(ends, filled, strict=True) if some]

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        raw = F.linear(features, self.rows.weight, self.rows.bias)
        starts = [0, *self.ends]
        parts = (pair(raw[:, a:b]) for pair, a, b in zip(self.pairs, starts, starts[1:], strict=False))
        return torch.cat([raw[:, :0], *parts], 1)


class Proxies(Head):
    """Cosines to several rows per class, averaged with more weight on the nearer, times one learned scale.

    Local similarity classifier (Douillard et al., ECCV 2020, eq. 8-9).
    """

    def __init__(self, dim: int, proxies: int = 10, scale: float = 1.0) -> None:
        Head.__init__(self, dim, bias=False)
        self.proxies = proxies
        self.scale = nn.Parameter(torch.tensor(scale))

    def size(self) -> list[int]:
        """[K]."""
        return [len(self.rows.weight) // self.proxies]

    def resize(self, *size: int) -> None:
        """Keep the proxies of the first K classes."""
        Head.resize(self, size[0] * self.proxies)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        cosine: Tensor = F.linear(F.normalize(features), F.normalize(self.rows.weight)).unflatten(1, (-1, self.proxies))
        return self.scale * (cosine.softmax(2) * cosine).sum(2)

    def imprint(self, label: int, features: Tensor, seed: int) -> None:
        """Put a class's proxies at the centres of its features [n, D], found by k-means (Qi et al., CVPR 2018, for several proxies)."""
        from sklearn.cluster import KMeans

        means = KMeans(min(self.proxies, len(features)), n_init=1, random_state=seed % 2**32)
        rows = torch.from_numpy(means.fit(F.normalize(features).cpu().numpy()).cluster_centers_).to(self.rows.weight)
        self.rows.weight[label * self.proxies : (label + 1) * self.proxies] = rows[torch.arange(self.proxies) % len(rows)]


class Means(nn.Module):
    """Class means [K, D] as they are kept in a model file, and the spread of features around them."""

    means: Tensor
    spread: Tensor

    def __init__(self, means: Tensor) -> None:
        nn.Module.__init__(self)
        self.register_buffer("means", means)
        self.register_buffer("spread", torch.ones((), device=means.device))


class NearestMean(Growing):
    """Nearest class mean among features of length one (Rebuffi et al., CVPR 2017, algorithm 1), as a head.

    The logit of a class is minus half the squared distance to its mean, in units of the mean squared distance of the samples
    that made the means; the nearest mean is the arg max whatever that unit.
    """

    def __init__(self, dim: int) -> None:
        Growing.__init__(self)
        self.dim = dim
        self.table = Means(torch.empty(0, dim))

    def size(self) -> list[int]:
        """[K]."""
        return [len(self.table.means)]

    def numbers(self, *size: int) -> int:
        """The means."""
        return size[0] * self.dim

    def resize(self, *size: int) -> None:
        """Make room for K means, keeping those that are there."""
        (classes,) = size
        means = self.table.means.new_zeros(classes, self.dim)
        kept = self.table.means[:classes]
        means[: len(kept)] = kept
        spread = self.table.spread
        self.table = Means(means)
        self.table.spread.copy_(spread)

    def select(self, classes: Tensor) -> None:
        """Keep the means of these classes."""
        spread, self.table = self.table.spread, Means(self.table.means[classes.to(self.table.means.device)])
        self.table.spread.copy_(spread)

    def learn(self, features: Tensor, labels: Tensor, classes: int) -> None:
        """Answer for `classes` classes, with the means of those among the samples: features [n, D], labels [n]."""
        self.resize(classes)
        unit = F.normalize(features)
        sums = F.one_hot(labels, classes).to(unit).T @ unit  # [K, D]
        there = labels.unique()
        self.table.means[there] = F.normalize(sums)[there]
        self.table.spread.copy_((unit - self.table.means[labels]).square().sum(1).mean())

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        cosine = F.linear(F.normalize(features), self.table.means)
        return (cosine - 1) / self.table.spread.clamp_min(1e-4)


class Turned(Head):
    """Four rows per class, one for each quarter turn of the image; the first answers (Zhu et al., CVPR 2021, section 3.3)."""

    def __init__(self, dim: int) -> None:
        Head.__init__(self, dim, bias=True)

    def size(self) -> list[int]:
        """[K]."""
        return [len(self.rows.weight) // 4]

    def resize(self, *size: int) -> None:
        """Keep the rows of the first K classes."""
        Head.resize(self, 4 * size[0])

    def every(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, 4 K]: logit 4 k + r of class k turned r times."""
        return F.linear(features, self.rows.weight, self.rows.bias)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        return self.every(features)[:, ::4]


HEADS: dict[str, Callable[[int], Head]] = {
    "bias-corrected": BiasCorrected,
    "cosine": Cosine,
    "linear": Linear,
    "proxies": Proxies,
    "turned": Turned,
}
