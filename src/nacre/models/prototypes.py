"""Class means that answer by cosine, in one feature space or in several that came one after the other.

Shapes: n samples, B images, K classes, S spaces of d features each.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.models.growing import Growing
from nacre.models.readouts import Table


class Prototypes(Growing):
    """Cosines with class means: the space in which a class came counts in full, others little (Zhou et al., CVPR 2024, eq. 13).

    With one space this is a cosine classifier whose rows are class means (Zhou et al., IJCV 2024). Logits are in units of the mean
    distance that samples had from the best answer when they were learnt, so that they make probabilities; the arg max does not
    depend on it. Samples of a class that comes again join its means.

    Args:
        dim: d.
        others: alpha, the weight of the spaces in which a class did not come.
    """

    def __init__(self, dim: int, others: float = 0.1) -> None:
        Growing.__init__(self)
        self.dim, self.others = dim, others
        self.register_buffer("distance", torch.zeros(2))  # their sum, and of how many samples
        self.table = Table(means=torch.empty(0, 1, dim), count=torch.empty(0, 1), home=torch.empty(0, dtype=torch.int64))

    def size(self) -> list[int]:
        """[K, S]."""
        return list(self.table.get_buffer("count").shape)

    def numbers(self, *size: int) -> int:
        """Means, counts, and where each class came."""
        classes, spaces = size
        return classes * (spaces * (self.dim + 1) + 1)

    def resize(self, *size: int) -> None:
        """Make room for K classes, which come in the newest space, and S spaces, keeping what is there."""
        classes, spaces = (new - old for new, old in zip(size, self.size(), strict=True))
        means, count, home = (self.table.get_buffer(name) for name in ("means", "count", "home"))
        self.table = Table(
            means=F.pad(means, (0, 0, 0, spaces, 0, classes)),
            count=F.pad(count, (0, spaces, 0, classes)),
            home=F.pad(home, (0, classes), value=size[1] - 1),
        )

    def select(self, classes: Tensor) -> None:
        """Keep the means of these classes."""
        self.table = self.table.select(classes)

    def learn(self, features: Tensor, labels: Tensor, classes: int) -> None:
        """Take in samples, after which there are so many classes: features [n, S d], of which the last d may be new, labels [n]."""
        x = features.unflatten(1, (-1, self.dim))
        self.resize(classes, x.shape[1])
        member = F.one_hot(labels, classes).to(x)
        means, count = self.table.get_buffer("means"), self.table.get_buffer("count")
        here, total = labels.unique(), count + member.sum(0)[:, None]
        sums = count[:, :, None] * means + torch.einsum("nk,nsd->ksd", member, x)
        means[here] = (sums / total[:, :, None])[here]
        count.copy_(total)
        self.complement()
        distances = self.weights()[labels].sum(1) - self.cosines(features).gather(1, labels[:, None])[:, 0]
        self.get_buffer("distance").add_(torch.stack([distances.sum(), distances.new_tensor(len(labels))]))

    def complement(self) -> None:
        """Guess the means in the newest space of classes that had no sample there (Zhou et al., CVPR 2024, eq. 9-11).

        Such a mean is that of the classes with samples, each weighted by the softmax of the two classes' cosine in the space
        where the first one came.
        """
        means, count = self.table.get_buffer("means"), self.table.get_buffer("count")
        there = count[:, -1] > 0
        if there.any() and not there.all():
            unit = F.normalize(means, dim=2)
            similar = torch.einsum("ks,ksd,jsd->kj", self.at_home()[~there].to(unit), unit[~there], unit[there])
            means[~there, -1] = similar.softmax(1) @ means[there, -1]

    def at_home(self) -> Tensor:
        """Whether a class came in a space: [K, S], bool."""
        home = self.table.get_buffer("home")
        return home[:, None] == torch.arange(self.size()[1], device=home.device)

    def weights(self) -> Tensor:
        """Of every class and space: [K, S]."""
        return torch.where(self.at_home(), 1.0, self.others)

    def cosines(self, features: Tensor) -> Tensor:
        """[B, S d] -> their weighted sum [B, K]."""
        x = F.normalize(features.unflatten(1, (-1, self.dim)), dim=2)
        rows = self.weights()[:, :, None] * F.normalize(self.table.get_buffer("means"), dim=2)
        return F.linear(x.flatten(1), rows.flatten(1))

    def forward(self, features: Tensor) -> Tensor:
        """[B, S d] -> [B, K]."""
        total, count = self.get_buffer("distance").unbind()
        return self.cosines(features) / (total / count.clamp_min(1)).clamp_min(1e-4)
