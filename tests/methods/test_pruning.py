"""DER's pruning: gates by hand, what is taken out, and that a pruned model lives on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conftest import FORMS, QUICK
from nacre import modelfile
from nacre.data.source import ImageSpec
from nacre.data.stream import Stream
from nacre.errors import NacreError
from nacre.losses.loss import Batch, Step
from nacre.losses.sparsity import UsedWeights
from nacre.methods.der import DER
from nacre.models.expandable import Expandable
from nacre.models.gated import gated, with_gates
from nacre.models.heads import Linear
from nacre.models.model import Model
from nacre.models.registry import backbone
from nacre.training.gradients import Sharpen
from nacre.training.learner import Learner
from nacre.training.runtime import Runtime

SPEC = ImageSpec((3, 8, 8))
METHOD = DER(backbone="resnet20", optim=replace(QUICK, lr=0.05, epochs=6), sparsity=5000.0)


def opened() -> Model:
    torch.manual_seed(0)
    model = Model(with_gates(backbone("resnet20", SPEC)), Linear(64), SPEC).eval()
    model.grow(2)
    for block in gated(model.backbone):
        block.resize(block.full, 1)
        block.sharpness.fill_(50.0)
    return model


def test_what_is_shut_is_taken_out_and_the_answer_stays() -> None:
    model, images = opened(), torch.randn(3, 3, 8, 8)
    plain = Model(backbone("resnet20", SPEC), Linear(64), SPEC)
    whole = sum(p.numel() for p in plain.backbone.parameters())
    for block in gated(model.backbone):
        block.gates[0].data[::2] = -1.0
        block.gates[0].data[1::4] = 0.01  # half open
    with torch.no_grad():
        want = model(images).features
        for block in gated(model.backbone):
            block.prune()
            assert block.size() == [block.full // 2, 0]
        torch.testing.assert_close(model(images).features, want, rtol=1e-4, atol=1e-5)
    left = sum(p.numel() for p in model.backbone.parameters())
    assert left < 0.52 * whole


def test_a_block_whose_gates_are_all_shut_keeps_its_widest_channel() -> None:
    model = opened()
    block = gated(model.backbone)[3]
    block.gates[0].data.fill_(-1.0)
    block.gates[0].data[5] = -0.5
    kernel = block.first.weight[5].clone()
    block.prune()
    assert block.size() == [1, 0]
    assert torch.equal(block.first.weight[0], kernel)


def test_a_block_that_opens_again_has_its_old_channels_first_and_all_of_them() -> None:
    model = opened()
    block = gated(model.backbone)[0]
    block.gates[0].data[3:] = -1.0
    block.prune()
    kept = block.first.weight.clone()
    block.resize(block.full, 1)
    assert block.size() == [16, 1]
    assert torch.equal(block.first.weight[:3], kept)


def test_the_share_of_weights_in_use_by_hand(stream: Stream) -> None:
    model = opened()
    step = Step(Batch(torch.zeros(1, 3, 8, 8), torch.tensor([0])), model(torch.zeros(1, 3, 8, 8)), None, model, stream[0], 0.0)
    assert float(UsedWeights()(step).detach()) == pytest.approx(1.0, abs=1e-4)
    used = total = 0.0
    for block in gated(model.backbone):
        shut = block.full // 4
        block.gates[0].data[:shut] = -1.0
        weights = block.first.in_channels + block.second.out_channels
        used, total = used + weights * (block.full - shut), total + weights * block.full
    assert float(UsedWeights()(step).detach()) == pytest.approx(used / total, abs=1e-4)


def test_gradients_of_gates_have_the_size_of_those_at_sharpness_one(stream: Stream, runtime: Runtime) -> None:
    model, block = opened(), None
    block = gated(model.backbone)[0]
    for sharpness in (0.2, 3.0):
        block.sharpness.fill_(sharpness)
        block.gates[0].data.fill_(0.4)
        step = Step(Batch(torch.zeros(1, 3, 8, 8), torch.tensor([0])), model(torch.zeros(1, 3, 8, 8)), None, model, stream[0], 0.75)
        (block.gates[0].grad,) = torch.autograd.grad(block.open().sum(), [block.gates[0]])
        sharpen = Sharpen(10.0, epochs=3)
        sharpen.before(step, runtime)
        value = torch.sigmoid(torch.tensor(0.4))
        torch.testing.assert_close(block.gates[0].grad, (value * (1 - value)).expand(16))
        sharpen.after(model)
        assert float(block.sharpness) == pytest.approx(0.1 + 9.9 * 0.25)


def test_a_pruned_model_is_smaller_saved_loaded_and_gone_on_with(stream: Stream, runtime: Runtime, tmp_path: Path) -> None:
    learner = Learner(METHOD, stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    trunk = learner.knowledge.model.backbone
    assert isinstance(trunk, Expandable)
    widths = [block.width for block in gated(trunk.branches[0])]
    assert sum(widths) < sum(block.full for block in gated(trunk.branches[0]))
    modelfile.save(tmp_path / "m.nacre", learner)
    back, _ = modelfile.load(tmp_path / "m.nacre", runtime)
    for one in (learner, back):
        one.learn(stream[1])
    first, second = learner.state(), back.state()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert [block.width for block in gated(trunk.branches[0])] == widths


def test_what_stands_under_the_contract_is_pruned_in_every_stage(stream: Stream, runtime: Runtime) -> None:
    method = replace(METHOD, optim=QUICK, **FORMS["der, pruned"])
    learner = Learner(method, stream.source.spec, runtime=runtime)
    for stage in stream:
        learner.learn(stage)
    trunk = learner.knowledge.model.backbone
    assert isinstance(trunk, Expandable)
    for branch in trunk.branches:
        assert 0 < sum(block.width for block in gated(branch)) < sum(block.full for block in gated(branch))


def test_a_net_without_residual_blocks_is_refused() -> None:
    with pytest.raises(NacreError, match="SmallNet has no residual block to prune"):
        DER(backbone="small", sparsity=1.0).build(SPEC)
