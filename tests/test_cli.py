"""The command line: what it says, where it says it, and with which exit code it leaves."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from nacre.cli import app
from nacre.methods import METHODS
from nacre.training.runtime import Runtime

QUICK = ["--epochs", "1", "--precision", "fp32", "--set", "hardware.layout=contiguous", "--set", "hardware.threads=1", "--device", "cpu"]


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "400"})


def refused(*arguments: str) -> str:
    """The one message of a refusal; nothing on stdout."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr


def test_a_run_prints_results_and_writes_its_folder(tmp_path: Path) -> None:
    out = tmp_path / "run"
    result = call("run", *QUICK, "--out", str(out))
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("stage")] == ["1/5", "2/5", "3/5", "4/5", "5/5"]
    measured = json.loads((out / "metrics.json").read_text())
    summary = measured["results"]["summary"]
    for label, value in (("average incremental accuracy", summary["average_incremental"]), ("last accuracy", summary["last"])):
        (line,) = [line for line in lines if line.startswith(label)]
        assert f"{100 * value:.1f} %" in line
    assert f"{100 * summary['forgetting']:.1f} points" in result.stdout
    assert str(out / "report.html") in result.stdout
    assert {path.name for path in out.iterdir()} == {"config.toml", "metrics.json", "log.csv", "model.nacre", "report.html"}
    assert "\x1b" not in result.output  # no terminal, no colours and no bar


def test_a_run_begins_with_what_will_make_it_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Runtime, "notes", ["[all] cores are busy"])
    result = call("run", *QUICK, "--method", "finetune", "--out", str(tmp_path / "run"))
    assert result.stderr.startswith("note [all] cores are busy\n")


def test_json_prints_the_metrics_and_nothing_else(tmp_path: Path) -> None:
    result = call("run", *QUICK, "--method", "finetune", "--json", "--out", str(tmp_path / "run"))
    assert json.loads(result.stdout) == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert result.stderr == ""


def test_quiet_prints_nothing(tmp_path: Path) -> None:
    result = call("run", *QUICK, "--method", "finetune", "--quiet", "--out", str(tmp_path / "run"))
    assert (result.exit_code, result.output) == (0, "")


def test_options_and_recipe_land_in_the_configuration(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('seed = 5\n[method]\nname = "replay"\n[method.optim]\nlr = 0.02\nbatch = 64\n')
    options = ["--seed", "6", "--set", "optim.batch=128", "--set", "selection=random", "--reconstruction", "0.1", "--head", "cosine"]
    result = call("run", str(recipe), *QUICK, *options, "--memory", "30", "--quiet", "--out", str(tmp_path / "run"))
    assert result.exit_code == 0, result.stderr
    config = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (config["seed"], config["memory"], config["selection"]) == (6, "30", "random")
    assert (config["method"]["name"], config["method"]["head"]) == ("replay", "cosine")
    assert config["method"]["decoding"]["weight"] == 0.1
    assert (config["method"]["optim"]["lr"], config["method"]["optim"]["batch"], config["method"]["optim"]["epochs"]) == (0.02, 128, 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--method", "reconstrucion"], ["'reconstrucion'", "use one of", "Did you mean 'reconstruction'?"]),
        (["--data", "digit"], ["'digit'", "Did you mean 'digits'?"]),
        (["--protocol", "b0inc2"], ["'b0inc2'", "b0-inc2"]),
        (["--protocol", "b0-inc20"], ["b0-inc20", "10 classes"]),
        (["--memory", "lots"], ["'lots'", "20/class"]),
        (["--backbone", "resnet23"], ["'resnet23'", "Did you mean 'resnet"]),
        (["--head", "cosin"], ["'cosin'", "Did you mean 'cosine'?"]),
        (["--precision", "fp16"], ["hardware.precision = 'fp16'", "fp32"]),
        (["--set", "optim.lrr=3"], ["method.optim.lrr", "Did you mean 'lr'?"]),
        (["--set", "sead=3"], ["'sead'", "Did you mean 'seed'?"]),
        (["--set", "seed"], ["'seed'", "key=value"]),
        (["--set", "optim.epochs=0"], ["epochs is 0", "1 or more"]),
        (["--set", "decoding.weight=-1"], ["weight is -1", "0 or more"]),
        (["--selection", "x"], ["--selection"]),
        (["--resume", "nowhere"], ["nowhere", "holds no run"]),
        (["--resume", "nowhere", "--seed", "3"], ["leave the other settings out"]),
        (["nothing.toml"], ["nothing.toml", "cannot read"]),
    ],
)
def test_a_mistake_gets_one_message_and_exit_code_two(arguments: list[str], words: list[str]) -> None:
    message = refused("run", *arguments)
    for word in words:
        assert word in message


