"""What is peculiar to BiC, LUCIR and PODNet: a correction with a known answer, imprinted rows, their terms by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from nacre.data.augment import Augment
from nacre.data.source import ImageSpec, Samples, Source
from nacre.data.stream import Stage, Stream
from nacre.losses.classification import MarginRanking, NeighbourhoodComponents
from nacre.losses.distillation import FeatureCosine, PooledMaps
from nacre.losses.loss import Batch, Step
from nacre.methods.bic import BiC
from nacre.methods.lucir import LUCIR
from nacre.methods.podnet import PODNet
from nacre.models.heads import BiasCorrected, Proxies
from nacre.models.model import build_model
from nacre.models.output import Output
from nacre.training.inference import features
from nacre.training.learner import Learner
from nacre.training.optim import Optim
from nacre.training.phases import Adjust, Fit
from nacre.training.runtime import Runtime

QUICK = Optim(epochs=2, batch=16, lr=0.05)


def plain(source: Source) -> Source:
    """Without augmentation."""
    return Source(source.train, source.test, source.classes, Augment())


def test_bic_finds_the_scale_and_shift_that_fit_the_held_out_part(
    source: Source, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(plain(source), [3, 3], seed=0)
    exact = Optim(lr=2.0, weight_decay=0, schedule="cosine", epochs=600, batch=64)
    learner = Learner(BiC(optim=QUICK, backbone="small", correcting=exact, share=0.5), stream.source.spec, runtime=runtime)
    held: list[Samples] = []
    run = Fit.run
    monkeypatch.setattr(Fit, "run", lambda self, work: (held.append(self.data) if self.only else None, run(self, work))[1])
    for stage in stream:
        learner.learn(stage)
    head = learner.knowledge.model.head
    assert isinstance(head, BiasCorrected)
    assert torch.bincount(held[0].labels).tolist() == [6] * 6  # balanced
    raw = torch.nn.functional.linear(features(learner.knowledge.model, held[0], runtime), head.rows.weight, head.rows.bias)
    z, y = raw.detach().double().numpy(), held[0].labels.numpy()

    def loss(pair: np.ndarray[Any, Any]) -> float:
        logits = np.concatenate([z[:, :3], pair[0] * z[:, 3:] + pair[1]], 1)
        top = logits.max(1, keepdims=True)
        return float((np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[range(len(y)), y]).mean())

    best = minimize(loss, np.array([1.0, 0.0]), tol=1e-10).x
    assert loss(best) < loss(np.array([1.0, 0.0]))
    assert [head.pairs[1].alpha.item(), head.pairs[1].beta.item()] == pytest.approx(best, abs=0.05)
    assert (head.pairs[0].alpha.item(), head.pairs[0].beta.item()) == (1, 0)


def test_bic_distils_from_answers_that_are_corrected(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    correcting = Optim(lr=1.0, weight_decay=0, epochs=30, batch=64)
    learner = Learner(BiC(optim=QUICK, backbone="small", correcting=correcting), stream.source.spec, runtime=runtime)
    for stage in stream[:2]:
        learner.learn(stage)
    head, images = learner.knowledge.model.head, learner.knowledge.model.normalise(runtime.images(stream[2].train.pixels()[:6]))
    corrected = learner.knowledge.model.eval()(images).logits
    raw = F.linear(learner.knowledge.model(images).features, head.rows.weight, head.rows.bias)
    scale, shift = head.pairs[1].alpha.detach(), head.pairs[1].beta.detach()
    assert abs(float(scale) - 1) + abs(float(shift)) > 1e-2
    taught: list[Fit] = []
    run = Fit.run
    monkeypatch.setattr(Fit, "run", lambda self, work: (taught.append(self), run(self, work))[1])
    learner.learn(stream[2])
    teacher = taught[0].teacher
    assert teacher is not None
    answer = teacher(images).logits
    torch.testing.assert_close(answer, corrected)
    torch.testing.assert_close(answer, torch.cat([raw[:, :2], scale * raw[:, 2:4] + shift], 1))


def test_bic_trains_on_no_held_out_image(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[Fit] = []
    run = Fit.run
    monkeypatch.setattr(Fit, "run", lambda self, work: (fits.append(self), run(self, work))[1])
    learner = Learner(BiC(optim=QUICK, backbone="small"), stream.source.spec, runtime=runtime)
    for stage in stream[:2]:
        learner.learn(stage)
    _, main, correcting = fits

    def shown(samples: Samples) -> set[bytes]:
        return {bytes(image.flatten().tolist()) for image in samples.pixels()}

    assert not shown(main.data) & shown(correcting.data)
    assert len(main.data) + len(correcting.data) == 2 * 12 + len(fits[0].data)
    assert torch.bincount(correcting.data.labels).tolist() == [1] * 4


def step_of(stage: Stage, head: str, classes: int, labels: list[int], seed: int = 0) -> tuple[Step, Output, Output]:
    """A step of a model of 3 x 8 x 8 images, and what the model and a teacher answer."""
    torch.manual_seed(seed)
    model = build_model("small", head, ImageSpec((3, 8, 8)))
    model.grow(classes)
    images = torch.randn(len(labels), 3, 8, 8)
    out, old = model(images), model(images + 0.5)
    return Step(Batch(images, torch.tensor(labels)), out, old, model, stage, 0.0), out, old


def test_direction_and_margin_terms_by_hand(stream: Stream) -> None:
    step, out, old = step_of(stream[1], "cosine", 4, [0, 3, 1, 2])
    a, b = out.features.detach().numpy(), old.features.detach().numpy()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert float(FeatureCosine()(step)) == pytest.approx(float((1 - cosine).mean()), rel=1e-4)
    rows = step.model.head.rows.weight.detach().numpy()
    scores = a @ rows.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(rows, axis=1)
    gaps = [max(0, 0.5 - scores[i, y] + scores[i, k]) for i, y in ((0, 0), (2, 1)) for k in (2, 3)]
    assert float(MarginRanking(0.5, 2)(step)) == pytest.approx(np.mean(gaps), rel=1e-4)


def test_pooled_maps_by_loops(stream: Stream) -> None:
    step, out, old = step_of(stream[1], "proxies", 4, [0, 3])

    def vector(image: Tensor) -> np.ndarray[Any, Any]:
        depth, height, width = image.shape
        square = image.detach().numpy().astype(np.float64) ** 2
        rows = [square[d, y].sum() for d in range(depth) for y in range(height)]
        columns = [square[d, :, x].sum() for d in range(depth) for x in range(width)]
        both = np.array(rows + columns)
        return both / np.linalg.norm(both)

    want = [
        np.mean([np.linalg.norm(vector(n) - vector(o)) for n, o in zip(new, before, strict=True)])
        for new, before in zip(out.maps, old.maps, strict=True)
    ]
    assert float(PooledMaps()(step)) == pytest.approx(np.mean(want), rel=1e-4)


def test_proxies_answer_and_their_loss_by_hand(stream: Stream) -> None:
    step, out, _ = step_of(stream[1], "proxies", 3, [0, 2, 1])
    head = step.model.head
    assert isinstance(head, Proxies)
    with torch.no_grad():
        head.scale.fill_(4.0)
    x, rows = out.features.detach().numpy(), head.rows.weight.detach().numpy()
    cosine = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
    answers = np.zeros((3, 3))
    for i in range(3):
        for k in range(3):
            mine = cosine[i, 10 * k : 10 * k + 10]
            weight = np.exp(mine) / np.exp(mine).sum()
            answers[i, k] = 4.0 * (weight * mine).sum()
    logits = step.model(step.batch.images).logits
    np.testing.assert_allclose(head(out.features).detach().numpy(), answers, rtol=1e-4)
    again = Step(step.batch, Output(out.maps, out.features, head(out.features)), None, step.model, stream[1], 0.0)
    want = []
    for i, y in enumerate([0, 2, 1]):
        rest = sum(np.exp(answers[i, k]) for k in range(3) if k != y)
        want.append(max(0.0, -np.log(np.exp(answers[i, y] - 0.6) / rest)))
    assert float(NeighbourhoodComponents(0.6)(again)) == pytest.approx(np.mean(want), rel=1e-4)
    assert logits.shape == (3, 3)


def test_lucir_begins_with_rows_in_the_direction_of_class_means(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    checked = []
    run = Adjust.run

    def spied(self: Adjust, work: Any) -> None:
        run(self, work)
        if self.name == "imprint":
            model, stage = work.knowledge.model, work.stage
            rows = model.head.rows.weight.detach()
            for label in stage.new:
                found = features(model, stage.train.among(range(label, label + 1)), runtime)
                mean = (found / found.norm(dim=1, keepdim=True)).mean(0)
                assert float(torch.cosine_similarity(rows[label], mean, dim=0)) == pytest.approx(1, abs=1e-5)
                assert float(rows[label].norm()) == pytest.approx(float(rows[: stage.known].norm(dim=1).mean()), rel=1e-5)
                checked.append(label)

    monkeypatch.setattr(Adjust, "run", spied)
    learner = Learner(LUCIR(optim=QUICK, backbone="small"), stream.source.spec, runtime=runtime)
    for stage in stream[:2]:
        learner.learn(stage)
    assert checked == [2, 3]
    assert features(learner.knowledge.model, stream[0].test, runtime).min() < 0  # no rectifier at the end


def test_podnet_begins_with_proxies_that_are_centres_of_their_class(
    stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked = []
    run = Adjust.run

    def spied(self: Adjust, work: Any) -> None:
        run(self, work)
        if self.name == "imprint":
            head = work.knowledge.model.head
            for label in work.stage.new:
                found = features(work.knowledge.model, work.stage.train.among(range(label, label + 1)), runtime).numpy()
                unit = found / np.linalg.norm(found, axis=1, keepdims=True)
                rows = head.rows.weight[label * head.proxies : (label + 1) * head.proxies].detach().numpy()
                nearest = ((unit[:, None] - rows[None]) ** 2).sum(2).argmin(1)
                for row in set(nearest.tolist()):  # k-means has come to rest where every centre is the mean of what is nearest to it
                    np.testing.assert_allclose(rows[row], unit[nearest == row].mean(0), atol=1e-5)
                checked.append(len(set(nearest.tolist())))

    monkeypatch.setattr(Adjust, "run", spied)
    learner = Learner(PODNet(optim=QUICK, backbone="small", balanced=QUICK), stream.source.spec, runtime=runtime)
    for stage in stream[:2]:
        learner.learn(stage)
    assert len(checked) == 2
    assert min(checked) > 5  # of ten proxies


def test_weights_follow_the_share_of_known_classes(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    fits: list[Fit] = []
    run = Fit.run
    monkeypatch.setattr(Fit, "run", lambda self, work: (fits.append(self), run(self, work))[1])
    for method in (LUCIR(optim=QUICK, backbone="small"), PODNet(optim=QUICK, backbone="small", balanced=QUICK)):
        learner = Learner(method, stream.source.spec, runtime=runtime)
        for stage in stream:
            learner.learn(stage)
    lucir, podnet = fits[2], fits[6]
    assert lucir.loss.weight("less_forget") == pytest.approx(5 * (4 / 2) ** 0.5)
    assert lucir.loss.weight("ranking") == 1
    assert podnet.loss.weight("spatial") == pytest.approx(3 * (6 / 2) ** 0.5)
    assert podnet.loss.weight("flat") == pytest.approx((6 / 2) ** 0.5)
    balanced = fits[7]
    assert balanced.only == [balanced.model.head]
    assert len(set(torch.bincount(balanced.data.labels).tolist())) == 1


def test_rows_of_known_classes_keep_their_directions(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    run, rows = Fit.run, []

    def watched(fit: Fit, work: object) -> None:
        before = fit.model.head.rows.weight.detach().clone()
        run(fit, work)  # type: ignore[arg-type]
        rows.append((fit.only, *(F.normalize(weight) for weight in (before, fit.model.head.rows.weight.detach()))))

    monkeypatch.setattr(Fit, "run", watched)
    for method, each in ((LUCIR(optim=QUICK, backbone="small"), 1), (PODNet(optim=QUICK, backbone="small", balanced=QUICK), 10)):
        rows.clear()
        learner = Learner(method, stream.source.spec, runtime=runtime)
        for stage in stream:
            learner.learn(stage)
        whole = [(before, after) for only, before, after in rows if only is None]
        for (before, after), known in zip(whole, (0, 2, 4), strict=True):
            torch.testing.assert_close(after[: each * known], before[: each * known])
            assert (after[each * known :] - before[each * known :]).abs().max() > 1e-3
