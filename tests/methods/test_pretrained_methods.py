"""What is peculiar to SimpleCIL, APER, RanPAC, EASE and SLCA: numbers against independent working-out, and what pre-training gives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from torch import Tensor, nn
from torch.nn import functional as F

from nacre import modelfile
from nacre.data.readers import digits
from nacre.data.source import ImageSpec, Source
from nacre.data.stream import Stage, Stream
from nacre.errors import NacreError
from nacre.losses.classification import CrossEntropy
from nacre.losses.loss import Loss
from nacre.losses.prototypes import GaussianReplay
from nacre.methods import METHODS, slca
from nacre.methods.aper import APER
from nacre.methods.ease import EASE
from nacre.methods.ranpac import RanPAC
from nacre.methods.simplecil import SimpleCIL
from nacre.methods.slca import SLCA
from nacre.models.adapters import Adapter, Subspaces, adaptable, beside
from nacre.models.model import build_model
from nacre.models.prototypes import Prototypes
from nacre.models.readouts import RIDGES, Projected
from nacre.seeds import generator
from nacre.training.inference import features
from nacre.training.learner import Learner, accuracy
from nacre.training.optim import Optim
from nacre.training.phases import Fit
from nacre.training.runtime import Runtime

QUICK = Optim(epochs=2, batch=16, lr=0.05)
SPEC = ImageSpec((3, 8, 8))


def learnt(method: Any, stream: Stream, runtime: Runtime, until: int = 3) -> Learner:
    learner = Learner(method, stream.source.spec, runtime=runtime)
    for stage in stream[:until]:
        learner.learn(stage)
    return learner


def shaken(module: nn.Module, size: float = 0.3) -> None:
    """Weights that are not zero, so that an adapter does something."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(size * torch.randn_like(parameter))


