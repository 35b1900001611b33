"""What is peculiar to DER and MEMO: what is frozen stays bit-equal, features are joined, the auxiliary head by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from nacre.data.source import ImageSpec
from nacre.data.stream import Stream
from nacre.losses.classification import Auxiliary
from nacre.losses.loss import Batch, Step
from nacre.methods.der import DER
from nacre.methods.memo import MEMO
from nacre.models.expandable import Expandable, Widening
from nacre.models.model import Model
from nacre.models.registry import backbone
from nacre.training.inference import features
from nacre.training.learner import Learner
from nacre.training.optim import Optim
from nacre.training.runtime import Runtime

QUICK = Optim(epochs=2, batch=16, lr=0.05)
SPEC = ImageSpec((3, 8, 8))


def parts(learner: Learner) -> tuple[Expandable, Widening]:
    trunk, head = learner.knowledge.model.backbone, learner.knowledge.model.head
    assert isinstance(trunk, Expandable)
    assert isinstance(head, Widening)
    return trunk, head


def state(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items() if isinstance(tensor, torch.Tensor)}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["small", "resnet20"])
def test_der_freezes_whole_branches_and_joins_their_features(name: str, stream: Stream, runtime: Runtime) -> None:
    learner = Learner(DER(optim=QUICK, backbone=name), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    first = state(parts(learner)[0].branches[0])
    before = features(learner.knowledge.model, stream[0].test, runtime)
    learner.learn(stream[1])
    trunk, head = parts(learner)
    assert same(state(trunk.branches[0]), first)  # running statistics too
    assert not same(state(trunk.branches[1]), first)
    found = features(learner.knowledge.model, stream[0].test, runtime)
    assert found.shape[1] == 2 * before.shape[1] == head.dim
    torch.testing.assert_close(found[:, : before.shape[1]], before)
    learner.learn(stream[2])
    trunk, head = parts(learner)
    assert same(state(trunk.branches[0]), first)
    assert [len(trunk.branches), head.rows.weight.shape[0], head.auxiliary.weight.shape[0]] == [3, 6, 3]


def test_a_new_branch_begins_as_the_one_before_and_old_weights_stay() -> None:
    torch.manual_seed(0)
    trunk = Expandable(backbone("small", SPEC))
    head = Widening(trunk.dim)
    head.resize(2)
    old = head.rows.weight.detach().clone()
    trunk.resize(2)
    head.resize(4, trunk.dim, 3, trunk.width)
    assert same(state(trunk.branches[0]), state(trunk.branches[1]))
    assert torch.equal(head.rows.weight[:2, :64], old)
    assert head.rows.weight.shape == (4, 128)
    assert [p.requires_grad for p in trunk.branches[0].parameters()] == [False] * len(list(trunk.branches[0].parameters()))
    assert all(p.requires_grad for p in trunk.branches[1].parameters())


@pytest.mark.parametrize("learns", [True, False])
def test_memo_grows_its_deepest_part_only(stream: Stream, runtime: Runtime, learns: bool) -> None:
    learner = Learner(MEMO(optim=QUICK, backbone="resnet20", trunk_learns=learns), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    trunk, _ = parts(learner)
    shallow, deep, whole = state(trunk.trunk), dict(trunk.branches[0].named_parameters()), sum(p.numel() for p in trunk.parameters())
    deep = {name: parameter.detach().clone() for name, parameter in deep.items()}
    learner.learn(stream[1])
    trunk, _ = parts(learner)
    assert same(state(trunk.trunk), shallow) != learns
    assert all(torch.equal(parameter, deep[name]) for name, parameter in trunk.branches[0].named_parameters())
    trunk.eval()
    below = images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    for part in trunk.trunk:
        below = part(below)
    assert torch.equal(trunk(images)[-1], torch.cat([trunk.branches[0](below)[-1], trunk.branches[1](below)[-1]], 1))
    more = sum(p.numel() for p in trunk.parameters()) - whole
    assert more == sum(p.numel() for p in trunk.branches[0].parameters()) < whole


def test_the_auxiliary_loss_by_hand(stream: Stream) -> None:
    torch.manual_seed(0)
    trunk = Expandable(backbone("small", SPEC))
    model = Model(trunk, Widening(trunk.dim), SPEC)
    model.grow(2)
    trunk.resize(2)
    assert isinstance(model.head, Widening)
    model.head.resize(4, trunk.dim, 3, trunk.width)
    batch = Batch(torch.randn(4, 3, 8, 8), torch.tensor([0, 2, 3, 1]))
    out = model(batch.images)
    step = Step(batch, out, None, model, stream[1], 0.0)
    rows = model.head.auxiliary
    z: Any = (out.features[:, 64:] @ rows.weight.T + (rows.bias if rows.bias is not None else 0)).detach().double().numpy()
    want = np.mean([np.log(np.exp(z[i]).sum()) - z[i, y] for i, y in enumerate([0, 1, 2, 0])])  # both known classes are one
    assert float(Auxiliary()(step)) == pytest.approx(want, rel=1e-4)


def test_a_grown_network_loads_into_a_fresh_one(stream: Stream, runtime: Runtime) -> None:
    learner = Learner(MEMO(optim=QUICK, backbone="small"), stream.source.spec, runtime=runtime)
    for stage in stream:
        learner.learn(stage)
    fresh = MEMO(backbone="small").build(stream.source.spec)
    fresh.load_state_dict(learner.knowledge.model.state_dict())
    images = torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(fresh.eval()(images).logits, learner.knowledge.model.eval()(images).logits)
