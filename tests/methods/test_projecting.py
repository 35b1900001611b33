"""What is peculiar to GPM, FOSTER and PASS: a projection that old inputs do not see, weights by hand, a student, turned labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nacre.data.stream import Stream
from nacre.losses.classification import BalancedCrossEntropy, Enhancement, effective_weights
from nacre.losses.distillation import BalancedDistillation
from nacre.losses.loss import Batch, Step
from nacre.losses.prototypes import FeatureDistance, PrototypeReplay, TurnedCrossEntropy
from nacre.methods.foster import FOSTER
from nacre.methods.gpm import GPM
from nacre.methods.pass_ import PASS
from nacre.models.expandable import Expandable, Widening
from nacre.models.heads import Turned
from nacre.models.output import Output
from nacre.models.spaces import convolutions, patches, widened
from nacre.training.inference import features
from nacre.training.learner import Learner
from nacre.training.method import Decoding
from nacre.training.optim import Optim
from nacre.training.phases import Fit, turned
from nacre.training.runtime import Runtime

QUICK = Optim(epochs=3, batch=16, lr=0.05)


def test_spaces_grow_by_the_fewest_directions_that_hold_their_share() -> None:
    draw = torch.Generator().manual_seed(1)
    directions = torch.linalg.qr(torch.randn(6, 6, generator=draw, dtype=torch.float64)).Q
    weights = torch.tensor([10.0, 5.0, 1.0, 0.1])
    inputs = directions[:, :4] * weights  # squared lengths 100, 25, 1, 0.01
    first = widened(None, inputs, 0.97)
    assert first.shape == (6, 2)  # 100 / 126.01 is too little, 125 / 126.01 is enough
    torch.testing.assert_close(first @ first.T, (directions[:, :2] @ directions[:, :2].T).float(), atol=1e-5, rtol=0)
    more = widened(first, torch.cat([inputs, 20 * directions[:, 4:5]], 1), 0.97)
    assert more.shape == (6, 3)  # the space held 125 already; the new direction alone brings 525 of 526.01
    torch.testing.assert_close(more.T @ more, torch.eye(3), atol=1e-5, rtol=0)
    assert (directions[:, 4].float() @ more).norm() == pytest.approx(1, abs=1e-5)
    assert widened(more, inputs, 0.97).shape == (6, 3)


def test_patches_are_what_a_convolution_multiplies() -> None:
    torch.manual_seed(0)
    layer, images = torch.nn.Conv2d(2, 3, 3, padding=1, stride=2, bias=False), torch.randn(4, 2, 6, 6)
    want = layer(images).transpose(0, 1).flatten(1)
    for most in (36, 20):
        columns = patches(layer, images, most, torch.Generator().manual_seed(3))
        there = torch.randperm(36, generator=torch.Generator().manual_seed(3))[:most]
        torch.testing.assert_close(layer.weight.flatten(1) @ columns, want[:, there], atol=1e-5, rtol=1e-5)


def test_projection_leaves_old_answers_where_they_were(stream: Stream, runtime: Runtime) -> None:
    exact = GPM(optim=QUICK, backbone="small", threshold=1.0 - 1e-9, samples=24, columns=4096)
    learner = Learner(exact, stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    model = learner.knowledge.model
    before = {name: layer.weight.detach().clone() for name, layer in convolutions(model).items()}
    held = {name: learner.knowledge.statistics[f"basis/{name}.weight"].clone() for name in before}
    old = features(model, stream[0].train, runtime)
    learner.learn(stream[1])
    model = learner.knowledge.model
    moved = 0.0
    for name, layer in convolutions(model).items():
        change = (layer.weight.detach() - before[name]).flatten(1)
        assert (change @ held[name]).norm() <= 1e-4 * max(1.0, float(change.norm()))
        moved += float(change.norm())
    # where inputs span a layer's whole space, nothing of it can move; somewhere there is room
    assert moved > 1e-3
    torch.testing.assert_close(features(model, stream[0].train, runtime), old, atol=2e-3, rtol=2e-3)


def test_a_wider_space_forgets_less(stream: Stream, runtime: Runtime) -> None:
    drift = []
    for threshold in (0.05, 0.999):
        learner = Learner(GPM(optim=QUICK, backbone="small", threshold=threshold), stream.source.spec, runtime=runtime)
        learner.learn(stream[0])
        old = features(learner.knowledge.model, stream[0].train, runtime)
        learner.learn(stream[1])
        drift.append(float((features(learner.knowledge.model, stream[0].train, runtime) - old).norm()))
    assert drift[1] < drift[0] / 2


def test_gpm_has_no_space_for_the_head_whose_old_rows_rest(stream: Stream, runtime: Runtime) -> None:
    learner = Learner(GPM(optim=QUICK, backbone="small"), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    assert not [name for name in learner.knowledge.statistics if name.startswith("basis/head")]
    before = [parameter.detach().clone() for parameter in learner.knowledge.model.head.parameters()]
    learner.learn(stream[1])
    for parameter, old in zip(learner.knowledge.model.head.parameters(), before, strict=True):
        assert torch.equal(parameter[:2], old)


def test_foster_terms_by_hand(stream: Stream, runtime: Runtime) -> None:
    weights = effective_weights(torch.tensor([1, 10, 100]), 0.9)
    raw = np.array([0.1 / (1 - 0.9**n) for n in (1, 10, 100)])
    np.testing.assert_allclose(weights.numpy(), raw / raw.mean(), rtol=1e-6)
    learner = Learner(FOSTER(optim=QUICK, backbone="small"), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    model = learner.knowledge.model
    assert isinstance(model.head, Widening)
    draw = torch.Generator().manual_seed(2)
    logits, old = torch.randn(4, 3, generator=draw), torch.randn(4, 3, generator=draw)
    labels = torch.tensor([0, 2, 1, 2])
    step = Step(
        Batch(torch.empty(4, 3, 8, 8), labels), Output((), torch.empty(0), logits), Output((), torch.empty(0), old), model, stream[1], 0.0
    )
    scaled = logits.numpy() / weights.numpy()
    want = np.mean([np.log(np.exp(row).sum()) - row[y] for row, y in zip(scaled, labels.tolist(), strict=True)])
    assert float(BalancedCrossEntropy(weights)(step)) == pytest.approx(want, rel=1e-5)
    target = np.exp(old.numpy() / 2) * weights.numpy()  # the softmax's own divisor cancels
    target /= target.sum(1, keepdims=True)
    logs = logits.numpy() / 2 - np.log(np.exp(logits.numpy() / 2).sum(1, keepdims=True))
    assert float(BalancedDistillation(weights, 2.0)(step)) == pytest.approx(-(target * logs).sum(1).mean(), rel=1e-5)


def test_foster_carries_one_network_and_its_second_answers_for_all_classes(
    stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    call = Enhancement.__call__

    def spied(self: Enhancement, step: Step) -> torch.Tensor:
        trunk, head = step.model.backbone, step.model.head
        assert isinstance(trunk, Expandable)
        assert isinstance(head, Widening)
        own = F.linear(step.out.features[:, trunk.width :], head.auxiliary.weight, head.auxiliary.bias)
        found = call(self, step)
        torch.testing.assert_close(found, F.cross_entropy(own, step.batch.labels))
        checked.append(len(trunk.branches))
        return found

    monkeypatch.setattr(Enhancement, "__call__", spied)
    learner = Learner(FOSTER(optim=QUICK, backbone="small"), stream.source.spec, runtime=runtime)
    sizes = []
    for stage in stream:
        learner.learn(stage)
        trunk = learner.knowledge.model.backbone
        assert isinstance(trunk, Expandable)
        sizes.append((len(trunk.branches), trunk.dim, sum(parameter.numel() for parameter in trunk.parameters())))
    assert len(set(sizes)) == 1
    assert set(checked) == {2}
    assert sizes[0][0] == 1


def test_fosters_student_begins_as_the_old_network_and_learns_from_both_branches(
    stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Fit, dict[str, torch.Tensor]]] = []
    run = Fit.run

    def spied(self: Fit, work: Any) -> None:
        seen.append((self, {name: value.clone() for name, value in self.model.state_dict().items() if isinstance(value, torch.Tensor)}))
        run(self, work)

    learner = Learner(FOSTER(optim=QUICK, backbone="small", distillation=0.7), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    old = {name: value.clone() for name, value in learner.knowledge.model.state_dict().items() if isinstance(value, torch.Tensor)}
    monkeypatch.setattr(Fit, "run", spied)
    learner.learn(stream[1])
    (boosting, _), (pressing, start) = seen
    weights = {name: boosting.loss.weight(name) for name in ("classification", "enhancement", "distillation")}
    assert weights == {"classification": 1.0, "enhancement": 1.0, "distillation": 0.7}
    branch = [name for name in old if name.startswith("backbone.")]
    assert branch
    assert all(torch.equal(start[name], old[name]) for name in branch)
    teacher, images = pressing.teacher, learner.knowledge.model.normalise(runtime.images(stream[1].train.pixels()[:4]))
    assert teacher is not None
    assert isinstance(teacher.backbone, Expandable)
    assert len(teacher.backbone.branches) == 2
    torch.testing.assert_close(teacher(images).logits, boosting.model.eval()(images).logits)
    assert learner.knowledge.model is pressing.model
    assert pressing.loss.weight("classification") == 1.0


def test_turned_images_and_labels_go_together(stream: Stream) -> None:
    images = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).float()
    batch = turned(Batch(images, torch.tensor([3, 1])))
    assert batch.images.shape == (8, 3, 4, 4)
    np.testing.assert_array_equal(batch.images[4:6].numpy(), np.rot90(images.numpy(), 2, (2, 3)))
    assert batch.labels.tolist() == [3, 1] * 4
    assert torch.equal(batch.images[:2], images)


def test_pass_terms_by_hand(stream: Stream, runtime: Runtime) -> None:
    learner = Learner(PASS(optim=QUICK, later=None, backbone="small"), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    model = learner.knowledge.model
    head, k = model.head, learner.knowledge
    assert isinstance(head, Turned)
    assert head.rows.weight.shape[0] == 8
    found = features(model, stream[0].train, runtime)
    labels = stream[0].train.labels
    torch.testing.assert_close(k.statistics["prototypes"], torch.stack([found[labels == c].mean(0) for c in (0, 1)]), atol=1e-5, rtol=1e-4)
    spread = np.mean([found[labels == c].numpy().var(0).mean() for c in (0, 1)])
    assert float(k.statistics["radius"]) == pytest.approx(np.sqrt(spread), rel=1e-4)

    x = torch.randn(8, found.shape[1], generator=torch.Generator().manual_seed(1))
    y = torch.tensor([1, 0] * 4)
    out = Output((), x, head(x))
    step = Step(Batch(torch.empty(8, 3, 8, 8), y), out, Output((), x + 1, head(x)), model, stream[0], 0.5)
    every = (x.numpy() @ head.rows.weight.detach().numpy().T + head.rows.bias.detach().numpy()) / 0.1
    want = np.mean([np.log(np.exp(every[i] - every[i].max()).sum()) + every[i].max() - every[i][4 * int(y[i]) + i // 2] for i in range(8)])
    assert float(TurnedCrossEntropy(0.1)(step)) == pytest.approx(want, rel=1e-4)
    assert float(FeatureDistance()(step)) == pytest.approx(np.sqrt(found.shape[1]), rel=1e-5)
    torch.testing.assert_close(head(x), head.every(x)[:, [0, 4]])

    still = PrototypeReplay(k.statistics["prototypes"], torch.zeros(()), 0.1, 7)
    logits = head.every(k.statistics["prototypes"]).detach() / 0.1
    each = F.cross_entropy(logits, torch.tensor([0, 4]), reduction="none")
    value = float(still(step))
    assert any(value == pytest.approx(float(each[0] * (1 - s) + each[1] * s), rel=1e-4) for s in (0, 0.5, 1))
    noisy = PrototypeReplay(k.statistics["prototypes"], torch.tensor(0.5), 0.1, 7)
    assert float(noisy(step)) == float(noisy(step))  # the step's place decides, nothing else
    assert float(noisy(step)) != float(noisy(Step(step.batch, out, step.old, model, stream[0], 0.25)))

    drawn: list[torch.Tensor] = []
    every_turn = head.every
    head.every = lambda features: (drawn.append(features), every_turn(features))[1]  # type: ignore[method-assign]
    one = PrototypeReplay(k.statistics["prototypes"][:1], torch.tensor(0.5), 0.1, 7)
    for place in range(100):
        one(Step(step.batch, out, step.old, model, stream[0], place / 100))
    noise = torch.cat(drawn) - k.statistics["prototypes"][:1]
    assert float(noise.std()) == pytest.approx(0.5, rel=0.03)  # the radius, and not its square
    assert float(noise.mean()) == pytest.approx(0, abs=0.02)
    fit = next(iter(PASS(backbone="small").phases(k, stream[1])))
    assert isinstance(fit, Fit)
    assert [fit.loss.weight(term) for term in ("classification", "distillation", "prototypes")] == [1, 10, 10]


def test_foster_teaches_the_decoder_of_the_branch_that_stays(stream: Stream, runtime: Runtime) -> None:
    method = FOSTER(optim=QUICK, backbone="small", decoding=Decoding(weight=1.0))
    learner = Learner(method, stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    decoded = {row["phase"]: "reconstruction" in row for row in learner.learn(stream[1]).rows}
    assert decoded == {1: True, 2: True}  # boosting and compression
