"""A model in use, taught from folders: what is learnt, what is kept, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from classroom import QUICK, SAME, nacre, pictures
from nacre import modelfile
from nacre.cli import app
from nacre.training.runtime import Runtime


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "300"})


def answer(*arguments: str | Path) -> dict:
    result = call(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def refused(*arguments: str | Path, code: int = 2) -> str:
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    return result.stderr


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("first"), {"cat": 1, "dog": 2, "emu": 3})


@pytest.fixture(scope="module")
def taught(first: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    model = tmp_path_factory.mktemp("taught") / "m.nacre"
    result = call("learn", model, first, *QUICK, *SAME)
    assert result.exit_code == 0, result.stderr
    return model.read_bytes()


@pytest.fixture
def model(taught: bytes, tmp_path: Path) -> Path:
    path = tmp_path / "m.nacre"
    path.write_bytes(taught)
    return path


def test_a_first_lesson_makes_a_model(model: Path, first: Path) -> None:
    learner, more = modelfile.load(model)
    assert learner.classes == ("cat", "dog", "emu")
    assert learner.came == (0, 0, 0)
    assert learner.images == (18, 18, 18)
    assert torch.bincount(learner.knowledge.held.labels).tolist() == [2, 2, 2]
    (lesson,) = more["lessons"]
    assert lesson["new"] == ["cat", "dog", "emu"]
    assert lesson["after"]["all"] > 0.8
    assert lesson["before"]["all"] is None
    held = {image.numpy().tobytes() for image in learner.knowledge.held.images}
    assert not held & {image.numpy().tobytes() for image in learner.knowledge.memory.images}


def test_a_second_lesson_brings_new_classes_and_further_images_of_known_ones(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    more = pictures(tmp_path / "more", {"dog": 2}, start=20)
    pictures(more, {"fox": 4, "gnu": 5})
    said = answer("learn", model, more, *SAME)
    assert (said["stage"], said["new"], said["further"]) == (2, ["fox", "gnu"], ["dog"])
    assert (said["images"], said["held_out"]) == (54, 6)
    learner, _ = modelfile.load(model)
    assert learner.classes == ("cat", "dog", "emu", "fox", "gnu")
    assert learner.came == (0, 0, 0, 1, 1)
    assert learner.images == (18, 36, 18, 18, 18)
    assert torch.bincount(learner.knowledge.held.labels).tolist() == [2, 4, 2, 2, 2]
    assert said["after"]["new"] > 0.7
    assert said["before"]["old"] is not None
    assert (tmp_path / "m.nacre.prev").read_bytes() == before
    assert said["bytes"] == model.stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {"m.nacre", "m.nacre.prev", "more", ".m.nacre.lock"}


def test_further_images_of_known_classes_alone(model: Path, tmp_path: Path) -> None:
    said = answer("learn", model, pictures(tmp_path / "more", {"cat": 1, "emu": 3}, start=20), *SAME, "--no-previous")
    assert (said["new"], said["further"]) == ([], ["cat", "emu"])
    assert said["after"]["old"] > 0.7
    assert not (tmp_path / "m.nacre.prev").exists()


def test_a_lesson_begins_with_what_will_make_it_slow(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "notes", ["[all] cores are busy"])
    result = call("learn", model, pictures(tmp_path / "more", {"fox": 4}), *SAME)
    assert result.exit_code == 0, result.stderr
    assert result.stderr.startswith("note [all] cores are busy\n")


def test_images_that_were_held_out_are_never_learnt_from(model: Path, first: Path, tmp_path: Path) -> None:
    before = modelfile.load(model)[0].knowledge.held.images
    more = pictures(tmp_path / "more", {"cat": 1, "dog": 2, "emu": 3})  # the same images, and a new class
    pictures(more, {"fox": 4})
    said = answer("learn", model, more, *SAME)
    assert said["images"] + said["held_out"] == 80 - len(before)
    learner, _ = modelfile.load(model)
    learnt = {image.numpy().tobytes() for image in learner.knowledge.memory.images}
    assert not learnt & {image.numpy().tobytes() for image in before}


def test_the_same_images_again_are_nothing_to_do(model: Path, first: Path) -> None:
    before = model.read_bytes()
    said = answer("learn", model, first)
    assert said["already"]
    assert not said["learnt"]
    assert model.read_bytes() == before
    assert "nothing to do" in call("learn", model, first).stdout


def test_a_model_that_forgets_too_much_is_not_kept(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    folder = pictures(tmp_path / "new", {"fox": 4})
    result = call("learn", model, folder, *SAME, "--max-drop", "-101")
    assert result.exit_code == 3
    assert "kept the old model" in result.stdout
    assert model.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"m.nacre", "new", ".m.nacre.lock"}
    assert call("learn", model, folder, *SAME, "--max-drop", "101").exit_code == 0
    assert modelfile.load(model)[0].classes[-1] == "fox"


def test_nothing_held_out_is_nothing_measured(first: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.nacre"
    result = call("learn", model, first, *QUICK, *SAME, "--check", "0")
    assert "no image was held out" in result.stdout
    folder = pictures(tmp_path / "new", {"fox": 4})
    assert "--max-drop has nothing to measure" in refused("learn", model, folder, "--max-drop", "5")
    assert answer("learn", model, folder, *SAME)["before"]["old"] is None


def test_a_plan_changes_nothing_and_comes_true(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    folder = pictures(tmp_path / "new", {"fox": 4, "gnu": 5})
    plan = answer("learn", model, folder, *SAME, "--plan")
    assert (plan["new"], plan["images"], plan["held_out"]) == (["fox", "gnu"], 36, 4)
    assert model.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"m.nacre", "new", ".m.nacre.lock"}
    said = answer("learn", model, folder, *SAME)
    assert plan["bytes"] == pytest.approx(said["bytes"], rel=0.02)
    assert 0 < plan["seconds"] < 60


@pytest.mark.parametrize("method", ["ewc", "der", "acil", "pass", "der++"])
def test_a_plan_knows_how_large_any_model_will_be(method: str, first: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.nacre"
    asked = ["learn", model, first, *QUICK, *SAME, "--method", method]
    plan = answer(*asked, "--plan")
    assert not model.exists()
    assert plan["bytes"] == pytest.approx(answer(*asked)["bytes"], rel=0.03)


def test_settings_stay_with_the_model(model: Path, first: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "new", {"fox": 4})
    message = refused("learn", model, folder, "--method", "icarl", "--size", "16", "--set", "optim.lr=1")
    assert all(word in message for word in ("its own settings", "name", "size", "lr"))


def test_images_take_the_models_form(model: Path, tmp_path: Path) -> None:
    folder = pictures(tmp_path / "grey", {"fox": 4}, size=30, channels=1)
    assert answer("learn", model, folder, *SAME)["new"] == ["fox"]
    assert modelfile.load(model)[0].spec.shape == (3, 8, 8)


def test_colour_pictures_become_grey_for_a_grey_model(tmp_path: Path) -> None:
    model = tmp_path / "m.nacre"
    assert call("learn", model, pictures(tmp_path / "a", {"cat": 1, "dog": 2}, channels=1), *QUICK, *SAME).exit_code == 0
    assert answer("learn", model, pictures(tmp_path / "b", {"emu": 3}), *SAME)["new"] == ["emu"]
    assert modelfile.load(model)[0].spec.shape == (1, 8, 8)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{model}", "{first}/nothing"], ["give a path that is there"]),
        (["{model}", "{first}", "--check", "1.5"], ["must be in [0, 1)"]),
        (["{first}/none/m.nacre", "{first}"], ["no folder"]),
        (["{first}/cat/000.png", "{first}"], ["damaged, or no model file"]),
        (["{model}", "{first}", "--device", "tpu"], ["tpu"]),
    ],
)
def test_mistakes_are_told(arguments: list[str], words: list[str], model: Path, first: Path) -> None:
    message = refused("learn", *(argument.format(model=model, first=first) for argument in arguments))
    assert all(word in message for word in words)


def test_of_two_processes_the_second_says_who_holds_the_model(first: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.nacre"
    holding = nacre("learn", model, first, *QUICK[2:], *SAME, "--epochs", "400", "--set", "checkpoint=0")
    try:
        while not (tmp_path / ".m.nacre.holder").exists():
            assert holding.poll() is None, holding.communicate()
        message = refused("learn", model, first)
        assert f"process {holding.pid}" in message
        assert "--wait" in message
        waiting = nacre("learn", model, first, "--wait", *QUICK, *SAME)
        assert waiting.poll() is None
    finally:
        holding.kill()
        holding.communicate()
    out, errors = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, errors
    assert "knows 3 classes now" in out
