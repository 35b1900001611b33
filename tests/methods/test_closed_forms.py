"""What is peculiar to ACIL, DS-AL, SLDA, FeCAM and FeTrIL: recursion against the closed form over all samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import functional as F

from nacre.data.stream import Stream
from nacre.methods.acil import ACIL
from nacre.methods.dsal import DSAL
from nacre.methods.fecam import FeCAM
from nacre.methods.fetril import FeTrIL, translated
from nacre.methods.slda import SLDA
from nacre.models.readouts import Affine, ClassCovariance, DualRidge, Ridge
from nacre.training.inference import features
from nacre.training.learner import Learner
from nacre.training.optim import Optim
from nacre.training.runtime import Runtime

QUICK = Optim(epochs=2, batch=16, lr=0.05)


def learnt(method: Any, stream: Stream, runtime: Runtime) -> tuple[Learner, list[Tensor], list[Tensor], list[Tensor]]:
    """A learner after all stages; features and labels of each stage; the backbone's parameters after the first."""
    learner = Learner(method, stream.source.spec, runtime=runtime)
    first: list[Tensor] = []
    for stage in stream:
        learner.learn(stage)
        first = first or [parameter.detach().clone() for parameter in learner.knowledge.model.backbone.parameters()]
    model = learner.knowledge.model
    assert all(torch.equal(a, b) for a, b in zip(first, model.backbone.parameters(), strict=True))  # frozen
    return learner, [features(model, stage.train, runtime) for stage in stream], [stage.train.labels for stage in stream], first


