"""Classifiers in closed form: features to logits by tables that are worked out, not trained.

Shapes: B images, D features, E expanded features, K classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nacre.models.growing import Growing


class Table(nn.Module):
    """Named tensors that a model file keeps and no optimiser sees."""

    def __init__(self, **tensors: Tensor) -> None:
        nn.Module.__init__(self)
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)

    def select(self, rows: Tensor) -> Table:
        """The same tensors with these rows alone."""
        return Table(**{name: tensor[rows.to(tensor.device)] for name, tensor in self.named_buffers()})


class Affine(Growing):
    """Features, brought to length one where wanted, times rows plus biases."""

    def __init__(self, dim: int, *, unit: bool = False) -> None:
        Growing.__init__(self)
        self.dim, self.unit = dim, unit
        self.table = Table(weight=torch.empty(0, dim), bias=torch.empty(0))

    def size(self) -> list[int]:
        """[K]."""
        return [len(self.table.get_buffer("bias"))]

    def numbers(self, *size: int) -> int:
        """Rows and biases."""
        return size[0] * (self.dim + 1)

    def resize(self, *size: int) -> None:
        """Make room for K classes."""
        device = self.table.get_buffer("bias").device
        self.table = Table(weight=torch.zeros(size[0], self.dim, device=device), bias=torch.zeros(size[0], device=device))

    def select(self, classes: Tensor) -> None:
        """Keep the rows of these classes."""
        self.table = self.table.select(classes)

    def learn(self, weight: Tensor, bias: Tensor) -> None:
        """Answer with rows [K, D] and biases [K]."""
        device = self.table.get_buffer("bias").device
        self.table = Table(weight=weight.to(device, torch.float32), bias=bias.to(device, torch.float32))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        x = F.normalize(features) if self.unit else features
        return F.linear(x, self.table.get_buffer("weight"), self.table.get_buffer("bias"))


class Ridge(Growing):
    """Ridge regression onto class indicators from randomly expanded features, updated by what is new alone.

    The update gives the solution over all samples so far: with R = (X'X + gamma I)^-1 and new rows X,
    K = (I + X R X')^-1, R <- R - R X' K X R, W <- W + R X' (Y - X W) (Zhuang et al., NeurIPS 2022, theorem 1). The new R times X'
    is R X' K, which is there already.

    Args:
        dim: D.
        width: E, of the expansion f(x B), x of length one, with B drawn once from a normal distribution with variance 1 / D.
        gamma: of the ridge, above 0.
        activation: f, `relu` or `tanh`.
        basis: B [D, E] of another readout, to be shared; by default drawn from torch's generator.
    """

    def __init__(self, dim: int, width: int, gamma: float, activation: str = "relu", basis: Tensor | None = None) -> None:
        Growing.__init__(self)
        self.gamma, self.activation = gamma, activation
        drawn = torch.randn(dim, width) / math.sqrt(dim) if basis is None else basis
        self.register_buffer("basis", drawn)
        self.register_buffer("inverse", torch.eye(width, dtype=torch.float64).div_(gamma))
        self.table = Table(weight=torch.zeros(0, width))

    def size(self) -> list[int]:
        """[K]."""
        return [len(self.table.get_buffer("weight"))]

    def numbers(self, *size: int) -> int:
        """Rows, basis and inverse."""
        return (size[0] + sum(self.get_buffer("basis").shape)) * len(self.get_buffer("inverse"))

    def resize(self, *size: int) -> None:
        """Make room for K classes, keeping what is there; new rows are zero, as if all earlier samples had none of them."""
        old = self.table.get_buffer("weight")
        self.table = Table(weight=F.pad(old, (0, 0, 0, size[0] - len(old))))

    def select(self, classes: Tensor) -> None:
        """Keep the rows of these classes; what all samples have in common stays."""
        self.table = self.table.select(classes)

    def expanded(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, E]."""
        return getattr(torch, self.activation)(F.normalize(features) @ self.get_buffer("basis"))  # type: ignore[no-any-return]

    def absorb(self, features: Tensor, targets: Tensor, chunk: int = 512) -> None:
        """Learn n more samples: features [n, D], targets [n, K]."""
        self.resize(targets.shape[1])
        weight, inverse = self.table.get_buffer("weight").double(), self.get_buffer("inverse")
        for x, y in zip(features.split(chunk), targets.double().split(chunk), strict=True):
            wide = self.expanded(x).double()
            spread = wide @ inverse
            inner = torch.eye(len(x), dtype=torch.float64, device=x.device) + spread @ wide.T
            gain = torch.cholesky_solve(spread, torch.linalg.cholesky(inner))
            inverse.addmm_(spread.T, gain, alpha=-1)
            weight += (y - wide @ weight.T).T @ gain
        self.table = Table(weight=weight.float())

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        return F.linear(self.expanded(features), self.table.get_buffer("weight"))


RIDGES = tuple(10.0**power for power in range(-8, 9))
"""Among which one is chosen."""
CHUNK = 512
"""Samples that are expanded at once."""
Sums = tuple[Tensor, Tensor]
"""H'H [E, E] and Y'H [K, E] over samples, for expanded features H and class indicators Y."""


class Projected(Growing):
    """Class rows behind a random projection and a rectifier: relu(x P) W' (McDonnell et al., NeurIPS 2023, eq. 4).

    Args:
        dim: D.
        width: E; P is drawn once from the normal distribution, by torch's generator.
    """

    def __init__(self, dim: int, width: int) -> None:
        Growing.__init__(self)
        self.register_buffer("basis", torch.randn(dim, width))
        self.table = Table(weight=torch.zeros(0, width))

    def size(self) -> list[int]:
        """[K]."""
        return [len(self.table.get_buffer("weight"))]

    def numbers(self, *size: int) -> int:
        """Rows and projection."""
        return (size[0] + len(self.get_buffer("basis"))) * self.get_buffer("basis").shape[1]

    def resize(self, *size: int) -> None:
        """Make room for K classes, keeping what is there."""
        old = self.table.get_buffer("weight")
        self.table = Table(weight=F.pad(old, (0, 0, 0, size[0] - len(old))))

    def select(self, classes: Tensor) -> None:
        """Keep the rows of these classes."""
        self.table = self.table.select(classes)

    def learn(self, weight: Tensor) -> None:
        """Answer with rows [K, E]."""
        self.table = Table(weight=weight.float())

    def added(self, sums: Sums, features: Tensor, targets: Tensor) -> Sums:
        """The sums with n more samples: features [n, D], targets [n, K]."""
        gram, cross = sums
        for x, y in zip(features.split(CHUNK), targets.split(CHUNK), strict=True):
            wide = self.expanded(x).double()
            gram, cross = gram + wide.T @ wide, cross + y.T @ wide
        return gram, cross

    def best_ridge(self, sums: Sums, features: Tensor, targets: Tensor) -> float:
        """The ridge with the least squared error on n samples that are not in the sums (appendix F.6)."""
        gram, cross = sums
        values, vectors = torch.linalg.eigh(gram)
        inside, error = cross @ vectors, torch.zeros(len(RIDGES), dtype=torch.float64)
        for x, y in zip(features.split(CHUNK), targets.split(CHUNK), strict=True):
            turned = self.expanded(x).double() @ vectors
            gaps = [turned @ (inside / (values.clamp_min(0) + ridge)).T - y for ridge in RIDGES]
            error += torch.stack([gap.square().sum() for gap in gaps]).cpu()
        return RIDGES[int(error.argmin())]

    def expanded(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, E]."""
        return F.relu(features @ self.get_buffer("basis"))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        return F.linear(self.expanded(features), self.table.get_buffer("weight"))


class DualRidge(Growing):
    """A main stream, and a second one with another activation that is fitted to what the first leaves of the new classes.

    Dual-stream analytic learning (Zhuang et al., AAAI 2024, eq. 13-21).

    Args:
        dim: D.
        width: E, of both expansions.
        gamma: of both ridges, as strong as in `Ridge`, above 0.
        share: of the second stream in the answer.
    """

    def __init__(self, dim: int, width: int, gamma: float, share: float) -> None:
        Growing.__init__(self)
        self.share = share
        # of deviation one, so that tanh sees enough to bend; at 1 / sqrt(D) it is next to linear, and the second stream idle.
        # A rectifier only scales with it: what the ridge weighs has to grow by D as well, or the first stream overfits
        self.main = Ridge(dim, width, gamma * dim, "relu", torch.randn(dim, width))
        self.compensation = Ridge(dim, width, gamma * dim, "tanh", self.main.get_buffer("basis").clone())

    def size(self) -> list[int]:
        """[K]."""
        return self.main.size()

    def numbers(self, *size: int) -> int:
        """Those of both."""
        return 2 * self.main.numbers(*size)

    def resize(self, *size: int) -> None:
        """Make room for K classes in both."""
        self.main.resize(*size)
        self.compensation.resize(*size)

    def select(self, classes: Tensor) -> None:
        """Keep the rows of these classes in both."""
        self.main.select(classes)
        self.compensation.select(classes)

    def absorb(self, features: Tensor, targets: Tensor, known: int) -> None:
        """Learn n more samples: features [n, D], targets [n, K], of which the first `known` classes are not new."""
        self.main.absorb(features, targets)
        residue = targets - self.main(features)
        residue[:, :known] = 0  # previous label cleansing
        self.compensation.absorb(features, residue)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]."""
        return self.main(features) + self.share * self.compensation(features)  # type: ignore[no-any-return]


class ClassCovariance(Growing):
    """Nearest class mean under every class's own covariance (Goswami et al., NeurIPS 2023, eq. 3-8: FeCAM).

    Args:
        dim: D.
        power: of Tukey's transformation of the features, which must not be negative.
    """

    def __init__(self, dim: int, power: float = 0.5) -> None:
        Growing.__init__(self)
        self.dim, self.power = dim, power
        self.table = self.empty(0)

    def empty(self, classes: int) -> Table:
        """By class: number of samples, mean, mean and covariance after the transformation, and what is multiplied by in the answer."""
        vectors, matrices = torch.zeros(classes, self.dim), torch.zeros(classes, self.dim, self.dim)
        return Table(count=torch.zeros(classes), means=vectors, centres=vectors.clone(), covariance=matrices, precision=matrices.clone())

    def size(self) -> list[int]:
        """[K]."""
        return [len(self.table.get_buffer("means"))]

    def numbers(self, *size: int) -> int:
        """Counts, means and covariances."""
        return size[0] * (1 + 2 * self.dim + 2 * self.dim**2)

    def resize(self, *size: int) -> None:
        """Make room for K classes, keeping those that are there."""
        old, kept = dict(self.table.named_buffers()), min(size[0], *self.size())
        self.table = self.empty(size[0]).to(old["means"].device)
        for name, tensor in self.table.named_buffers():
            tensor[:kept] = old[name][:kept]

    def select(self, classes: Tensor) -> None:
        """Keep means and covariances of these classes."""
        self.table = self.table.select(classes)

    def learn(self, label: int, features: Tensor, shrink: tuple[float, float]) -> None:
        """Join features [n, D] of one class with what is known of it.

        Args:
            label: of the class.
            features: of its images.
            shrink: how much of the mean variance is added to the diagonal, and of the mean covariance to the rest.
        """
        table = {name: tensor[label] for name, tensor in self.table.named_buffers()}
        x, raw, before = tukey(features, self.power).double(), features.double(), table["count"].double()
        count = before + len(x)
        centre = (before * table["centres"] + x.sum(0)) / count
        gap, centred = table["centres"] - centre, x - centre
        scatter = (before - 1).clamp_min(0) * table["covariance"] + before * gap[:, None] * gap + centred.T @ centred
        found = {"means": (before * table["means"] + raw.sum(0)) / count, "centres": centre, "count": count}
        found["covariance"] = scatter / (count - 1).clamp_min(1)
        for name, value in {**found, "precision": precision(found["covariance"], shrink)}.items():
            table[name].copy_(value)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] -> [B, K]: minus the squared Mahalanobis distance."""
        means, matrices = tukey(self.table.get_buffer("means"), self.power), self.table.get_buffer("precision")
        x = F.normalize(tukey(features, self.power))
        distances = []
        for mean, matrix in zip(F.normalize(means), matrices, strict=True):  # [K, B, D, D] would not fit
            gap = x - mean
            distances.append(((gap @ matrix) * gap).sum(1))
        return -torch.stack(distances, 1) if distances else x.new_empty(len(x), 0)


def precision(covariance: Tensor, shrink: tuple[float, float]) -> Tensor:
    """The inverse of a covariance [D, D], shrunk and brought to a correlation; the unit matrix where nothing varies (one sample)."""
    diagonal, eye = covariance.diagonal(), torch.eye(len(covariance)).to(covariance)
    if diagonal.mean() < 1e-12:
        return eye
    rest = (covariance.sum() - diagonal.sum()) / max(1, len(eye) * (len(eye) - 1))
    shrunk = covariance + shrink[0] * diagonal.mean() * eye + shrink[1] * rest * (1 - eye)
    deviation = shrunk.diagonal().clamp_min(1e-12).sqrt()
    inverse: Tensor = torch.linalg.pinv(shrunk / deviation[:, None] / deviation[None], hermitian=True)
    return inverse


def tukey(features: Tensor, power: float) -> Tensor:
    """Tukey's ladder of powers: makes features that are not negative less skewed."""
    return features.clamp_min(0) ** power
