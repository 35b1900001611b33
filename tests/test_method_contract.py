"""What every method must hold, the moment it is registered: three toy stages each."""

from __future__ import annotations

import tomllib
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w
import torch
from torch import Tensor

from nacre import modelfile
from nacre.data.memory import PerClass, Total
from nacre.data.source import Samples
from nacre.data.stream import Stream
from nacre.methods.simplecil import SimpleCIL
from nacre.training.journal import Journal, Row
from nacre.training.learner import Learner, accuracy
from nacre.training.method import Decoding, Method
from nacre.training.phases import Adjust, Fit, Phase, Remember, Watch, Work
from nacre.training.runtime import Hardware, Runtime


def learnt(method: Method, stream: Stream, runtime: Runtime, seed: int = 0, until: int = 3) -> tuple[Learner, list[list[float]]]:
    learner, rows = Learner(method, stream.source.spec, seed=seed, runtime=runtime), []
    for stage in stream[:until]:
        learner.learn(stage)
        rows.append([accuracy(learner, past.test) for past in stream[: stage.index + 1]])
    return learner, rows


@dataclass
class Reference:
    """A run with seed 0, undisturbed, after each stage; computed once for all tests that compare with it."""

    states: list[dict[str, Tensor]]
    accuracies: list[list[float]]
    logs: list[list[Row]]


REFERENCES: dict[str, Reference] = {}


def reference(method: Method, stream: Stream, runtime: Runtime) -> Reference:
    if str(method) not in REFERENCES:
        learner, found = Learner(method, stream.source.spec, runtime=runtime), Reference([], [], [])
        for stage in stream:
            found.logs.append(learner.learn(stage).rows)
            found.states.append({name: tensor.clone() for name, tensor in learner.state().items()})
            found.accuracies.append([accuracy(learner, past.test) for past in stream[: stage.index + 1]])
        REFERENCES[str(method)] = found
    return REFERENCES[str(method)]


def trains(method: Method) -> bool:
    """Whether a method has any fit; one has none."""
    return not isinstance(method, SimpleCIL)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_answers_cover_exactly_the_seen_classes(method: Method, stream: Stream, runtime: Runtime) -> None:
    learner = Learner(method, stream.source.spec, runtime=runtime)
    for stage in stream:
        learner.learn(stage)
        logits = learner.logits(stage.test.pixels())
        assert logits.shape == (len(stage.test), stage.seen)
        assert torch.isfinite(logits).all()
        assert learner.classes == stream.classes[: stage.seen]


@pytest.mark.parametrize("budget", [Total(7), PerClass(3)])
def test_memory_is_never_over_budget(method: Method, stream: Stream, runtime: Runtime, budget: Total | PerClass) -> None:
    learner = Learner(method, stream.source.spec, memory=budget, runtime=runtime)
    for stage in stream:
        learner.learn(stage)
        count = torch.bincount(learner.knowledge.memory.labels, minlength=stage.seen)
        assert (count <= budget.quota(stage.seen)).all()
        assert len(count) == stage.seen


def test_saved_loaded_and_gone_on_is_bit_equal(method: Method, stream: Stream, runtime: Runtime, tmp_path: Path) -> None:
    whole = reference(method, stream, runtime)
    half, _ = learnt(method, stream, runtime, until=2)
    modelfile.save(tmp_path / "m.nacre", half, {"note": 1})
    back, more = modelfile.load(tmp_path / "m.nacre", runtime)
    assert more == {"note": 1}
    assert back.method == method
    back.learn(stream[2])
    assert same(back.state(), whole.states[2])
    assert [accuracy(back, stage.test) for stage in stream] == whole.accuracies[2]


class Killed(Exception):  # noqa: N818 - no error, a kill
    pass


class KillAt(Watch):
    def __init__(self, epoch: int) -> None:
        self.left = epoch

    def step(self, images: int) -> None:
        if self.left == 0:
            raise Killed

    def epoch(self, row: Row) -> None:
        self.left -= 1


@pytest.mark.parametrize("epoch", [0, 1, 2])  # the third is the first of a second fit
def test_killed_inside_a_stage_goes_on_bit_equal(method: Method, stream: Stream, runtime: Runtime, tmp_path: Path, epoch: int) -> None:
    whole = reference(method, stream, runtime)
    fits = bool(whole.logs[1])
    if epoch and epoch >= len(whole.logs[1]):
        return  # there is no such epoch
    half, _ = learnt(method, stream, runtime, until=1)
    modelfile.save(tmp_path / "m.nacre", half)
    with suppress(Killed):
        half.learn(stream[1], Journal(tmp_path / "journal", every=0), KillAt(epoch))
        assert not fits  # only a stage without a fit cannot be killed in one
    back, _ = modelfile.load(tmp_path / "m.nacre", runtime)
    journal = back.learn(stream[1], Journal(tmp_path / "journal", every=0))
    assert same(back.state(), whole.states[1])
    assert [row["epoch"] for row in journal.rows][:2] == ([1, 2] if fits else [])


