"""SSRE: what stands beside the convolutions, and which samples count for what."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from conftest import QUICK
from nacre.data.source import ImageSpec
from nacre.data.stream import Stream
from nacre.errors import NacreError
from nacre.losses.loss import Batch, Step
from nacre.losses.prototypes import SelectedCrossEntropy, SelectedDistance
from nacre.methods.ssre import SSRE
from nacre.models.model import build_model
from nacre.models.output import Output
from nacre.models.registry import backbone
from nacre.models.sided import sides_of, with_sides
from nacre.training.learner import Learner
from nacre.training.phases import Adjust, Watch
from nacre.training.runtime import Runtime

SPEC = ImageSpec((3, 8, 8))


def test_an_open_side_changes_nothing_at_first_and_folding_it_changes_nothing_at_last() -> None:
    torch.manual_seed(0)
    for name in ("small", "resnet20", "resnet18-small"):
        net, images = backbone(name, SPEC).eval(), torch.randn(2, 3, 8, 8)
        want = net(images)[-1]
        with_sides(net)
        assert len(sides_of(net)) == {"small": 5, "resnet20": 19, "resnet18-small": 17}[name]
        for conv in sides_of(net):
            conv.resize(1)
        torch.testing.assert_close(net(images)[-1], want)
        for conv in sides_of(net):
            conv.side[0].weight.data.normal_(std=0.05)
        open_answer = net(images)[-1]
        assert not torch.allclose(open_answer, want)
        for conv in sides_of(net):
            conv.resize(0)
        torch.testing.assert_close(net(images)[-1], open_answer, rtol=1e-4, atol=1e-4)


def test_a_net_without_such_convolutions_is_refused() -> None:
    with pytest.raises(NacreError, match="ViT has no 3x3 convolution"):
        with_sides(backbone("vit-tiny", SPEC))


def test_only_sides_and_head_learn_after_the_first_stage(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner(SSRE(backbone="small", optim=QUICK), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    before = {name: tensor.clone() for name, tensor in learner.knowledge.model.backbone.state_dict().items() if not name.endswith("state")}
    moved: list[float] = []

    class Look(Watch):
        def epoch(self, row: object) -> None:
            now = learner.knowledge.model.backbone.state_dict()
            assert all(torch.equal(now[name], tensor) for name, tensor in before.items())
            moved.append(sum(float(conv.side[0].weight.detach().abs().sum()) for conv in sides_of(learner.knowledge.model.backbone)))

    learner.learn(stream[1], watch=Look())
    assert moved[-1] > moved[0] > 0
    after = learner.knowledge.model.backbone.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed == {name for name in before if name.endswith("weight") and before[name].ndim == 4}
    assert not any(len(conv.side) for conv in sides_of(learner.knowledge.model.backbone))


def test_a_sample_counts_for_distillation_by_its_likeness_and_for_classification_by_the_rest(stream: Stream) -> None:
    model = build_model("small", "linear", SPEC)
    means = torch.zeros(2, 64)
    means[:, 0], means[0, 1], means[1, 1] = 9.0, 1.0, -1.0  # all far from the origin, one to each side of their centre
    features = means.mean(0).repeat(3, 1)
    features[0, 1], features[1, 5] = 4.0, 3.0  # likeness 1 and 0
    features[2, 1], features[2, 6] = -3.0, 4.0  # 0.6 to the other mean
    logits, labels = torch.randn(3, 4), torch.tensor([2, 3, 2])
    out, old = Output((), features, logits), Output((), features + 2.0 * F.one_hot(torch.tensor([7, 8, 9]), 64), logits)
    step = Step(Batch(torch.zeros(3, 3, 8, 8), labels), out, old, model, stream[1], 0.0)
    own = -(logits / 0.5).log_softmax(1)[torch.arange(3), labels]
    torch.testing.assert_close(SelectedCrossEntropy(means, 0.5)(step), (own[1] + 0.4 * own[2]) / 3)
    torch.testing.assert_close(SelectedDistance(means)(step), torch.tensor((1 + 0 + 0.6) * 2.0 / 3))


def test_phases_are_fit_fold_means(stream: Stream, runtime: Runtime) -> None:
    learner = Learner(SSRE(backbone="small", optim=QUICK), stream.source.spec, runtime=runtime)
    names = [phase.name for phase in SSRE().phases(learner.knowledge, stream[0]) if isinstance(phase, Adjust)]
    assert names == ["fold", "prototypes"]
