"""What is peculiar to EWC, MAS, SI, A-GEM: importance by brute force, springs that add up, gradients that do not conflict."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nacre.data.memory import NOTHING, Budget, PerClass
from nacre.data.source import ImageSpec
from nacre.data.stream import Stream
from nacre.losses.importance import Elastic, importance, log_likelihood, squared_length
from nacre.losses.loss import Batch, Step
from nacre.losses.per_sample import anchored
from nacre.methods.agem import AGEM
from nacre.methods.ewc import EWC
from nacre.methods.mas import MAS
from nacre.methods.si import SI
from nacre.models.model import Model, build_model
from nacre.training.gradients import NoConflict
from nacre.training.knowledge import below
from nacre.training.learner import Learner
from nacre.training.optim import Optim
from nacre.training.phases import Fit
from nacre.training.runtime import Hardware, Runtime

QUICK = Optim(epochs=1, batch=16, lr=0.05, schedule="constant", momentum=0, weight_decay=0)


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    model = build_model("small", "linear", ImageSpec((3, 8, 8)))
    model.grow(4)
    model(torch.randn(32, 3, 8, 8))  # running statistics that are not the initial ones
    return model.eval()


def brute(model: Model, images: Tensor, outcome: Any, power: int) -> dict[str, Tensor]:
    """Image by image, by plain autograd."""
    total = {name: torch.zeros_like(parameter) for name, parameter in anchored(model)}
    for number, image in enumerate(images):
        logits = model(image[None]).logits[0]
        gradients = torch.autograd.grad(outcome(number, logits), [parameter for _, parameter in anchored(model)])
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += gradient.abs() ** power
    return total


def test_fisher_information_is_that_of_labels_drawn_from_the_model(model: Model) -> None:
    draw = torch.Generator().manual_seed(1)
    images, uniform = torch.randn(7, 3, 8, 8, generator=draw), torch.rand(7, generator=draw)
    drawn = []

    def outcome(number: int, logits: Tensor) -> Tensor:
        edges = logits.softmax(0).cumsum(0).tolist()
        drawn.append(next(label for label, edge in enumerate(edges) if uniform[number] <= edge))
        return logits.log_softmax(0)[drawn[-1]]

    want = brute(model, images, outcome, 2)
    found = importance(model, images, uniform, log_likelihood, 2)
    assert found.keys() == want.keys()
    for name, tensor in want.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-7)
    assert len(set(drawn)) > 1


def test_labels_are_drawn_with_the_models_probabilities() -> None:
    logits = torch.tensor([1.0, 0.0, 2.0])
    uniform = (torch.arange(3000) + 0.5) / 3000
    gradients = torch.func.vmap(torch.func.grad(log_likelihood), in_dims=(None, 0))(logits, uniform)
    assert gradients.mean(0).abs().max() < 2e-3  # the score's mean is zero under the model's own distribution
    chosen = (gradients > 0).float().mean(0)
    torch.testing.assert_close(chosen, logits.softmax(0), atol=2e-3, rtol=0)


def test_sensitivity_of_the_answers_length(model: Model) -> None:
    images = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    want = brute(model, images, lambda _, logits: (logits**2).sum(), 1)
    for name, tensor in importance(model, images, torch.zeros(5), squared_length, 1).items():
        torch.testing.assert_close(tensor, want[name], rtol=1e-3, atol=1e-6)


def learner_of(method: Any, stream: Stream, runtime: Runtime, stages: int, memory: Budget | None = None) -> Learner:
    learner = Learner(method, stream.source.spec, runtime=runtime, memory=memory)
    for stage in stream[:stages]:
        learner.learn(stage)
    return learner


def noting(monkeypatch: pytest.MonkeyPatch, name: str, page: str = "ewc") -> list[Any]:
    """What a function that a method's page calls gives, call by call."""
    calls: list[Any] = []
    real = getattr(import_module(f"nacre.methods.{page}"), name)

    def noted(*arguments: Any) -> Any:
        calls.append(real(*arguments))
        return calls[-1]

    monkeypatch.setattr(f"nacre.methods.{page}.{name}", noted)
    return calls