def cosines(x: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T


def test_fresh_adapters_change_nothing() -> None:
    torch.manual_seed(0)
    trunk, images = adaptable("vit-tiny", SPEC, 5).eval(), torch.randn(3, 3, 8, 8)
    plain = trunk.trunk(images)[-1]
    assert torch.equal(trunk(images)[-1], plain)
    trunk.resize(2)
    assert torch.equal(trunk.eval()(images)[-1], torch.cat([plain, plain], 1))
    assert torch.equal(trunk.train()(images)[-1], plain)


def test_an_adapter_stands_beside_the_hidden_layer_by_hand() -> None:
    torch.manual_seed(0)
    block = cast(Any, adaptable("vit-tiny", SPEC, 5).trunk).blocks[1]
    adapter, x = Adapter(64, 5), torch.randn(2, 7, 64)
    shaken(adapter)
    before = block(x)
    y = x + block.attn(block.norm1(x))
    z = block.norm2(y)
    hidden = (z @ adapter.down.weight.T + adapter.down.bias).clamp_min(0)
    want = y + block.mlp(z) + 0.1 * (hidden @ adapter.up.weight.T + adapter.up.bias)
    torch.testing.assert_close(beside(block, adapter)(x), want)
    assert torch.equal(block(x), before)


def test_only_the_newest_adapters_learn_and_they_alone_are_asked_while_they_do() -> None:
    torch.manual_seed(0)
    trunk = adaptable("vit-tiny", SPEC, 5, plain=True)
    trunk.resize(2)
    shaken(trunk.sets)
    trunk.resize(3)
    images = torch.randn(2, 3, 8, 8)
    out = trunk.train()(images)[-1]
    assert out.shape == (2, 64, 1, 1)
    out.sum().backward()
    learning = {name for name, parameter in trunk.named_parameters() if parameter.grad is not None}
    assert learning == {f"sets.2.{name}" for name, _ in cast(Any, trunk).sets[2].named_parameters()}
    assert not trunk.trunk.training
    whole = trunk.eval()(images)[-1]
    assert whole.shape == (2, 4 * 64, 1, 1) == (2, trunk.dim, 1, 1)
    torch.testing.assert_close(whole[:, :64], trunk.trunk(images)[-1])
    torch.testing.assert_close(whole[:, -64:], out.detach())


def test_a_net_without_blocks_takes_no_adapters() -> None:
    with pytest.raises(NacreError, match="SmallNet has no blocks for adapters: use --backbone vit-tiny"):
        adaptable("small", SPEC, 5)


@pytest.mark.parametrize("cls", [SimpleCIL, APER, RanPAC, EASE])
def test_what_is_frozen_stays_so_through_stages_and_files(cls: Any, stream: Stream, runtime: Runtime, tmp_path: Path) -> None:
    small = {"width": 24} if cls is RanPAC else {}
    learner = Learner(cls(backbone="vit-tiny", optim=QUICK, **small), stream.source.spec, runtime=runtime)
    bare = learner.knowledge.model.backbone.bare()
    first = {name: tensor.clone() for name, tensor in bare.state_dict().items()}
    sets: list[dict[str, Tensor]] = []
    for stage in stream[:2]:
        learner.learn(stage)
        if cls is not SimpleCIL:
            sets.append({name: tensor.clone() for name, tensor in cast(Any, learner.knowledge.model.backbone).sets[0].state_dict().items()})
    modelfile.save(tmp_path / "m.nacre", learner)
    back, _ = modelfile.load(tmp_path / "m.nacre", runtime)
    for one in (learner, back):
        bare = one.knowledge.model.backbone.bare()
        assert all(torch.equal(tensor, first[name]) for name, tensor in bare.state_dict().items())
        assert not any(parameter.requires_grad for parameter in bare.parameters())
    if sets:
        assert all(torch.equal(tensor, sets[1][name]) for name, tensor in sets[0].items())
        assert any(tensor.abs().sum() for name, tensor in sets[0].items() if "up" in name)  # they did learn


def test_simplecil_answers_by_the_cosine_to_class_means(stream: Stream, runtime: Runtime) -> None:
    learner = learnt(SimpleCIL(backbone="vit-tiny"), stream, runtime)
    model = learner.knowledge.model
    x, y = features(model, stream.train, runtime).double().numpy(), stream.train.labels.numpy()
    means = np.stack([x[y == label].mean(0) for label in range(6)])
    test = features(model, stream.test, runtime).double().numpy()
    logits, want = learner.logits(stream.test.pixels()).double().numpy(), cosines(test, means)
    unit = (logits / want).mean()
    np.testing.assert_allclose(logits, unit * want, rtol=1e-3)
    assert (logits.argmax(1) == want.argmax(1)).all()
    # the unit: the mean distance of a stage's samples from cosine 1, measured with the means of its moment
    gaps = [1 - cosines(x[y // 2 == i], means)[np.arange((y // 2 == i).sum()), y[y // 2 == i]] for i in range(3)]
    assert unit == pytest.approx(1 / np.concatenate(gaps).mean(), rel=1e-3)


def test_images_of_a_known_class_join_its_mean(stream: Stream, runtime: Runtime) -> None:
    train, count = stream[0].train, len(stream[0].train)
    learner = Learner(SimpleCIL(backbone="vit-tiny"), stream.source.spec, runtime=runtime)
    learner.learn(Stage(0, 0, 2, stream[0].names, train.take(torch.arange(count) % 3 == 0), stream[0].test))
    learner.learn(Stage(1, 2, 2, (), train.take(torch.arange(count) % 3 != 0), stream[0].test))
    readout = learner.knowledge.model.readout
    assert isinstance(readout, Prototypes)
    found = features(learner.knowledge.model, train, runtime)
    for label in range(2):
        torch.testing.assert_close(readout.table.get_buffer("means")[label, 0], found[train.labels == label].mean(0))


def test_apers_features_are_the_frozen_and_the_adapted_ones(stream: Stream, runtime: Runtime) -> None:
    learner = learnt(APER(backbone="vit-tiny", optim=QUICK, bottleneck=8), stream, runtime)
    model, (test, _) = learner.knowledge.model.eval(), (stream.test.pixels(), None)
    trunk = cast(Any, model.backbone)

    def by_hand(pixels: Tensor) -> np.ndarray:
        tokens = adapted = trunk.trunk.embed(model.normalise(pixels))
        for block, adapter in zip(trunk.trunk.blocks, trunk.sets[0], strict=True):
            tokens = block(tokens)
            adapted = adapted + block.attn(block.norm1(adapted))
            adapted = adapted + block.mlp(block.norm2(adapted)) + adapter(block.norm2(adapted))
        return torch.cat([trunk.trunk.condense(tokens), trunk.trunk.condense(adapted)], 1).detach().double().numpy()

    x, y = by_hand(stream.train.pixels()), stream.train.labels.numpy()
    assert np.abs(x[:, :64] - x[:, 64:]).max() > 1e-3
    want = cosines(by_hand(test), np.stack([x[y == label].mean(0) for label in range(6)]))
    logits = learner.logits(test).double().numpy()
    np.testing.assert_allclose(logits, (logits / want).mean() * want, rtol=1e-3)


def test_ranpac_is_the_ridge_over_all_samples(stream: Stream, runtime: Runtime) -> None:
    learner = learnt(RanPAC(backbone="vit-tiny", optim=QUICK, width=40), stream, runtime)
    model = learner.knowledge.model
    readout = model.readout
    assert isinstance(readout, Projected)
    basis = readout.get_buffer("basis").double().numpy()
    x = (features(model, stream.train, runtime).double().numpy() @ basis).clip(0)
    y = np.eye(6)[stream.train.labels.numpy()]
    # the ridge: on a fifth of the last stage, fitted to all else
    last = np.flatnonzero(stream.train.labels.numpy() >= 4)
    order = torch.randperm(len(last), generator=generator(0, "ridge", 2)).numpy()
    held = last[order[len(last) - round(0.2 * len(last)) :]]
    rest = np.setdiff1d(np.arange(len(x)), held)
    errors = [
        np.square(SklearnRidge(alpha=ridge, fit_intercept=False, solver="svd").fit(x[rest], y[rest]).predict(x[held]) - y[held]).sum()
        for ridge in RIDGES
    ]
    ridge = RIDGES[int(np.argmin(errors))]
    want = np.linalg.solve(x.T @ x + ridge * np.eye(40), x.T @ y)
    np.testing.assert_allclose(readout.table.get_buffer("weight").double().numpy().T, want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(learner.knowledge.statistics["gram"].numpy(), x.T @ x, rtol=1e-5, atol=1e-3)
    test = (features(model, stream.test, runtime).double().numpy() @ basis).clip(0)
    np.testing.assert_allclose(learner.logits(stream.test.pixels()).double().numpy(), test @ want, rtol=1e-2, atol=1e-3)


def test_a_mean_that_no_sample_gave_is_complemented_by_similar_classes() -> None:
    readout = Prototypes(2, others=0.1)
    readout.learn(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]), 2)
    # two new classes: in the old space like class 0 and like the opposite of class 1
    both = torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, -1.0, 0.0, 4.0]])
    readout.learn(both, torch.tensor([2, 3]), 4)
    means = readout.table.get_buffer("means")
    e = np.exp
    zero = np.array([e(1), e(0)]) / (e(1) + e(0))  # cosines 1 and 0
    one = np.array([e(0), e(-1)]) / (e(0) + e(-1))  # cosines 0 and -1
    np.testing.assert_allclose(means[0, 1], [zero[0] * 1, zero[1] * 4], rtol=1e-5)
    np.testing.assert_allclose(means[1, 1], [one[0] * 1, one[1] * 4], rtol=1e-5)
    np.testing.assert_allclose(means[2:].flatten(1), both)
    assert readout.table.get_buffer("home").tolist() == [0, 0, 1, 1]
    x = torch.tensor([[1.0, 1.0, 0.0, 1.0]])
    half = np.sqrt(0.5)
    want = [
        half + 0.1 * means[0, 1, 1].item() / np.linalg.norm(means[0, 1]),
        half + 0.1 * means[1, 1, 1].item() / np.linalg.norm(means[1, 1]),
        0.1 * half + 0,
        0.1 * -half + 1,
    ]
    np.testing.assert_allclose(readout.cosines(x)[0], want, rtol=1e-5)
    total, count = readout.get_buffer("distance").tolist()
    assert count == 4
    np.testing.assert_allclose(readout(x)[0], np.array(want) / max(total / count, 1e-4), rtol=1e-4)
    # a guess stays a guess of its stage, and gives way to samples
    kept = means[1, 1].clone()
    readout.learn(torch.tensor([[3.0, 0.0, 5.0, 5.0, 1.0, 0.0]]), torch.tensor([0]), 4)
    means = readout.table.get_buffer("means")
    np.testing.assert_allclose(means[0].flatten(), [3, 0, 5, 5, 1, 0])
    assert torch.equal(means[1, 1], kept)
    np.testing.assert_allclose(means[1:, 2], [[1, 0]] * 3)  # one class has a sample there