def test_finished_phases_are_not_run_again(
    method: Method, stream: Stream, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = reference(method, stream, runtime)
    Learner(method, stream.source.spec, runtime=runtime).learn(stream[0], Journal(tmp_path / "journal"))
    monkeypatch.setattr(Fit, "run", lambda self, work: pytest.fail("a finished fit ran again"))
    back = Learner(method, stream.source.spec, runtime=runtime)
    back.learn(stream[0], Journal(tmp_path / "journal"))
    assert same(back.state(), whole.states[0])


def test_same_seed_same_run_other_seed_other_run(method: Method, stream: Stream, runtime: Runtime) -> None:
    first = reference(method, stream, runtime).states[1]
    torch.rand(17)  # the caller's random numbers are none of a learner's
    again, _ = learnt(method, stream, runtime, until=2)
    other, _ = learnt(method, stream, runtime, until=2, seed=1)
    assert same(first, again.state())
    assert not same(first, other.state())


class Spy:
    """Images that remember which rows were read."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.read = images, torch.zeros(len(images), dtype=torch.bool)

    @property
    def shape(self) -> torch.Size:
        return self.images.shape

    def __getitem__(self, rows: Tensor) -> Tensor:
        self.read[rows] = True
        return self.images[rows]


def test_only_the_stages_own_images_are_touched(method: Method, source: Any, runtime: Runtime) -> None:
    spy, unused = Spy(source.train.images), Spy(source.test.images)
    train = Samples(spy, source.train.labels, source.train.rows)
    test = Samples(unused, source.test.labels, source.test.rows)
    stream = Stream(replace(source, train=train, test=test), [2, 2, 2], seed=0)
    learner = Learner(method, stream.source.spec, runtime=runtime)
    for stage in stream:
        spy.read[:] = False
        learner.learn(stage)
        assert set(torch.nonzero(spy.read).flatten().tolist()) <= set(stage.train.rows.tolist())
        assert spy.read.any()
    assert not unused.read.any()


def test_the_teacher_is_unchanged_by_learning(method: Method, stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, _ = learnt(method, stream, runtime, until=1)
    seen: list[dict[str, Tensor]] = []

    def watched(run: Any) -> Any:
        def spied(self: Phase, work: Work) -> None:
            assert work.knowledge.teacher is not None
            seen.append({name: tensor.clone() for name, tensor in work.knowledge.teacher.state_dict().items()})
            run(self, work)

        return spied

    for kind in (Fit, Adjust, Remember):
        monkeypatch.setattr(kind, "run", watched(kind.run))
    learner.learn(stream[1])
    assert learner.knowledge.teacher is not None
    assert not any(parameter.requires_grad for parameter in learner.knowledge.teacher.parameters())
    assert same(seen[0], learner.knowledge.teacher.state_dict())


def test_frozen_parameters_stay_and_trainability_is_given_back(
    method: Method, stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, checked = Fit.run, []

    def spied(self: Fit, work: Work) -> None:
        first = next(self.model.backbone.parameters()).requires_grad_(False)
        before = first.clone()
        run(self, work)
        checked.append(torch.equal(first, before) and not first.requires_grad and first.grad is None)
        first.requires_grad_(True)

    monkeypatch.setattr(Fit, "run", spied)
    learnt(method, stream, runtime, until=2)
    assert bool(checked) == trains(method)
    assert all(checked)


def test_bf16_and_channels_last_serve_every_method(method: Method, stream: Stream) -> None:
    half = Runtime(Hardware(device="cpu", precision="bf16", layout="channels-last", threads=1))
    learner, _ = learnt(method, stream, half, until=2)
    assert torch.isfinite(learner.logits(stream[1].test.pixels())).all()


def test_predicting_changes_nothing(method: Method, stream: Stream, runtime: Runtime) -> None:
    learner, _ = learnt(method, stream, runtime, until=2)
    before, random = {name: tensor.clone() for name, tensor in learner.state().items()}, torch.get_rng_state()
    images = stream[1].test.pixels()
    assert torch.equal(learner.predict(images), learner.predict(images))
    assert same(before, learner.state())
    assert torch.equal(random, torch.get_rng_state())


def test_settings_survive_text(method: Method) -> None:
    text = tomli_w.dumps(modelfile.method_settings(method))
    assert modelfile.method_of(tomllib.loads(text)) == method


def test_every_term_has_a_column_in_the_log(method: Method, stream: Stream, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    names: set[str] = set()
    run = Fit.run

    def spied(self: Fit, work: Work) -> None:
        names.update(self.loss.terms)
        run(self, work)

    monkeypatch.setattr(Fit, "run", spied)
    learner = Learner(method, stream.source.spec, runtime=runtime)
    for stage in stream[:2]:
        names.clear()
        journal = learner.learn(stage)
        assert names or ((stage.index or not trains(method)) and not journal.rows)
        assert names <= {column for row in journal.rows for column in row}


def test_reconstruction_of_weight_zero_is_bit_identical_to_none(method: Method, stream: Stream, runtime: Runtime) -> None:
    without = reference(replace(method, decoding=None), stream, runtime)
    silent, silent_rows = learnt(replace(method, decoding=Decoding(weight=0)), stream, runtime)
    base = {name: tensor for name, tensor in silent.state().items() if not name.startswith("model/decoder.")}
    assert len(base) < len(silent.state())
    assert same(without.states[2], base)
    assert without.accuracies == silent_rows
    asked, _ = learnt(replace(method, decoding=Decoding(weight=0.3)), stream, runtime, until=1)
    trained = {name: tensor for name, tensor in asked.state().items() if not name.startswith("model/decoder.")}
    assert same(without.states[0], trained) != trains(method)