def test_one_spring_is_the_sum_of_all_stages(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    fishers, ends = noting(monkeypatch, "importance_of"), noting(monkeypatch, "places")
    learner = learner_of(EWC(optim=QUICK, backbone="small", limit=1e9), stream, runtime, 3)
    model, statistics = learner.knowledge.model, learner.knowledge.statistics
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    here = dict(anchored(model))
    want = {name: torch.zeros_like(parameter) for name, parameter in here.items()}
    for fisher, end in zip(fishers, ends, strict=True):
        for name, stiff in fisher.items():
            part = tuple(slice(size) for size in stiff.shape)
            want[name][part] += 2 * stiff * (here[name].detach()[part] - end[name])
    for name, pull in Elastic(below("importance", statistics), below("anchor", statistics)).pull(model).items():
        torch.testing.assert_close(pull, want[name], rtol=1e-3, atol=1e-6)
    assert len(fishers) == 3


@pytest.mark.parametrize(("memory", "compete"), [(NOTHING, slice(2, 4)), (PerClass(5), slice(0, 4))], ids=["no exemplars", "exemplars"])
def test_labels_are_drawn_from_the_classes_that_compete(
    memory: Budget, compete: slice, stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    fishers = noting(monkeypatch, "importance_of")
    learner_of(EWC(optim=QUICK, backbone="small"), stream, runtime, 2, memory)
    rows = fishers[1]["head.rows.weight"].flatten(1).sum(1)  # a class that cannot be drawn and does not compete has no gradient
    assert (rows > 0).nonzero().flatten().tolist() == list(range(4))[compete]


def test_the_online_spring_rests_at_the_last_stages_end(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    fishers = noting(monkeypatch, "importance_of")
    learner = learner_of(EWC(optim=QUICK, backbone="small", limit=1e9, online=True, decay=0.5), stream, runtime, 2)
    statistics = learner.knowledge.statistics
    name = "backbone.stages.0.0.0.weight"
    assert torch.equal(statistics[f"anchor/{name}"], dict(anchored(learner.knowledge.model))[name])
    torch.testing.assert_close(statistics[f"importance/{name}"], 0.5 * fishers[0][name] + fishers[1][name])


def test_importance_is_found_in_the_runs_precision_and_layout(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def noted(model: Model, images: Tensor, *rest: Any) -> dict[str, Tensor]:
        seen.append((torch.is_autocast_enabled("cpu"), images.is_contiguous(memory_format=torch.channels_last)))
        return importance(model, images, *rest)

    monkeypatch.setattr("nacre.methods.shared.importance", noted)
    for precision, layout in (("bf16", "channels-last"), ("fp32", "contiguous")):
        runtime = Runtime(Hardware(device="cpu", precision=precision, layout=layout))  # type: ignore[arg-type]
        learner_of(MAS(optim=QUICK, backbone="small"), stream, runtime, 1)
        assert set(seen) == {(precision == "bf16", layout == "channels-last")}
        seen.clear()


def test_the_importance_of_mas_fades_by_its_share_and_rests_at_the_last_stages_end(
    stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = noting(monkeypatch, "importance_of", "mas")
    learner = learner_of(MAS(optim=QUICK, backbone="small", share=0.25), stream, runtime, 3)
    kept, anchors = (below(kind, learner.knowledge.statistics) for kind in ("importance", "anchor"))
    for name, here in anchored(learner.knowledge.model):
        first, second, third = (torch.zeros_like(here) for _ in range(3))
        for whole, stage in zip((first, second, third), found, strict=True):
            whole[tuple(slice(size) for size in stage[name].shape)] = stage[name]  # the head had fewer rows
        torch.testing.assert_close(kept[name], 0.25 * (0.25 * 0.75 * first + 0.75 * second) + 0.75 * third)
        assert torch.equal(anchors[name], here)


def test_a_stiff_spring_holds_what_a_loose_one_lets_go(stream: Stream, runtime: Runtime) -> None:
    def moved(strength: float) -> float:
        learner = Learner(MAS(optim=QUICK, backbone="small", strength=strength), stream.source.spec, runtime=runtime)
        learner.learn(stream[0])
        before = {name: parameter.detach().clone() for name, parameter in anchored(learner.knowledge.model)}
        weights = below("importance", learner.knowledge.statistics)
        learner.learn(stream[1])
        here = dict(anchored(learner.knowledge.model))
        return float(sum((weights[n] * (here[n][: len(b)] if b.dim() else here[n]).sub(b).square()).sum() for n, b in before.items()))

    assert moved(5000.0) < 0.8 * moved(0.0)


def test_no_spring_of_mas_throws_weights_about(stream: Stream, runtime: Runtime) -> None:
    # the stiffest that counts brings a weight to rest in one step of plain descent, so that only the last step's move is left
    learner = Learner(MAS(optim=QUICK, backbone="small", strength=1e8), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    weights, anchors = (below(kind, learner.knowledge.statistics) for kind in ("importance", "anchor"))
    learner.learn(stream[1])
    here = dict(anchored(learner.knowledge.model))
    held = {name: weights[name] > 1 / (2 * 1e8 * QUICK.lr) for name in anchors}
    moves = torch.cat([(here[n][: len(anchors[n])] - anchors[n])[held[n]].abs() for n in anchors])
    assert len(moves) > 1000
    assert float(moves.max()) < 10 * QUICK.lr  # as far as a gradient of 10 moves it
    assert float(moves.median()) < 0.1 * QUICK.lr


def test_the_elastic_terms_pull_is_its_gradient(model: Model, stream: Stream) -> None:
    weights = {name: torch.rand_like(parameter) for name, parameter in anchored(model)}
    anchors = {name: parameter.detach() + 0.1 for name, parameter in anchored(model)}
    term = Elastic(weights, anchors)
    model.grow(6)
    batch = Batch(torch.randn(2, 3, 8, 8), torch.tensor([0, 1]))
    value = term(Step(batch, model(batch.images), None, model, stream[0], 0.0))
    assert float(value) == pytest.approx(float(sum((w * 0.01).sum() for w in weights.values())), rel=1e-4)
    gradients = torch.autograd.grad(value, [p for _, p in anchored(model)])
    for (name, pull), gradient in zip(term.pull(model).items(), gradients, strict=True):
        torch.testing.assert_close(pull, gradient, msg=name)


def test_the_path_adds_up_to_the_fall_of_the_loss(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    # small steps of plain descent: minus gradient times step is how far the loss fell
    slow = Optim(epochs=30, batch=64, lr=0.002, schedule="constant", momentum=0, weight_decay=0)
    paths: list[dict[str, Tensor]] = []
    fit = Fit.run

    def spied(self: Fit, work: Any) -> None:
        fit(self, work)
        if self.gradient is not None:
            paths.append(self.gradient.lengths())  # type: ignore[operator]

    monkeypatch.setattr(Fit, "run", spied)
    plain = type(stream.source)(stream.source.train, stream.source.test, stream.source.classes)  # no augmentation: one loss
    learner = Learner(SI(optim=slow, backbone="small"), plain.spec, runtime=runtime)
    journal = learner.learn(Stream(plain, [2, 2, 2], seed=0)[0])
    fell = float(journal.rows[0]["classification"]) - float(journal.rows[-1]["classification"])
    total = float(sum(path.sum() for path in paths[0].values()))
    assert fell > 0.05
    assert total == pytest.approx(fell, rel=0.15)


def test_the_spring_of_si_is_path_over_distance(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    paths: list[dict[str, Tensor]] = []
    starts: list[dict[str, Tensor]] = []
    fit = Fit.run

    def spied(self: Fit, work: Any) -> None:
        starts.append({name: parameter.detach().clone() for name, parameter in anchored(self.model)})
        fit(self, work)
        paths.append({name: value.clone() for name, value in self.gradient.lengths().items()})  # type: ignore[union-attr, operator]

    monkeypatch.setattr(Fit, "run", spied)
    learner = learner_of(SI(optim=QUICK, backbone="small", damping=0.3), stream, runtime, 1)
    for name, end in anchored(learner.knowledge.model):
        want = paths[0][name].clamp_min(0) / ((end.detach() - starts[0][name]) ** 2 + 0.3)
        torch.testing.assert_close(learner.knowledge.statistics[f"importance/{name}"], want)


def test_si_cuts_the_sum_over_stages_at_zero_not_each_stage(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    decaying = replace(QUICK, epochs=4, weight_decay=0.5)  # under plain descent every path would be positive
    found: list[dict[str, Tensor]] = []
    fit = Fit.run

    def spied(self: Fit, work: Any) -> None:
        start = {name: parameter.detach().clone() for name, parameter in anchored(self.model)}
        fit(self, work)
        paths = self.gradient.lengths()  # type: ignore[union-attr, operator]
        found.append({name: paths[name] / ((end.detach() - start[name]) ** 2 + 0.1) for name, end in anchored(self.model)})

    monkeypatch.setattr(Fit, "run", spied)
    learner = learner_of(SI(optim=decaying, backbone="small"), stream, runtime, 2)
    lowered = 0
    for name, second in found[1].items():
        if name.startswith("backbone."):
            first = found[0][name].clamp_min(0)
            torch.testing.assert_close(learner.knowledge.statistics[f"importance/{name}"], (first + second).clamp_min(0))
            lowered += int(((second < 0) & (first > 0)).sum())
    assert lowered > 100  # a stage that raised the loss takes stiffness away


@pytest.mark.parametrize(("online", "weight"), [(False, 50.0), (True, 25.0)])
def test_the_online_penalty_fades_as_its_stiffness_does(
    stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, online: bool, weight: float
) -> None:
    weights: list[float] = []
    fit = Fit.run
    monkeypatch.setattr(Fit, "run", lambda self, work: (weights.append(self.loss.weight("elastic")), fit(self, work))[1])
    learner_of(EWC(optim=QUICK, backbone="small", strength=100.0, online=online, decay=0.5), stream, runtime, 2)
    assert weights == [0.0, weight]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_gradient_that_conflicts_loses_that_part_and_no_other(model: Model, stream: Stream, runtime: Runtime, sign: float) -> None:
    model.train()
    remembered = Batch(torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 2, 3, 0, 1]))
    batch = Batch(torch.randn(6, 3, 8, 8), torch.tensor([0, 0, 1, 1, 2, 2])).beside(remembered)
    parameters = list(model.backbone.parameters()) + list(model.head.parameters())
    reference = torch.autograd.grad(F.cross_entropy(model(remembered.images).logits, remembered.labels), parameters)
    before = [sign * r + 0.1 * torch.randn_like(r) for r in reference]
    for parameter, gradient in zip(parameters, before, strict=True):
        parameter.grad = gradient.clone()
    NoConflict().before(Step(batch, model(batch.images), None, model, stream[0], 0.0), runtime)
    r = torch.cat([t.flatten() for t in reference])
    old, new = torch.cat([t.flatten() for t in before]), torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    assert (float(old @ r) > 0) == (sign > 0)
    if sign > 0:
        assert torch.equal(old, new)
    else:
        assert float((new @ r).abs()) < 1e-4 * float(r @ r)
        torch.testing.assert_close(new, old - (old @ r) / (r @ r) * r, rtol=1e-3, atol=1e-6)


def test_agem_trains_on_new_images_alone(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Batch] = []
    before = NoConflict.before
    monkeypatch.setattr(NoConflict, "before", lambda self, step, runtime: (seen.append(step.batch), before(self, step, runtime))[1])
    learner_of(AGEM(optim=QUICK, backbone="small"), stream, runtime, 2)
    first, later = seen[0], seen[-1]
    assert first.remembered is None
    assert later.remembered is not None
    assert set(later.labels.tolist()) <= {2, 3}
    assert set(later.remembered.labels.tolist()) <= {0, 1}


def test_no_spring_is_stiffer_than_the_limit(stream: Stream, runtime: Runtime) -> None:
    learner = learner_of(EWC(optim=QUICK, backbone="small", limit=1e-5), stream, runtime, 1)
    stiff = torch.cat([value.flatten() for value in below("importance", learner.knowledge.statistics).values()])
    assert float(stiff.max()) == pytest.approx(1e-5)