def test_ease_has_a_space_per_stage_and_real_means_where_images_were(stream: Stream, runtime: Runtime) -> None:
    learner = learnt(EASE(backbone="vit-tiny", optim=QUICK, bottleneck=8), stream, runtime)
    model = learner.knowledge.model
    assert isinstance(model.readout, Prototypes)
    assert isinstance(model.backbone, Subspaces)
    assert model.readout.size() == [6, 3]
    assert model.backbone.size() == [3]
    table = model.readout.table
    assert table.get_buffer("home").tolist() == [0, 0, 1, 1, 2, 2]
    assert [(row > 0).tolist() for row in table.get_buffer("count")[::2]] == [[True, False, False], [True, True, False], [True] * 3]
    found = features(model, stream.train, runtime).unflatten(1, (3, -1))
    for label in range(6):
        real = found[stream.train.labels == label].mean(0)
        for space in range(label // 2 + 1):
            torch.testing.assert_close(table.get_buffer("means")[label, space], real[space], rtol=1e-4, atol=1e-5)
    last = torch.stack([found[stream.train.labels == label].mean(0)[2] for label in (4, 5)])
    own = [table.get_buffer("means")[label, label // 2] for label in range(4)]
    there = table.get_buffer("means")[4:]
    for label in range(4):
        near = torch.stack([F.cosine_similarity(own[label], there[j, label // 2], dim=0) for j in (0, 1)]).softmax(0)
        torch.testing.assert_close(table.get_buffer("means")[label, 2], near @ last, rtol=1e-4, atol=1e-5)


def test_slca_keeps_mean_and_covariance_of_every_class(stream: Stream, runtime: Runtime) -> None:
    learner = Learner(SLCA(backbone="vit-tiny", optim=QUICK, balanced=QUICK), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    first = {name: tensor.clone() for name, tensor in learner.knowledge.statistics.items()}
    learner.learn(stream[1])
    statistics = learner.knowledge.statistics
    x, y = features(learner.knowledge.model, stream[1].train, runtime).double().numpy(), stream[1].train.labels.numpy()
    for label in (2, 3):
        np.testing.assert_allclose(statistics["mean"][label], x[y == label].mean(0), rtol=1e-4, atol=1e-5)
        want = np.cov(x[y == label], rowvar=False) + 1e-4 * np.eye(64)
        np.testing.assert_allclose(statistics["covariance"][label], want, rtol=1e-3, atol=1e-6)
    assert all(torch.equal(tensor[:2], first[name]) for name, tensor in statistics.items())


def test_slca_joins_further_samples_of_a_class_with_what_it_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.randn(60, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64), torch.arange(60) % 2
    knowledge: Any = SimpleNamespace(statistics={})
    for part in (slice(0, 21), slice(21, 24), slice(24, 60)):
        monkeypatch.setattr(slca, "stage_features", lambda work, part=part: (x[part].float(), y[part]))
        slca.measure(SimpleNamespace(knowledge=knowledge, stage=SimpleNamespace(seen=2)), ridge=0.0)  # type: ignore[arg-type]
    for label in range(2):
        own = x[y == label].numpy()
        np.testing.assert_allclose(knowledge.statistics["mean"][label], own.mean(0), atol=1e-6)
        np.testing.assert_allclose(knowledge.statistics["covariance"][label], np.cov(own, rowvar=False), atol=1e-5)


def test_drawn_features_have_their_classes_statistics_and_align_the_head_by_the_formula() -> None:
    torch.manual_seed(0)
    means, root = torch.tensor([[1.0, -2.0], [0.0, 3.0]]), torch.randn(2, 2, 2)
    covariance = root @ root.mT + torch.eye(2)
    replay = GaussianReplay(means, torch.linalg.cholesky(covariance), 50_000, 0.1, seed=3)
    drawn, labels = replay.drawn(0.25)
    assert labels.bincount().tolist() == [50_000] * 2
    for label in range(2):
        torch.testing.assert_close(drawn[labels == label].mean(0), means[label], atol=0.05, rtol=0)
        torch.testing.assert_close(drawn[labels == label].T.cov(), covariance[label], atol=0.1, rtol=0.05)
    assert torch.equal(drawn, replay.drawn(0.25)[0])
    assert not torch.equal(drawn, replay.drawn(0.5)[0])
    rows = torch.randn(2, 2)
    step: Any = type("Step", (), {"progress": 0.25, "model": type("Model", (), {"head": staticmethod(lambda x: x @ rows.T)})})
    logits = (drawn @ rows.T).double().numpy()
    scaled = logits / np.linalg.norm(logits, axis=1, keepdims=True) / 0.1
    want = (np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(labels)), labels.numpy()]).mean()
    assert replay(step).item() == pytest.approx(want, rel=1e-4)


def test_a_slow_part_goes_its_share_of_the_way(stream: Stream, runtime: Runtime) -> None:
    optim = Optim(lr=0.1, epochs=1, batch=len(stream[0].train), schedule="constant", weight_decay=0.01)
    moved: list[dict[str, Tensor]] = []
    for share in (1.0, 0.01):
        learner = Learner(SLCA(backbone="vit-tiny"), stream.source.spec, runtime=runtime)
        model = learner.knowledge.model
        model.grow(2)
        with torch.no_grad():
            model.head.rows.weight.copy_(torch.linspace(-1, 1, 128).view(2, 64))
            model.head.rows.bias.zero_()  # type: ignore[union-attr]
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        phase = Fit(Loss(classification=CrossEntropy()), stream[0].train, model, optim=optim, pace={model.backbone: share})
        SpyMethod.phase = phase
        learner.method = SpyMethod()
        learner.learn(stream[0])
        moved.append({name: parameter.detach() - before[name] for name, parameter in model.named_parameters()})
    for name, way in moved[0].items():
        share = 0.01 if name.startswith("backbone.") else 1.0
        torch.testing.assert_close(moved[1][name], share * way, rtol=0.02, atol=2e-7)
    assert all(way.abs().max() > 0 for name, way in moved[0].items() if name != "backbone.norm.bias")


class SpyMethod:
    """Yields one phase that was made elsewhere."""

    phase: Fit
    backbone = "vit-tiny"

    def grow(self, *rest: Any) -> None:
        pass

    def lesson(self, *rest: Any) -> Any:
        yield self.phase


def test_a_fit_without_a_pace_has_one_group_of_rates() -> None:
    model = build_model("small", "linear", SPEC)
    weights = list(model.backbone.parameters())
    assert len(Optim().build(weights).param_groups) == 1
    groups = Optim(lr=0.5).build(weights, {weights[0]: 0.01})
    Optim(lr=0.5, schedule="cosine").steer(groups, 0.5)
    assert sorted(group["lr"] for group in groups.param_groups) == pytest.approx([0.0025, 0.25])
    assert sum(len(group["params"]) for group in groups.param_groups) == len(weights)


def half(source: Source, classes: range, most: int = 10_000) -> Source:
    """Some classes of a source, counted from 0, with at most so many training images each."""
    train, test = (part.among(classes) for part in (source.train, source.test))
    few = torch.cat([torch.nonzero(train.labels == label).flatten()[:most] for label in classes])
    train, test = (replace(part, labels=part.labels - classes.start) for part in (train.take(few), test))
    return replace(source, train=train, test=test, classes=source.classes[classes.start : classes.stop])


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory, runtime: Runtime) -> Path:
    """A transformer that learnt the digits 0 to 4."""
    stream = Stream(half(digits(), range(5)), [5], seed=0)
    optim = Optim(name="adamw", lr=3e-3, weight_decay=0.05, epochs=40)
    learner = Learner(METHODS["finetune"](backbone="vit-tiny", optim=optim), stream.source.spec, runtime=runtime)
    learner.learn(stream[0])
    assert accuracy(learner, stream.test) > 0.9
    path = tmp_path_factory.mktemp("taught") / "digits.nacre"
    modelfile.save(path, learner)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simplecil", "aper", "ranpac", "ease", "slca"])
def test_a_backbone_that_learnt_other_digits_serves_new_ones(name: str, taught: Path, runtime: Runtime) -> None:
    stream = Stream(half(digits(), range(5, 10), most=10), [2, 2, 1], seed=0)  # few images: what they cannot teach must be there
    small = {"width": 500} if name == "ranpac" else {}
    found, untrained = (
        accuracy(learnt(METHODS[name](backbone=backbone, **small), stream, runtime), stream.test)
        for backbone in (f"vit-tiny@{taught}", "vit-tiny")
    )
    assert found > 0.4, found  # chance is 0.2
    assert found > untrained + 0.05, (found, untrained)
