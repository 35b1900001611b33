"""What is peculiar to LwF, iCaRL, WA, ER-ACE, DER++ and GDumb: their losses by hand, their readouts, their stores."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import toy_source
from nacre.data.memory import PerClass, Total
from nacre.data.replay import Rehearsal, kept
from nacre.data.source import ImageSpec
from nacre.data.stream import Stage, Stream
from nacre.losses.loss import Batch, Step
from nacre.losses.rehearsal import Dark, NewCrossEntropy, RememberedCrossEntropy
from nacre.methods import METHODS
from nacre.methods.bic import BiC
from nacre.methods.derpp import DERpp
from nacre.methods.erace import ERACE
from nacre.methods.finetune import Finetune
from nacre.methods.gdumb import GDumb
from nacre.methods.icarl import ICaRL
from nacre.methods.lwf import LwF
from nacre.methods.wa import WA
from nacre.models.model import Model, build_model
from nacre.models.output import Output
from nacre.seeds import derive, seeded
from nacre.training.inference import features
from nacre.training.learner import Learner
from nacre.training.method import Decoding
from nacre.training.optim import Optim
from nacre.training.phases import Fit
from nacre.training.runtime import Runtime

QUICK = Optim(epochs=1, batch=16, lr=0.05)


@pytest.fixture
def fits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Fit, dict[str, Tensor], Stage]]:
    """Every fit that runs, with its model as it was before."""
    seen: list[tuple[Fit, dict[str, Tensor], Stage]] = []
    run = Fit.run

    def spied(self: Fit, work: Any) -> None:
        seen.append((self, {name: tensor.clone() for name, tensor in self.model.state_dict().items()}, work.stage))
        run(self, work)

    monkeypatch.setattr(Fit, "run", spied)
    return seen


def learnt(method: Any, stream: Stream, runtime: Runtime, stages: int = 2) -> Learner:
    learner = Learner(method, stream.source.spec, runtime=runtime)
    for stage in stream[:stages]:
        learner.learn(stage)
    return learner


def made_up(classes: int, known: int, labels: list[int], stage: Stage, **more: Any) -> Step:
    """A step with drawn logits."""
    draw = torch.Generator().manual_seed(5)
    logits, old = torch.randn(len(labels), classes, generator=draw), torch.randn(len(labels), known, generator=draw)
    out, before = (Output((), torch.empty(0), values) for values in (logits, old))
    model: Model = build_model("small", "linear", ImageSpec((3, 8, 8)))
    return Step(Batch(torch.empty(len(labels), 3, 8, 8), torch.tensor(labels), **more), out, before, model, stage, 0.0)


def softmax(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_lwf_weighs_new_labels_and_old_answers(stream: Stream, runtime: Runtime, fits: list[Any]) -> None:
    learnt(LwF(optim=QUICK, backbone="small", weight=3, temperature=2), stream, runtime)
    fit, _, stage = fits[1]
    step = made_up(4, 2, [2, 3, 3], stage)
    assert step.old is not None
    logits, old = step.out.logits.numpy(), step.old.logits.numpy()
    label_term = -np.log(softmax(logits[:, 2:])[range(3), [0, 1, 1]]).mean()
    distilled = -(softmax(old / 2) * np.log(softmax(logits[:, :2] / 2))).sum(1).mean()
    total, _ = fit.loss(step)
    assert float(total) == pytest.approx(label_term + 3 * distilled, rel=1e-5)
    assert set(fit.data.labels.tolist()) == {2, 3}  # no image of a known class
    assert list(fits[0][0].loss.terms) == ["classification"]


def test_icarl_answers_by_the_mean_of_exemplars(stream: Stream, runtime: Runtime, fits: list[Any]) -> None:
    learner = learnt(ICaRL(optim=QUICK, backbone="small"), stream, runtime)
    model, memory = learner.knowledge.model, learner.knowledge.memory.samples()
    unit = features(model, memory, runtime).numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    means = np.stack([unit[memory.labels.numpy() == label].mean(0) for label in range(4)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    test = features(model, stream[1].test, runtime).numpy()
    test /= np.linalg.norm(test, axis=1, keepdims=True)
    want = ((test[:, None] - means[None]) ** 2).sum(2).argmin(1)
    assert learner.predict(stream[1].test.pixels()).tolist() == want.tolist()
    assert fits[1][0].loss.weight("classification") == fits[1][0].loss.weight("distillation") == 1
    assert set(fits[1][0].data.labels.tolist()) == {0, 1, 2, 3}


def test_wa_gives_new_rows_the_old_ones_mean_norm(stream: Stream, runtime: Runtime) -> None:
    learner = learnt(WA(optim=QUICK, backbone="small"), stream, runtime, 3)
    norms = np.linalg.norm(learner.knowledge.model.head.rows.weight.detach().numpy(), axis=1)
    assert norms[4:].mean() == pytest.approx(norms[:4].mean(), rel=1e-5)
    assert norms[4] != pytest.approx(norms[5], rel=1e-5)  # scaled together, not each to one length


@pytest.mark.parametrize("positive", [True, False])
def test_wa_keeps_its_rows_from_negative_numbers(stream: Stream, runtime: Runtime, positive: bool) -> None:
    rows = learnt(WA(optim=QUICK, backbone="small", positive=positive), stream, runtime).knowledge.model.head.rows.weight
    assert (float(rows.min()) >= 0) is positive


def test_wa_and_bic_weigh_by_the_share_of_known_classes(stream: Stream, runtime: Runtime, fits: list[Any]) -> None:
    for method in (WA(optim=QUICK, backbone="small"), BiC(optim=QUICK, backbone="small", correcting=QUICK)):
        fits.clear()
        learnt(method, stream, runtime, 3)
        losses = [fit.loss for fit, _, _ in fits if fit.only is None]
        weights = [(loss.weight("classification"), loss.weight("distillation")) for loss in losses]
        assert weights == [pytest.approx(pair) for pair in ((1, 0), (1 / 2, 1 / 2), (1 / 3, 2 / 3))], method  # of 2 + 2 + 2 classes


@pytest.mark.parametrize(("among", "seen"), [("seen", slice(0, 4)), ("new", slice(2, 4))])
def test_finetune_compares_the_classes_it_is_told_to(
    stream: Stream, runtime: Runtime, fits: list[Any], among: Literal["seen", "new"], seen: slice
) -> None:
    learnt(Finetune(optim=QUICK, backbone="small", among=among), stream, runtime)
    fit, _, stage = fits[1]
    step = made_up(4, 2, [2, 3, 3], stage)
    want = -np.log(softmax(step.out.logits.numpy()[:, seen])[range(3), [label - seen.start for label in (2, 3, 3)]]).mean()
    assert float(fit.loss(step)[0]) == pytest.approx(want, rel=1e-5)
    assert sorted(set(fit.data.labels.tolist())) == [2, 3]


@pytest.mark.parametrize("name", ["replay", "joint"])
def test_replay_and_joint_classify_all_that_they_keep(stream: Stream, runtime: Runtime, fits: list[Any], name: str) -> None:
    learner = learnt(METHODS[name](optim=QUICK, backbone="small"), stream, runtime)
    fit, _, stage = fits[1]
    step = made_up(4, 2, [0, 2, 3], stage)
    want = -np.log(softmax(step.out.logits.numpy())[range(3), [0, 2, 3]]).mean()
    assert float(fit.loss(step)[0]) == pytest.approx(want, rel=1e-5)
    first, kept = len(stream[0].train), learner.knowledge.memory.budget.quota(4) if name == "replay" else None
    remembered = int((fit.data.labels < 2).sum())
    assert remembered == (first if kept is None else min(first, 2 * kept))


def test_er_ace_lets_new_images_compete_among_their_batch(stream: Stream) -> None:
    step = made_up(5, 2, [3, 4, 3, 0, 1], stream[1], fresh=3)
    logits = step.out.logits.numpy()
    new = -np.log(softmax(logits[:3][:, [3, 4]])[range(3), [0, 1, 0]]).mean()
    old = -np.log(softmax(logits[3:])[range(2), [0, 1]]).mean()
    assert float(NewCrossEntropy(present=True)(step)) == pytest.approx(new, rel=1e-5)
    assert float(RememberedCrossEntropy()(step)) == pytest.approx(old, rel=1e-5)


def test_er_ace_draws_from_a_memory_that_holds_the_new_classes_too(stream: Stream, runtime: Runtime, fits: list[Any]) -> None:
    learnt(ERACE(optim=QUICK, backbone="small"), stream, runtime)
    fit, _, stage = fits[1]
    assert set(fit.data.labels.tolist()) == set(stage.new)
    assert set(fit.rehearsal.samples.labels.tolist()) == set(range(stage.seen))
    assert list(fit.loss.terms) == ["classification", "rehearsal"]


@pytest.mark.parametrize(
    ("name", "classification", "distillation"),
    [("reconstruction-plain", [1, 1 / 2, 1 / 3], [0, 1 / 2, 2 / 3]), ("reconstruction", [1, 1, 1], [0, 1, 1])],
)
def test_reconstruction_takes_its_share_of_what_classification_has(
    name: str, classification: list[float], distillation: list[float], stream: Stream, runtime: Runtime, fits: list[Any]
) -> None:
    learnt(METHODS[name](optim=QUICK, backbone="small", decoding=Decoding(weight=0.6)), stream, runtime, 3)
    found = [[fit.loss.weight(term) for fit, *_ in fits] for term in ("classification", "reconstruction", "distillation")]
    np.testing.assert_allclose(found, [classification, [0.6 * share for share in classification], distillation])


def test_dark_replay_weighs_answers_and_labels_as_its_authors_do(stream: Stream, runtime: Runtime, fits: list[Any]) -> None:
    learnt(DERpp(optim=QUICK, backbone="small"), stream, runtime)
    (first, *_), (second, *_) = fits
    terms = ("classification", "dark", "rehearsal")
    assert [[fit.loss.weight(term) for term in terms] for fit in (first, second)] == [[1, 0, 0], [1, 0.3, 0.5]]


def test_dark_replay_compares_with_what_was_stored(stream: Stream) -> None:
    stored = torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    stored[1, 2] = -torch.inf  # was stored before class 2 came
    step = made_up(5, 2, [3, 4, 0, 1, 2, 1], stream[1], fresh=2, stored=stored)
    logits = step.out.logits.numpy()
    gaps = [logits[2, k] - float(stored[0, k]) for k in range(3)] + [logits[3, k] - float(stored[1, k]) for k in range(2)]
    assert float(Dark()(step)) == pytest.approx(np.mean(np.square(gaps)), rel=1e-5)
    second = -np.log(softmax(logits[4:])[range(2), [2, 1]]).mean()
    assert float(RememberedCrossEntropy(half=True)(step)) == pytest.approx(second, rel=1e-5)


def test_logits_are_stored_when_their_images_are(stream: Stream, runtime: Runtime) -> None:
    learner = learnt(DERpp(optim=QUICK, backbone="small"), stream, runtime, 1)
    memory = learner.knowledge.memory
    first = memory.stored.clone()
    torch.testing.assert_close(first, learner.logits(memory.images), rtol=1e-4, atol=1e-5)
    count = len(memory)
    learner.learn(stream[1])
    assert torch.equal(memory.stored[:count, :2], first)  # what was stored stays as it was
    assert memory.stored[:count, 2:].isneginf().all()
    torch.testing.assert_close(memory.stored[count:], learner.logits(memory.images[count:]), rtol=1e-4, atol=1e-5)


def test_gdumb_learns_from_its_store_alone_and_afresh(stream: Stream, runtime: Runtime, fits: list[Any]) -> None:
    learner = learnt(GDumb(optim=QUICK, backbone="small"), stream, runtime)
    (_, _, _), (fit, before, _) = fits
    assert torch.equal(fit.data.pixels(), learner.knowledge.memory.images)
    teacher = learner.knowledge.teacher
    assert teacher is not None
    assert not torch.equal(before["head.rows.weight"][:2], teacher.state_dict()["head.rows.weight"])
    assert torch.equal(before["normalise.mean"], teacher.state_dict()["normalise.mean"])
    assert int(before["backbone.stages.0.0.1.num_batches_tracked"]) == 0


def test_gdumbs_store_is_balanced(stream: Stream, runtime: Runtime) -> None:
    learner = Learner(GDumb(optim=QUICK, backbone="small"), stream.source.spec, memory=Total(10), runtime=runtime)
    for stage in stream[:2]:
        learner.learn(stage)
    counts = torch.bincount(learner.knowledge.memory.samples().labels).tolist()
    assert (len(counts), max(counts) - min(counts) <= 1, 8 <= sum(counts) <= 10) == (4, True, True)


def test_gdumb_stores_at_random_whatever_the_selection(stream: Stream, runtime: Runtime) -> None:
    stored = []
    for selection in ("herding", "random"):
        learner = Learner(
            GDumb(optim=QUICK, backbone="small"), stream.source.spec, memory=PerClass(4), selection=selection, runtime=runtime
        )
        learner.learn(stream[0])
        stored.append(learner.knowledge.memory.images)
    assert torch.equal(*stored)
    pixels = stream[0].train.pixels()
    assert not any(torch.equal(pixels[start : start + 4], stored[0][:4]) for start in range(0, len(pixels), 4))


def test_a_reservoir_takes_in_what_passed_and_keeps_every_image_equally_likely() -> None:
    labels = torch.tensor([0] * 30 + [1] * 10 + [0] * 4)  # forty new ones, and four remembered
    hits, seen_early = torch.zeros(40), 0
    for seed in range(400):
        draw = torch.Generator().manual_seed(seed)
        worth = torch.cat([torch.rand(40, generator=draw), torch.rand(4, generator=draw).sort().values])
        hands = list(torch.randperm(40, generator=draw).split(10))
        joins = Rehearsal(toy_source().train.take(torch.arange(4)), worth=worth, quota=6)
        rows = joins.rows(hands, labels, draw)
        assert [len(found) for found in rows] == [10] * 4
        assert (rows[0] >= 40).all()  # nothing passed yet
        passed = set(range(40, 44))
        for hand, found in zip(hands, rows, strict=True):
            assert set(found.tolist()) <= passed
            passed |= set(hand.tolist())
        seen_early += len(set(rows[1].tolist()) & set(hands[0].tolist()))
        final = kept(torch.arange(44), labels, worth, 6)
        assert torch.bincount(labels[final]).tolist() == [6, 6]
        hits[final[final < 40]] += 1
    assert seen_early > 400
    assert hits[30:].sum() == 6 * 400
    torch.testing.assert_close(hits[30:] / 400, torch.full((10,), 0.6), atol=0.09, rtol=0)
    assert hits[:30].std() / 400 < 0.04


def test_online_sees_every_image_once_and_remembers_what_its_reservoir_held(stream: Stream, runtime: Runtime) -> None:
    method = METHODS["online"](backbone="small", optim=Optim(epochs=1, batch=4, lr=0.02))
    learner = Learner(method, stream.source.spec, memory=PerClass(3), runtime=runtime)
    for stage in stream[:2]:
        with seeded(0, "probe"):
            torch.manual_seed(derive(0, "phase", stage.index, 0))
            fit, remember, _ = method.phases(learner.knowledge, stage)
        assert torch.equal(fit.rehearsal.worth, remember.worth)
        labels = torch.cat([stage.train.labels, learner.knowledge.memory.labels])
        pixels = torch.cat([stage.train.pixels(), learner.knowledge.memory.images])
        final = kept(torch.arange(len(labels)), labels, fit.rehearsal.worth, 3)
        rows = learner.learn(stage).rows
        assert [row["images"] for row in rows] == [len(stage.train)]
        assert torch.equal(learner.knowledge.memory.labels, labels[final])
        assert torch.equal(learner.knowledge.memory.images, pixels[final])
    assert learner.knowledge.statistics["arrived"].tolist() == [12] * 4
