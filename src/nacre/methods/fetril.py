"""Feature translation: old classes are new features moved to their means (Petit et al., WACV 2023, eq. 1)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.methods.shared import base_fit, joined_means, stage_features
from nacre.models.model import Model, build_model
from nacre.models.readouts import Affine
from nacre.seeds import derive
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Adjust, Phase, Work


@dataclass(frozen=True, kw_only=True)
class FeTrIL(Method):
    """After the first stage the backbone is frozen; a linear support vector classifier learns from real and moved features.

    Means are of features that were brought to length one first, and what was moved is brought there again.
    """

    family = "no exemplars"
    paper = "Petit et al., WACV 2023"
    by_class = ("count", "mean")

    strength: float = 1.0
    """C of the classifier, above 0."""

    def build(self, spec: ImageSpec) -> Model:
        """With an affine readout of features of length one."""
        return build_model(self.backbone, self.head, spec, readout=partial(Affine, unit=True))

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Base training in the first stage; then the classifier."""
        yield from base_fit(self, knowledge, stage)
        yield Adjust("classifier", self.classify)

    def classify(self, work: Work) -> None:
        """Fit the classifier, and remember the means of the classes at hand."""
        k, (found, labels) = work.knowledge, stage_features(work)
        found = F.normalize(found)
        means, there = joined_means(k, found, labels, work.stage.seen).mean.to(found), labels.unique()
        absent = [label for label in range(work.stage.seen) if label not in there.tolist()]
        moved = [F.normalize(translated(found, labels, means, label, there)) for label in absent]
        x = torch.cat([found, *(features for features in moved)])
        y = torch.cat([labels, *(torch.full((len(part),), label, device=labels.device) for part, label in zip(moved, absent, strict=True))])
        readout = k.model.readout
        assert isinstance(readout, Affine)
        readout.learn(*support_vectors(x, y, self.strength, derive(work.seed, "support vectors", work.stage.index)))


def translated(found: Tensor, labels: Tensor, means: Tensor, label: int, there: Tensor) -> Tensor:
    """Features [m, D] of the class at hand that is nearest in direction, moved by the difference of the means."""
    nearest = there[F.cosine_similarity(means[there], means[label][None]).argmax()]
    return found[labels == nearest] - means[nearest] + means[label]


def support_vectors(x: Tensor, y: Tensor, strength: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows [K, D] and biases [K] of a linear classifier, one class against the rest."""
    from sklearn.svm import LinearSVC

    if len(y.unique()) == 1:
        return x.new_zeros(1, x.shape[1]), x.new_zeros(1)
    machine = LinearSVC(C=strength, random_state=seed % 2**32, dual=False).fit(x.cpu().numpy(), y.cpu().numpy())
    rows, bias = torch.from_numpy(machine.coef_), torch.from_numpy(machine.intercept_)
    if len(rows) == 1:  # two classes: one row says which
        rows, bias = torch.cat([-rows, rows]), torch.cat([-bias, bias])
    return rows, bias
