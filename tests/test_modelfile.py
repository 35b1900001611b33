"""One model file: whole or refused in one sentence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nacre import files, modelfile
from nacre.data.memory import Total
from nacre.data.stream import Stream
from nacre.errors import NacreError
from nacre.experiment import Experiment
from nacre.methods import METHODS
from nacre.training.learner import Learner
from nacre.training.optim import Optim
from nacre.training.runtime import Runtime


@pytest.fixture
def saved(stream: Stream, runtime: Runtime, tmp_path: Path) -> Path:
    method = METHODS["reconstruction"](optim=Optim(epochs=1, batch=16))
    learner = Learner(method, stream.source.spec, memory=Total(5), selection="random", seed=4, runtime=runtime)
    learner.learn(stream[0])
    modelfile.save(tmp_path / "m.nacre", learner)
    return tmp_path / "m.nacre"


def test_a_loaded_learner_is_the_saved_one(saved: Path, stream: Stream, runtime: Runtime) -> None:
    learner, _ = modelfile.load(saved, runtime)
    assert (learner.seed, learner.stages, learner.classes) == (4, 1, stream.classes[:2])
    assert (learner.knowledge.memory.budget, learner.knowledge.memory.selection) == (Total(5), "random")
    assert len(learner.knowledge.memory) == 4
    assert learner.spec == stream.source.spec
    assert set(learner.predict(stream[0].test.pixels()).tolist()) <= {0, 1}


def test_loading_leaves_the_callers_random_numbers_alone(saved: Path, runtime: Runtime) -> None:
    before = torch.get_rng_state()
    modelfile.load(saved, runtime)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_cut_short_is_refused(saved: Path, share: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(share * len(data))])
    with pytest.raises(NacreError, match="cut short, damaged"):
        modelfile.load(saved)


@pytest.mark.parametrize("place", [0.0, 0.0001, 0.01, 0.1, 0.5, 0.99999])
def test_a_flipped_bit_is_refused(saved: Path, place: float) -> None:
    data = bytearray(saved.read_bytes())
    data[int(place * (len(data) - 1))] ^= 4
    saved.write_bytes(bytes(data))
    with pytest.raises(NacreError, match=r"damaged|not nacre's|format"):
        modelfile.load(saved)


def test_a_newer_format_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "FORMAT", 0)
    with pytest.raises(NacreError, match="install a newer nacre"):
        modelfile.load(saved)


def test_what_is_not_ours_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(NacreError, match="not nacre's"):
        modelfile.load(tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(NacreError, match="damaged"):
        modelfile.load(tmp_path / "text")
    with pytest.raises(NacreError, match="no model file"):
        modelfile.load(tmp_path / "nothing")
    with pytest.raises(NacreError, match="no model file"):
        modelfile.load(tmp_path)


def test_a_whole_header_that_makes_no_sense_is_refused(saved: Path) -> None:
    tensors, header = files.read_tensors(saved)
    for change in (
        {"method": {"name": "gone"}},
        {"shape": "x"},
        {"classes": 3},
        {"shape": [3, 9, 9]},
        {"kind": "journal"},
        {"method": {"head": "linear"}},
    ):
        files.write_tensors(saved, tensors, {**header, **change})
        with pytest.raises(NacreError):
            modelfile.load(saved)
    files.write_tensors(saved, {name: tensor for name, tensor in tensors.items() if "head" not in name}, header)
    with pytest.raises(NacreError, match="does not fit"):
        modelfile.load(saved)


def test_a_setting_that_is_gone_is_passed_over_where_it_did_nothing(saved: Path) -> None:
    tensors, header = files.read_tensors(saved)
    for value, read in ((0.0, True), (0.3, False)):
        header["method"]["decoding"]["anchor"] = value
        files.write_tensors(saved, tensors, header)
        if read:
            assert modelfile.load(saved)[0].method == METHODS["reconstruction"](optim=Optim(epochs=1, batch=16))
            assert Experiment.of({"method": {"decoding": {"anchor": value}}}) == Experiment.of({})
        else:
            with pytest.raises(NacreError, match="anchor"):
                modelfile.load(saved)


@pytest.mark.parametrize("labels", [[0, 0, 1, -(2**63)], [-1, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 2]])
def test_exemplars_of_no_class_are_refused(saved: Path, labels: list[int]) -> None:
    tensors, header = files.read_tensors(saved)
    assert tensors["memory/labels"].tolist() == [0, 0, 1, 1]
    files.write_tensors(saved, tensors | {"memory/labels": torch.tensor(labels)}, header)
    with pytest.raises(NacreError, match="not those of 2 classes"):
        modelfile.load(saved)


def test_a_failed_save_leaves_the_old_file(saved: Path, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, _ = modelfile.load(saved, runtime)
    before = saved.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(NacreError, match="no room on the disk"):
        modelfile.save(saved, learner)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_settings_of_the_method_travel(saved: Path, stream: Stream, runtime: Runtime, tmp_path: Path) -> None:
    method = replace(METHODS["replay"](), head="cosine", later=Optim(epochs=3, milestones=(0.25,)))
    modelfile.save(tmp_path / "r.nacre", Learner(method, stream.source.spec, runtime=runtime))
    assert modelfile.load(tmp_path / "r.nacre", runtime)[0].method == method