def test_the_recursion_gives_the_ridge_over_all_samples(stream: Stream, runtime: Runtime) -> None:
    learner, found, labels, _ = learnt(ACIL(optim=QUICK, backbone="small", width=40, gamma=0.1), stream, runtime)
    readout = learner.knowledge.model.readout
    assert isinstance(readout, Ridge)
    x = readout.expanded(torch.cat(found)).double().numpy()
    y = np.eye(6)[torch.cat(labels).numpy()]
    want = np.linalg.solve(x.T @ x + 0.1 * np.eye(40), x.T @ y)
    np.testing.assert_allclose(readout.table.get_buffer("weight").T.double().numpy(), want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(readout.get_buffer("inverse").numpy(), np.linalg.inv(x.T @ x + 0.1 * np.eye(40)), rtol=1e-4, atol=1e-6)


def test_the_order_and_size_of_pieces_do_not_matter() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(50, 8), F.one_hot(torch.arange(50) % 5, 5)
    one, other = Ridge(8, 30, 0.5), Ridge(8, 30, 0.5)
    other.basis = one.basis
    one.absorb(x, y)
    for rows in torch.randperm(50).split(7):
        other.absorb(x[rows], y[rows], chunk=3)
    torch.testing.assert_close(one(x), other(x), rtol=1e-4, atol=1e-5)


def test_the_second_stream_fits_what_the_first_leaves_of_new_classes(stream: Stream, runtime: Runtime) -> None:
    learner, found, labels, _ = learnt(DSAL(optim=QUICK, backbone="small", width=40, gamma=0.1, compensation=0.6), stream, runtime)
    readout = learner.knowledge.model.readout
    assert isinstance(readout, DualRidge)
    basis = readout.main.get_buffer("basis").double().numpy()
    ridge = 0.1 * len(basis) * np.eye(40)
    gram, cross, main_gram, main_cross = ridge.copy(), np.zeros((40, 6)), ridge.copy(), np.zeros((40, 6))
    for stage, x, y in zip(stream, found, labels, strict=True):
        unit = F.normalize(x).double().numpy() @ basis
        relu, tanh, target = unit.clip(0), np.tanh(unit), np.eye(6)[y.numpy()]
        main_gram, main_cross = main_gram + relu.T @ relu, main_cross + relu.T @ target
        residue = target - relu @ np.linalg.solve(main_gram, main_cross)
        residue[:, : stage.known], residue[:, stage.seen :] = 0, 0
        gram, cross = gram + tanh.T @ tanh, cross + tanh.T @ residue
    test = F.normalize(features(learner.knowledge.model, stream[0].test, runtime)).double().numpy() @ basis
    want = test.clip(0) @ np.linalg.solve(main_gram, main_cross) + 0.6 * np.tanh(test) @ np.linalg.solve(gram, cross)
    np.testing.assert_allclose(learner.logits(stream[0].test.pixels()).numpy(), want, rtol=1e-2, atol=1e-3)


def test_slda_is_the_discriminant_of_all_samples_at_once(stream: Stream, runtime: Runtime) -> None:
    learner, found, labels, _ = learnt(SLDA(optim=QUICK, backbone="small", shrinkage=0.05), stream, runtime)
    x, y = torch.cat(found).double().numpy(), torch.cat(labels).numpy()
    statistics = learner.knowledge.statistics
    means = np.stack([x[y == label].mean(0) for label in range(6)])
    scatter = (x - means[y]).T @ (x - means[y])
    np.testing.assert_allclose(statistics["mean"].numpy(), means, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(statistics["scatter"].numpy(), scatter, rtol=1e-6, atol=1e-9)
    covariance = 0.95 * scatter / (len(x) - 1) + 0.05 * np.eye(x.shape[1])
    rows = np.linalg.solve(covariance, means.T).T
    test = features(learner.knowledge.model, stream[1].test, runtime).double().numpy()
    want = test @ rows.T - 0.5 * (rows * means).sum(1)
    np.testing.assert_allclose(learner.logits(stream[1].test.pixels()).double().numpy(), want, rtol=1e-3, atol=1e-3)


def test_a_known_class_that_comes_again_joins_its_statistics(stream: Stream, runtime: Runtime) -> None:
    from nacre.data.stream import Stage

    half = stream[0].train.take(torch.arange(0, len(stream[0].train), 2)), stream[0].train.take(torch.arange(1, len(stream[0].train), 2))
    learner = Learner(SLDA(optim=QUICK, backbone="small"), stream.source.spec, runtime=runtime)
    learner.learn(Stage(0, 0, 2, stream[0].names, half[0], stream[0].test))
    learner.learn(Stage(1, 2, 2, (), half[1], stream[0].test))
    x = features(learner.knowledge.model, stream[0].train, runtime).double()
    for label in range(2):
        torch.testing.assert_close(learner.knowledge.statistics["mean"][label], x[stream[0].train.labels == label].mean(0))
    assert learner.knowledge.statistics["count"].tolist() == [12, 12]


def test_fecam_by_loops(stream: Stream, runtime: Runtime) -> None:
    learner, found, labels, _ = learnt(FeCAM(optim=QUICK, backbone="small", diagonal=0.7, rest=0.4), stream, runtime)
    assert isinstance(learner.knowledge.model.readout, ClassCovariance)
    test = np.sqrt(features(learner.knowledge.model, stream[2].test, runtime).clamp_min(0).double().numpy())
    want = np.zeros((len(test), 6))
    for x, y in zip(found, labels, strict=True):
        for label in y.unique().tolist():
            mine = np.sqrt(x[y == label].double().numpy())
            mean, s = np.sqrt(x[y == label].double().numpy().mean(0)), np.cov(mine, rowvar=False)
            dim = len(s)
            on, off = np.trace(s) / dim, (s.sum() - np.trace(s)) / dim / (dim - 1)
            s = s + 0.7 * on * np.eye(dim) + 0.4 * off * (1 - np.eye(dim))
            s = s / np.sqrt(np.outer(np.diag(s), np.diag(s)))
            for i, image in enumerate(test):
                gap = image / np.linalg.norm(image) - mean / np.linalg.norm(mean)
                want[i, label] = -gap @ np.linalg.inv(s) @ gap
    np.testing.assert_allclose(learner.logits(stream[2].test.pixels()).double().numpy(), want, rtol=2e-2, atol=1e-3)
    assert (learner.predict(stream[2].test.pixels()).numpy() == want.argmax(1)).mean() == 1


def test_features_are_moved_by_the_difference_of_means() -> None:
    found = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    labels, there = torch.tensor([2, 2, 3, 3]), torch.tensor([2, 3])
    means = torch.tensor([[0.2, 2.0], [4.0, 0.1], [2.0, 0.0], [0.0, 3.0]])
    torch.testing.assert_close(translated(found, labels, means, 0, there), torch.tensor([[0.2, 0.0], [0.2, 4.0]]))
    torch.testing.assert_close(translated(found, labels, means, 1, there), torch.tensor([[3.0, 0.1], [5.0, 0.1]]))


def test_fetril_learns_from_as_many_moved_as_real_features(stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Tensor, Tensor]] = []
    from nacre.methods import fetril

    real = fetril.support_vectors
    monkeypatch.setattr(fetril, "support_vectors", lambda x, y, *more: (seen.append((x, y)), real(x, y, *more))[1])
    learner, found, labels, _ = learnt(FeTrIL(optim=QUICK, backbone="small"), stream, runtime)
    assert [torch.bincount(y).tolist() for _, y in seen] == [[12] * 2, [12] * 4, [12] * 6]
    x, y = seen[-1]
    means = learner.knowledge.statistics["mean"]
    for label, (mine, own) in enumerate(zip([f for f in found for _ in (0, 1)], [y for y in labels for _ in (0, 1)], strict=True)):
        torch.testing.assert_close(means[label].float(), F.normalize(mine)[own == label].mean(0))
        torch.testing.assert_close(x[y == label].norm(dim=1), torch.ones(12))


def test_fecam_joins_what_comes_later_and_a_single_image_does_not_draw_everything() -> None:
    draw = torch.Generator().manual_seed(3)
    x = torch.rand(30, 6, generator=draw)
    whole, parts = ClassCovariance(6), ClassCovariance(6)
    for readout, pieces in ((whole, [x[:20]]), (parts, [x[:7], x[7:8], x[8:20]])):
        readout.resize(2)
        for piece in pieces:
            readout.learn(0, piece, (1.0, 1.0))
    for (name, want), (_, got) in zip(whole.table.named_buffers(), parts.table.named_buffers(), strict=True):
        torch.testing.assert_close(got[0], want[0], rtol=1e-4, atol=1e-5, msg=name)
    whole.learn(1, torch.tensor([[9.0, 0, 0, 0, 0, 0]]), (1.0, 1.0))
    assert whole(x[20:]).argmax(1).tolist() == [0] * 10
    assert whole(torch.tensor([[5.0, 0.1, 0, 0, 0, 0]])).argmax(1).tolist() == [1]


def test_slda_keeps_its_covariance_when_a_class_is_dropped(stream: Stream, runtime: Runtime) -> None:
    learner, found, labels, _ = learnt(SLDA(optim=QUICK, backbone="small"), stream, runtime)
    x, y = torch.cat(list(found)).double().numpy(), torch.cat(list(labels)).numpy()
    centred = np.concatenate([x[y == label] - x[y == label].mean(0) for label in range(6)])
    learner.knowledge.select(torch.tensor([0, 1, 2, 3, 5]), SLDA.by_class)
    statistics = learner.knowledge.statistics
    assert statistics["count"].tolist() == [12.0] * 5
    # the scatter keeps the dropped samples, so it is divided by their number too
    np.testing.assert_allclose(statistics["scatter"] / (statistics["total"] - 1), centred.T @ centred / 71, rtol=1e-5, atol=1e-8)


def test_both_streams_of_ds_al_have_room_to_differ() -> None:
    """As many directions as a stream can fit: the sum of s^2 / (s^2 + gamma) over the singular values of its features."""
    torch.manual_seed(0)
    readout = DualRidge(64, 256, 0.1, 0.6)
    x = torch.rand(600, 64) ** 3
    freedom = []
    for stream in (readout.main, readout.compensation):
        squares = torch.linalg.svdvals(stream.expanded(x).double()).square()
        freedom.append(float((squares / (squares + stream.gamma)).sum()))
    assert min(freedom) > 0.6 * 256


def test_the_first_stream_of_ds_al_is_acil() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(60, 8), F.one_hot(torch.arange(60) % 3, 3).float()
    dual = DualRidge(8, 40, 0.1, 0.0)
    single = Ridge(8, 40, 0.1, basis=dual.main.get_buffer("basis") / 8**0.5)
    dual.absorb(x, y, known=0)
    single.absorb(x, y)
    torch.testing.assert_close(dual(x), single(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("classes", [2, 4])
def test_fetril_answers_with_the_machine_that_was_fitted(classes: int, stream: Stream, runtime: Runtime) -> None:
    source = Stream(stream.source, [classes, 6 - classes], seed=0)
    learner = Learner(FeTrIL(optim=QUICK, backbone="small", strength=2.0), source.source.spec, runtime=runtime)
    learner.learn(source[0])
    found, labels = F.normalize(features(learner.knowledge.model, source[0].train, runtime)), source[0].train.labels
    readout = learner.knowledge.model.readout
    assert isinstance(readout, Affine)
    answers = readout(found).detach().double().numpy()
    assert answers.shape == (len(labels), classes)
    for label in range(classes):  # each row with its bias is the least of 1/2 |w, b|^2 + C sum of squared hinges, class against the rest
        sign, x = np.where(labels.numpy() == label, 1.0, -1.0), np.c_[found.double().numpy(), np.ones(len(found))]

        def objective(w: Any, x: Any = x, sign: Any = sign) -> tuple[float, Any]:
            slack = np.clip(1 - sign * (x @ w), 0, None)
            return 0.5 * w @ w + 2.0 * (slack**2).sum(), w - 4.0 * x.T @ (sign * slack)

        best = minimize(objective, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14}).x
        np.testing.assert_allclose(answers[:, label], x @ best, atol=5e-3)
