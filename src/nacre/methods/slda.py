"""Streaming linear discriminant analysis on a frozen backbone (Hayes & Kanan, CVPR workshops 2020, eq. 1-5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from nacre.data.source import ImageSpec
from nacre.data.stream import Stage
from nacre.methods.shared import base_fit, joined_means, stage_features
from nacre.models.model import Model, build_model
from nacre.models.readouts import Affine
from nacre.training.knowledge import Knowledge
from nacre.training.method import Method
from nacre.training.phases import Adjust, Phase, Work


@dataclass(frozen=True, kw_only=True)
class SLDA(Method):
    """After the first stage nothing is trained: class means and one covariance of all classes give the answer.

    Statistics are joined a stage at a time, which gives the pooled covariance of all samples exactly; the paper's update
    image by image approaches it.
    """

    family = "no exemplars"
    paper = "Hayes & Kanan, CVPRW 2020"
    by_class = ("count", "mean")

    shrinkage: float = 1e-4
    """epsilon: share of the unit matrix in the covariance, in (0, 1)."""

    def build(self, spec: ImageSpec) -> Model:
        """With an affine readout."""
        return build_model(self.backbone, self.head, spec, readout=partial(Affine, unit=False))

    def phases(self, knowledge: Knowledge, stage: Stage) -> Iterator[Phase]:
        """Base training in the first stage; then one update."""
        yield from base_fit(self, knowledge, stage)
        yield Adjust("discriminant", self.update)

    def update(self, work: Work) -> None:
        """Join the stage's counts, means and scatter with the earlier, and solve."""
        k, (found, labels) = work.knowledge, stage_features(work)
        x, means = found.double(), joined_means(k, found, labels, work.stage.seen)
        (count, mean), joint = means.before, means.mean
        gap, centred, nothing = mean - joint, x - joint[labels], x.new_zeros(x.shape[1], x.shape[1])
        scatter = k.statistics.get("scatter", nothing) + (count[:, None] * gap).T @ gap + centred.T @ centred
        total = k.statistics.get("total", x.new_zeros(())) + len(x)  # of the scatter, which keeps what dropped classes gave
        k.statistics |= {"scatter": scatter, "total": total}
        covariance = scatter / (total - 1).clamp_min(1)
        eye = torch.eye(len(scatter)).to(scatter)
        rows = torch.linalg.solve((1 - self.shrinkage) * covariance + self.shrinkage * eye, joint.T).T
        readout = k.model.readout
        assert isinstance(readout, Affine)
        readout.learn(rows, -0.5 * (rows * joint).sum(1))