def test_all_mistakes_come_in_one_message() -> None:
    message = refused("run", "--set", "sead=3", "--set", "optim.lrr=1", "--set", "optim.batch=0")
    assert all(word in message for word in ("sead", "lrr", "batch is 0"))


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    assert "--resume" in refused("run", *QUICK, "--out", str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_damaged_model_is_refused_on_resume(tmp_path: Path) -> None:
    assert call("run", *QUICK, "--method", "finetune", "--quiet", "--out", str(tmp_path / "run")).exit_code == 0
    model = tmp_path / "run" / "model.nacre"
    model.write_bytes(model.read_bytes()[:-100])
    assert "cut short, damaged" in refused("run", "--resume", str(tmp_path / "run"))


def test_divergence_is_one_message(tmp_path: Path) -> None:
    message = refused("run", *QUICK[2:], "--epochs", "3", "--set", "optim.lr=1e30", "--quiet", "--out", str(tmp_path / "run"))
    assert "lower optim.lr" in message


def test_methods_lists_them_all() -> None:
    shown = call("methods").stdout
    assert all(name in shown for name in METHODS)
    listed = json.loads(call("methods", "--json").stdout)
    assert [row["name"] for row in listed] == list(METHODS)
    assert all(row["family"] and row["paper"] and row["what"] for row in listed)
    for row, cls in zip(listed, METHODS.values(), strict=True):
        assert set(row["needs"]) == cls.needs
        assert (row["carried_bytes"] is None) == ("pre-training" in cls.needs)
    line = next(line for line in shown.splitlines() if line.startswith("wa "))
    assert re.split(r" {2,}", line.strip()) == ["wa", "representation", "exemplars, old model", "8.0 MB", "Zhao et al., CVPR 2020"]


@pytest.mark.parametrize("width", [80, 100])
def test_methods_fit_a_terminal(width: int) -> None:
    shown = CliRunner().invoke(app, ["methods"], env={"COLUMNS": str(width)}).stdout
    assert max(map(len, shown.splitlines())) <= width
    assert all(any(line.startswith(f"{name} ") for line in shown.splitlines()) for name in METHODS)
    assert "…" not in shown


def test_report_again_with_the_joint_run(tmp_path: Path) -> None:
    for name in ("finetune", "joint"):
        assert call("run", *QUICK, "--method", name, "--quiet", "--out", str(tmp_path / name)).exit_code == 0
    result = call("report", str(tmp_path / "finetune"), "--joint", str(tmp_path / "joint"))
    assert result.stdout.strip() == str(tmp_path / "finetune" / "report.html")
    assert "ntransigence" in (tmp_path / "finetune" / "report.html").read_text()
    measured = json.loads((tmp_path / "joint" / "metrics.json").read_text())
    for change, said in (({"order": measured["order"][::-1]}, "another stream"), ({"method": "replay"}, "is a run of replay")):
        (tmp_path / "joint" / "metrics.json").write_text(json.dumps({**measured, **change}))
        assert said in refused("report", str(tmp_path / "finetune"), "--joint", str(tmp_path / "joint"))
    assert "holds no run" in refused("report", str(tmp_path))


def test_the_version_is_printed() -> None:
    from nacre import __version__

    assert call("--version").stdout.strip() == __version__
