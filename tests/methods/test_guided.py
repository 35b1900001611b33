"""TagFex: contrasts, attention and guidance by hand, and what learns from what."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import QUICK
from nacre.data.stream import Stream
from nacre.losses.contrast import Contrast, PredictedContrast, Transfer, contrast
from nacre.losses.loss import Batch, Step
from nacre.methods.tagfex import TagFex
from nacre.models.guided import Guided, Merge
from nacre.models.model import Model
from nacre.models.output import Output
from nacre.training.learner import Learner
from nacre.training.phases import Fit
from nacre.training.runtime import Runtime

METHOD = TagFex(backbone="small", optim=QUICK)


@pytest.fixture
def grown(stream: Stream, runtime: Runtime) -> Learner:
    """After one stage, with room for the next."""
    learner = Learner(METHOD, stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    METHOD.grow(learner.knowledge, stream[1])
    return learner


def parts(learner: Learner) -> tuple[Model, Guided]:
    model = learner.knowledge.model
    assert isinstance(model.backbone, Guided)
    return model, model.backbone


def step_of(model: Model, stream: Stream) -> Step:
    model.train()
    images = torch.randn(8, 3, 8, 8)
    return Step(Batch(images, torch.tensor([2, 3, 0, 2] * 2)), model(images), None, model, stream[1], 0.0)


def test_the_contrast_by_hand() -> None:
    torch.manual_seed(0)
    queries, keys, total = torch.randn(6, 4).double(), torch.randn(6, 4).double(), 0.0
    a, b = (x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True) for x in (queries, keys))
    for i in range(6):
        scores = {j: math.exp(a[i] @ b[j] / 0.2) for j in range(6) if j != i}
        total -= math.log(scores[(i + 3) % 6] / sum(scores.values())) / 6
    assert float(contrast(queries, keys, 0.2)) == pytest.approx(total)


def test_two_equal_views_far_from_all_others_cost_nothing() -> None:
    apart = torch.eye(5).repeat(2, 1)
    assert float(contrast(apart, apart, 0.01)) == pytest.approx(0, abs=1e-6)


def test_attention_looks_at_both_maps_by_hand() -> None:
    torch.manual_seed(1)
    merge, own, guide = Merge(16), torch.randn(2, 16, 2, 3), torch.randn(2, 16, 2, 3)
    merge.resize(4)

    def normed(x: Tensor) -> Tensor:
        rows = x.flatten(2).transpose(1, 2)
        return (rows - rows.mean(-1, keepdim=True)) / (rows.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()

    x, y = normed(own), normed(guide)
    weight = {name: merge.parts[name].weight for name in ("query", "key", "value", "guide_key", "guide_value")}
    gathered = []
    for head in range(8):
        lanes = slice(2 * head, 2 * head + 2)
        query = (x @ weight["query"].T)[..., lanes]
        own_scores, guide_scores = query @ (x @ weight["key"].T)[..., lanes].mT, query @ (y @ weight["guide_key"].T)[..., lanes].mT
        shares = (torch.cat([own_scores, guide_scores], -1) / math.sqrt(2)).softmax(-1)  # over the positions of both
        seen = shares[..., :6] @ (x @ weight["value"].T)[..., lanes] + shares[..., 6:] @ (y @ weight["guide_value"].T)[..., lanes]
        gathered.append(seen)
    torch.testing.assert_close(merge(own, guide), merge.parts["classifier"](torch.cat(gathered, -1).mean(1)), rtol=1e-4, atol=1e-5)


def test_a_new_branch_begins_between_the_last_one_and_the_agnostic_net(grown: Learner) -> None:
    _, trunk = parts(grown)
    old, new = (dict(branch.named_parameters()) for branch in trunk.specific.branches)
    for name, guide in trunk.agnostic.named_parameters():
        torch.testing.assert_close(new[name], 0.95 * old[name] + 0.05 * guide)


def gradients(model: Model, loss: Tensor) -> set[str]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, [p for p in parameters if p.requires_grad], allow_unused=True)
    learning = [name for name, p in zip(names, parameters, strict=True) if p.requires_grad]
    return {".".join(name.split(".")[:4]) for name, g in zip(learning, found, strict=True) if g is not None and bool(g.any())}


def test_what_learns_from_which_term(grown: Learner, stream: Stream) -> None:
    model, trunk = parts(grown)
    step = step_of(model, stream)
    assert not any("specific" in name or "merge" in name for name in gradients(model, Contrast()(step)))
    step = step_of(model, stream)
    reached = gradients(model, Transfer()(step))
    assert not any("agnostic" in name or "branches.0" in name for name in reached)
    assert any("branches.1" in name for name in reached)
    assert any("merge" in name for name in reached)
    step = step_of(model, stream)
    before = Output((), torch.randn(8, 64), torch.zeros(8, 0))
    old = Step(step.batch, step.out, before, model, stream[1], 0.0)
    reached = gradients(model, PredictedContrast(trunk.projector)(old))
    assert any("agnostic" in name for name in reached)


def test_the_weights_of_the_terms(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[Any] = []
    run = Fit.run
    monkeypatch.setattr(Fit, "run", lambda self, work: (losses.append(self.loss), run(self, work))[1])
    learner = Learner(METHOD, stream.source.spec, runtime=runtime)
    for stage in stream[:3]:
        learner.learn(stage)
    names = ("classification", "contrast", "distillation", "auxiliary", "transfer")
    found = [[loss.weight(name) for name in names] for loss in losses]
    third = pytest.approx([1, 1 / 3, 2 * 2 / 3, 2, 1])
    assert found == [pytest.approx([1, 1, 0, 0, 0]), pytest.approx([1, 1 / 2, 2 * 1 / 2, 2, 1]), third]


def test_the_contrast_with_old_features_by_hand(grown: Learner, stream: Stream) -> None:
    model, trunk = parts(grown)
    step, before = step_of(model, stream), torch.randn(8, 64)
    old = Step(step.batch, step.out, Output((), before, torch.zeros(8, 0)), model, stream[1], 0.0)
    frozen = copy.deepcopy(trunk.projector)  # what the term holds still; the projector's batch norm moves as it is used
    with torch.no_grad():
        a, b = frozen(trunk.predictor(step.out.maps[0].mean((2, 3)))), frozen(before)
    a, b = (x.double().numpy() / np.linalg.norm(x.double().numpy(), axis=1, keepdims=True) for x in (a, b))
    want = 0.0
    for i in range(8):
        scores = {j: math.exp(a[i] @ b[j] / 0.2) for j in range(8) if j != i}
        want -= math.log(scores[(i + 4) % 8] / sum(scores.values())) / 8
    assert float(PredictedContrast(trunk.projector)(old)) == pytest.approx(want, rel=1e-4)


def test_the_transfer_by_hand(grown: Learner, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = parts(grown)
    step = step_of(model, stream)
    right = torch.tensor([0, 1, 0, 0] * 2)
    better = 4.0 * torch.nn.functional.one_hot(right, 2) + torch.linspace(0, 1, 8)[:, None] * torch.tensor([0.0, 1.0])
    monkeypatch.setattr("nacre.losses.contrast.merged", lambda step: better)
    z, m = step.out.logits.detach().double().numpy()[:, 2:], better.double().numpy()

    def log_softmax(x: Any) -> Any:
        return x - np.log(np.exp(x).sum(1, keepdims=True))

    new = [0, 1, 3, 4, 5, 7]  # labels 2, 3, 2, 2, 3, 2; the two of class 0 do not count
    own = -np.mean([log_softmax(m)[i, int(right[i])] for i in new])
    target, follower = log_softmax(m / 2), log_softmax(z / 2)
    gap = np.mean([(np.exp(target[i]) * (target[i] - follower[i])).sum() for i in new])
    assert float(Transfer(1.5)(step)) == pytest.approx(own + 1.5 * gap, rel=1e-4)


def test_the_branch_follows_only_what_answers_better(grown: Learner, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = parts(grown)
    step, right = step_of(model, stream), torch.tensor([0, 1, 0, 0] * 2)
    good = 9.0 * torch.nn.functional.one_hot(right, 2)
    for logits, follows in ((good, True), (-good, False)):
        monkeypatch.setattr("nacre.losses.contrast.merged", lambda step, logits=logits: logits)
        assert (float(Transfer(1.0)(step)) > float(Transfer(0.0)(step)) + 1e-3) is follows


def test_the_agnostic_net_serves_training_alone(grown: Learner, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    model, trunk = parts(grown)
    monkeypatch.setattr(trunk.agnostic, "forward", lambda images: pytest.fail("it ran"))
    model.eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 8, 8)).logits.shape == (1, 4)


def test_nothing_of_the_attention_outlives_its_stage(stream: Stream, runtime: Runtime) -> None:
    learner = Learner(METHOD, stream.source.spec, runtime=runtime)
    for stage in stream[:2]:
        learner.learn(stage)
    assert not [name for name in learner.state() if "merge" in name and not name.endswith("_extra_state")]
