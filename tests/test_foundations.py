"""Settings, files and seeds."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import tomli_w
import torch

from nacre import files, settings
from nacre.errors import NacreError
from nacre.experiment import Experiment
from nacre.seeds import derive, seeded
from nacre.training.optim import Optim


def test_nested_settings_overlay_their_defaults() -> None:
    whole = Experiment.of({"method": {"name": "reconstruction", "optim": {"lr": "0.2"}, "later": {"epochs": 3}}, "seed": "4"})
    assert (whole.method.optim.lr, whole.method.optim.epochs, whole.seed) == (0.2, Optim().epochs, 4)
    assert whole.method.later == Optim(epochs=3)
    assert whole.method.decoding is not None
    assert Experiment.of({"method": {"decoding": "none"}}).method.decoding is None
    assert Experiment.of({"method": {"decoding": {"weight": 1}}}).method.decoding.weight == 1  # type: ignore[union-attr]


def test_a_whole_experiment_survives_text() -> None:
    whole = Experiment.of({"method": {"name": "replay", "decoding": {"weight": 0.1}}, "hardware": {"threads": 2}})
    assert Experiment.of(tomllib.loads(whole.toml())) == whole
    assert tomllib.loads(tomli_w.dumps(settings.plain(whole.method.optim))) == settings.plain(whole.method.optim)


def test_values_and_keys_that_do_not_fit_are_all_named() -> None:
    with pytest.raises(NacreError) as caught:
        Experiment.of({"sed": 1, "checkpoint": "soon", "method": {"optim": {"schedule": "cosin", "lrr": 1}}})
    text = str(caught.value)
    assert all(word in text for word in ("sed", "'seed'", "checkpoint = 'soon'", "schedule = 'cosin'", "'cosine'", "lrr", "'lr'"))


def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    files.write(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fail)
        with pytest.raises(OSError, match="disk"):
            files.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    files.write(path, b"new")
    assert path.read_text() == "new"


def tensors() -> dict[str, torch.Tensor]:
    return {
        "empty": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "half": torch.randn(3).bfloat16(),
        "mask": torch.tensor([True, False]),
        "last": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
    }


def test_tensors_survive_the_file(tmp_path: Path) -> None:
    given = tensors()
    files.write_tensors(tmp_path / "t", given, {"a": [1, None, float("nan")], "ü": "<"})
    found, header = files.read_tensors(tmp_path / "t")
    assert header == {"a": [1, None, None], "ü": "<"}
    assert given.keys() == found.keys()
    assert all(torch.equal(given[name], found[name]) and given[name].dtype == found[name].dtype for name in given)


def test_every_cut_and_every_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t"
    files.write_tensors(path, {"x": torch.arange(3.0), "y": torch.tensor(1)}, {"kind": "test"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(NacreError):
            files.read_tensors(path)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bytes(damaged))
        with pytest.raises(NacreError):
            files.read_tensors(path)


def test_json_is_json_for_everyone() -> None:
    assert json.loads(files.as_json({"a": float("inf"), "b": [float("nan"), 1.5]})) == {"a": None, "b": [None, 1.5]}


def test_seeds_are_of_their_place() -> None:
    places = [derive(seed, *place) for seed in range(3) for place in (("a",), ("a", 0), ("a", 1), ("a", 1, 0), ("b", 10))]
    assert len(set(places)) == len(places)
    assert all(0 <= seed < 2**63 for seed in places)
    assert derive(0, "epoch", 1) == 4881053280315073578


def test_seeding_gives_the_callers_state_back() -> None:
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    with seeded(1, "here"):
        first = torch.rand(2)
    assert torch.equal(torch.rand(2), want)
    with seeded(1, "here"):
        assert torch.equal(torch.rand(2), first)
