"""Arms against a baseline: what is paired, what is refused, what is told."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner

from classroom import QUICK, SAME, pictures
from nacre.cli import app
from nacre.compare import CIRCUMSTANCES, leaves
from nacre.compare_text import chance, signed
from nacre.evaluation.paired import Difference, difference
from nacre.experiment import instructions
from nacre.study import Store, Study

STUDY = """
seeds = 4
[base]
data = "digits"
[arms.plain]
method.name = "replay"
[arms.better]
method.name = "icarl"
[arms."<b>odd</b>"]
method.name = "lwf"
[arms.waiting]
method.name = "wa"
"""
SHIFT = {"plain": 0.0, "better": 0.05, "<b>odd</b>": -0.02}


def metrics(arm: str, seed: int, **more: Any) -> dict[str, Any]:
    average = 0.6 + 0.01 * seed + SHIFT[arm] * (1 + seed / 10)
    summary = {"average_incremental": average, "last": average - 0.1, "forgetting": 0.3 - SHIFT[arm], "probe": 0.7}
    stages = [{"readouts": {"head": {"accuracy": 0.5 + SHIFT[arm]}, "linear": {"accuracy": 0.4 + 0.01 * seed + 2 * SHIFT[arm]}}}] * 2
    found = {
        "method": arm,
        "data": "digits",
        "protocol": "b0-inc2",
        "seed": seed,
        "classes": [str(seed), "9"],
        "test_images": [3, 3],
        "complete": True,
    }
    return {
        **found,
        "complete": True,
        "results": {"summary": summary, "stages": stages},
        "cost": {"seconds": 1.0, "carried_bytes": 10},
        **more,
    }


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """Three arms with runs, the last of them of three seeds alone."""
    path = tmp_path / "study.toml"
    path.write_text(STUDY)
    plan = Study.load(path)
    Store(plan.store)
    base = sqlite3.connect(plan.store)
    with base:
        for trial in plan.trials():
            if trial.arm in SHIFT and (trial.arm, trial.seed) != ("<b>odd</b>", 3):
                base.execute("insert into runs values (?, '', ?, '', '')", (trial.key, json.dumps(metrics(trial.arm, trial.seed))))
    return path


def asked(*arguments: object) -> Any:
    result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize(
    ("value", "text"), [(0.04, "+0.0"), (-0.04, "-0.0"), (0.0, "0.0"), (-1e-17, "0.0"), (1.26, "+1.3"), (-1.26, "-1.3")]
)
def test_what_is_rounded_to_zero_keeps_its_sign(value: float, text: str) -> None:
    assert signed(value, "+.1f").replace("\N{MINUS SIGN}", "-") == text


def test_differences_are_paired_by_seed(study: Path) -> None:
    found = json.loads(asked(study, "--json"))
    assert found["baseline"] == "plain"
    assert found["left_out"] == ["waiting"]
    better, odd = found["arms"]
    assert (better["arm"], better["seeds"], odd["seeds"]) == ("better", [0, 1, 2, 3], [0, 1, 2])
    told = better["measures"]["average_incremental"]
    values = [0.05 * (1 + seed / 10) for seed in range(4)]
    want = difference(values)
    assert (told["of_arm"], told["of_baseline"]) == pytest.approx((0.615 + sum(values) / 4, 0.615))
    assert told["values"] == pytest.approx(values)
    assert (told["mean"], told["low"], told["high"], told["p"]) == pytest.approx((want.mean, want.low, want.high, 2 / 16))
    assert told["adjusted"] == pytest.approx(2 * 2 / 16)
    assert odd["measures"]["average_incremental"]["adjusted"] == pytest.approx(2 / 8)
    assert better["measures"]["probe"]["p"] == 1


def test_another_readout_and_another_baseline(study: Path) -> None:
    found = json.loads(asked(study, "--json", "--readout", "linear", "--baseline", "better"))
    (plain, _) = found["arms"]
    assert plain["arm"] == "plain"
    assert plain["measures"]["last"]["values"] == pytest.approx([-0.1] * 4)
    assert plain["measures"]["forgetting"]["values"] == pytest.approx([0.05] * 4)


def test_some_arms_alone_are_a_family_of_their_own(study: Path) -> None:
    found = json.loads(asked(study, "--json", "--arm", "better"))
    (better,) = found["arms"]
    told = better["measures"]["average_incremental"]
    assert (better["arm"], told["adjusted"], found["left_out"]) == ("better", told["p"], [])
    assert json.loads(asked(study, "--json", "--arm", "better", "--arm", "waiting"))["left_out"] == ["waiting"]
    study.write_text(study.read_text().replace('method.name = "lwf"', 'method.name = "lwf"\nagainst = "better"'))
    (better,) = json.loads(asked(study, "--json", "--arm", "better"))["arms"]  # which otherwise only serves as a baseline
    assert (better["arm"], better["against"]) == ("better", "plain")


def test_some_seeds_alone(study: Path) -> None:
    whole, part = (json.loads(asked(study, "--json", "--arm", "better", *more))["arms"][0] for more in ((), ("--seed", "1", "--seed", "2")))
    assert part["seeds"] == [1, 2]
    assert part["measures"]["last"]["values"] == whole["measures"]["last"]["values"][1:3]


def test_the_table_as_text_and_as_markdown(study: Path) -> None:
    text = asked(study)
    assert "better" in text
    assert "+5.8 [+" in text
    assert "without a pair: waiting" in " ".join(text.split())
    lines = asked(study, "--markdown").splitlines()
    assert lines[2].startswith("| `better` | 4 | 67.2 | +5.8 [")
    assert len({line.count("|") for line in lines}) == 1


def test_the_report_shows_every_pair_and_no_markup_from_outside(study: Path, tmp_path: Path) -> None:
    asked(study, "--out", tmp_path / "c.html")
    page = (tmp_path / "c.html").read_text()
    assert page.count("<svg") == 4
    assert "<b>odd" not in page
    assert page.count("&lt;b&gt;odd") >= 4 + 1 + 3
    assert "http" not in page.replace("http://www.w3.org", "")


def run_in(folder: Path, arm: str, seed: int, config: str = "", **more: Any) -> Path:
    folder.mkdir()
    (folder / "config.toml").write_text(f"seed = {seed}\n{config}")
    (folder / "metrics.json").write_text(json.dumps(metrics(arm, seed, **more)))
    return folder


@pytest.mark.parametrize(
    ("p", "text"), [(1.0, "1"), (0.999, "1.00"), (0.51, ".51"), (0.0273, ".027"), (0.0005, ".001"), (2 / 2**12, "<.001")]
)
def test_no_p_is_shown_as_nothing(p: float, text: str) -> None:
    assert chance(Difference(12, 0.1, 0.05, 0.15, p, p)) == text


def test_what_a_run_has_no_number_of_does_not_count_and_is_told(tmp_path: Path) -> None:
    folders = [run_in(tmp_path / f"{arm[0]}{seed}", arm, seed) for arm in ("plain", "better") for seed in (0, 1, 2)]
    told = json.loads((folders[-1] / "metrics.json").read_text())
    told["results"]["summary"]["forgetting"] = None
    (folders[-1] / "metrics.json").write_text(json.dumps(told))
    command = [*folders, "--measure", "last", "--measure", "forgetting"]
    last, forgetting = (json.loads(asked(*command, "--json"))["arms"][0]["measures"][name] for name in ("last", "forgetting"))
    assert (last["n"], forgetting["n"]) == (3, 2)
    assert (forgetting["of_arm"], forgetting["of_baseline"]) == (pytest.approx(0.3 - SHIFT["better"]), pytest.approx(0.3))
    assert "of the 3 pairs of better, not all have a number: forgetting of 2" in " ".join(asked(*command).split())


def test_folders_of_runs_are_grouped_by_method(tmp_path: Path) -> None:
    folders = [run_in(tmp_path / f"{arm[0]}{seed}", arm, seed) for arm in ("plain", "better") for seed in (0, 1)]
    found = json.loads(asked(*folders, "--json"))
    assert [(one["arm"], one["seeds"]) for one in found["arms"]] == [("better", [0, 1])]
    assert "1 pair" not in asked(*folders)
    assert "a single pair has neither" in " ".join(asked(folders[0], folders[2]).split())


def test_runs_of_one_method_are_told_apart_by_the_settings_that_differ(tmp_path: Path) -> None:
    settings = {
        "loose": "memory = '20/class'\n[hardware]\nthreads = 1\n[method]\nname = 'better'\nweight = 1.0\n[method.optim]\nlr = 0.1\n",
        "tight": "memory = '20/class'\n[hardware]\nthreads = 2\n[method]\nname = 'better'\nweight = 3.0\n[method.optim]\nlr = 0.1\n",
        "other": "memory = 'none'\n[method]\nname = 'plain'\n",
    }
    folders = [
        run_in(tmp_path / f"{name}{seed}", "plain" if name == "other" else "better", seed, text)
        for name, text in settings.items()
        for seed in (0, 1)
    ]
    found = json.loads(asked(*folders, "--json"))
    assert found["baseline"] == "better weight=1.0"
    assert [(one["arm"], one["seeds"]) for one in found["arms"]] == [("better weight=3.0", [0, 1]), ("plain", [0, 1])]
    found = json.loads(asked(*folders[:4], "--json", "--baseline", "better weight=3.0"))
    assert [one["arm"] for one in found["arms"]] == ["better weight=1.0"]


@pytest.mark.parametrize("part", ["arrival.imbalance", "arrival.shots", "reading.size"])
def test_runs_that_saw_other_images_are_no_pair(part: str, tmp_path: Path) -> None:
    table, name = part.split(".")
    folders = [run_in(tmp_path / arm, arm, 0, f"[{table}]\n{name} = {value}\n") for arm, value in (("plain", 1), ("better", 10))]
    result = CliRunner().invoke(app, ["compare", *map(str, folders)])
    assert result.exit_code == 2
    assert f"their {part} differ: 10 and 1" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"data": "other"}, "their data differ: other and digits"),
        ({"protocol": "b0-inc5"}, "their protocol differ: b0-inc5 and b0-inc2"),
        ({"classes": ["9", "0"]}, "their order of classes differ: 9, 0 and 0, 9"),
        ({"test_images": [3, 4]}, "their test images differ: 3, 4 and 3, 3"),
    ],
)
def test_runs_that_differ_in_more_than_the_method_are_no_pair(more: dict[str, Any], says: str, tmp_path: Path) -> None:
    one, other = run_in(tmp_path / "a", "plain", 0), run_in(tmp_path / "b", "better", 0, **more)
    result = CliRunner().invoke(app, ["compare", str(one), str(other)])
    assert result.exit_code == 2
    assert "better and plain with seed 0 are no pair" in " ".join(result.output.split())
    assert says in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--baseline", "bettr"], "Did you mean 'better'"),
        (["--arm", "bettr"], "unknown arm 'bettr'"),
        (["--arm", "plain"], "no arm has a run with a seed that plain has too"),
        (["--baseline", "waiting"], "no run of the baseline waiting is finished"),
        (["--readout", "nearest"], "has no readout 'nearest': it has head, linear"),
        (["--store", "nowhere.sqlite"], "nowhere.sqlite is not there"),
    ],
)
def test_what_cannot_be_compared_is_one_message(arguments: list[str], says: str, study: Path) -> None:
    result = CliRunner().invoke(app, ["compare", str(study), *arguments])
    assert result.exit_code == 2
    assert says in " ".join(result.output.split())


def test_a_folder_without_a_run_and_runs_of_one_method(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", str(tmp_path), str(tmp_path)])
    assert (result.exit_code, "holds no run" in result.output) == (2, True)
    same = [run_in(tmp_path / name, "plain", seed) for seed, name in enumerate("ab")]
    result = CliRunner().invoke(app, ["compare", *map(str, same)])
    assert (result.exit_code, "two methods, or of one with two settings" in " ".join(result.output.split())) == (2, True)


def test_a_run_that_did_not_end_is_not_compared(tmp_path: Path) -> None:
    one, other = run_in(tmp_path / "a", "plain", 0), run_in(tmp_path / "b", "better", 0, complete=False)
    result = CliRunner().invoke(app, ["compare", str(one), str(other)])
    assert result.exit_code == 2
    assert "b is not finished: go on with `nacre run --resume" in " ".join(result.output.split())


def another(study: Path, arms: str, more: str = "", folder: str = ".") -> Path:
    """A second study over the same store, in a file of the same or of another folder."""
    path = study.parent / folder / ("more.toml" if folder == "." else study.name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f'seeds = 4\nstore = "{study.with_suffix(".sqlite")}"\n{more}[base]\ndata = "digits"\n{arms}')
    return path


def put(study: Path, arm: str, values: dict[int, float], data: str = "") -> None:
    """Store runs of an arm with these last accuracies, by seed."""
    plan = Study.load(study)
    with sqlite3.connect(plan.store) as base:
        for seed, value in values.items():
            run = metrics("plain", seed)
            run["results"]["summary"]["last"] = value
            base.execute("insert or replace into runs values (?, '', ?, '', '')", (plan.trial(arm, data, seed).key, json.dumps(run)))


def lasts(*arguments: object) -> dict[tuple[str, str], list[float]]:
    """By arm and baseline: differences of last accuracy."""
    found = json.loads(asked(*arguments, "--json", "--measure", "last"))
    return {(one["arm"], one["against"]): pytest.approx(one["measures"]["last"]["values"]) for one in found["arms"]}


PLAIN, BETTER = '[arms.plain]\nmethod.name = "replay"\n', '[arms.better]\nmethod.name = "icarl"\n'


def test_several_studies_stand_in_one_table(study: Path) -> None:
    more = another(study, f'{PLAIN}[arms.nothing]\nmethod.name = "replay"\n[arms.better]\nmethod.name = "lwf"\n')
    odd, alone = lasts(study)["<b>odd</b>", "plain"], lasts(study)["better", "plain"]
    found = lasts(study, more)
    assert list(found) == [("better", "plain"), ("<b>odd</b>", "plain"), ("nothing", "plain"), ("better (more)", "plain")]
    assert found["better (more)", "plain"] == odd.expected
    assert found["better", "plain"] == alone.expected
    whole, one = (
        json.loads(asked(*files, "--json", "--measure", "last"))["arms"][0]["measures"]["last"]["adjusted"]
        for files in ((study, more), (study,))
    )
    assert whole == pytest.approx(one * 4 / 2)  # Holm over all four


def test_an_arm_that_two_studies_set_alike_is_one(study: Path) -> None:
    more = another(study, PLAIN + BETTER)
    assert list(lasts(study, more)) == list(lasts(study))
    assert list(lasts(more, study)) == [("better", "plain"), ("<b>odd</b>", "plain")]


def test_every_study_keeps_its_own_baseline(study: Path) -> None:
    more = another(study, PLAIN + BETTER, "epochs = 5\n")
    put(more, "plain", {0: 0.1, 1: 0.1})
    put(more, "better", {0: 0.2, 1: 0.3})
    found = lasts(study, more)
    assert found["better (more)", "plain (more)"] == [0.1, 0.2]
    assert set(found) == {("better", "plain"), ("<b>odd</b>", "plain"), ("better (more)", "plain (more)")}
    asked_for = lasts(study, more, "--baseline", "plain")  # of the first study that has one, for all
    assert set(asked_for) == {("better", "plain"), ("<b>odd</b>", "plain"), ("better (more)", "plain")}


def test_studies_of_one_name_with_unlike_arms_do_not_mix(study: Path) -> None:
    third, fourth = (
        another(study, f"{PLAIN}{BETTER}method.optim.lr = {rate}\n", folder=folder) for rate, folder in ((0.3, "a"), (0.4, "b"))
    )
    put(third, "better", {0: 0.9, 1: 0.9})
    put(fourth, "better", {2: 0.9, 3: 0.9})
    found = json.loads(asked(study, third, fourth, "--json"))["arms"]
    assert [(one["arm"], one["seeds"]) for one in found] == [
        ("better", [0, 1, 2, 3]),
        ("<b>odd</b>", [0, 1, 2]),
        ("better (study)", [0, 1]),
        ("better (study, 2)", [2, 3]),
    ]


def test_arms_that_are_alike_on_one_data_set_alone_are_told_apart_on_the_other(study: Path) -> None:
    one, two = (
        another(study, f"{PLAIN}{BETTER}[data.here]\n[data.there]\nmethod.optim.lr = {rate}\n", folder=folder)
        for rate, folder in ((0.3, "a"), (0.4, "b"))
    )
    for path, seeds in ((one, (0, 1)), (two, (2, 3))):
        for data in ("here", "there"):
            put(path, "plain", dict.fromkeys(seeds, 0.1), data)
            put(path, "better", dict.fromkeys(seeds, 0.2), data)
    found = json.loads(asked(one, two, "--json"))["arms"]
    assert {(each["data"], each["arm"], tuple(each["seeds"])) for each in found} == {
        ("here", "better", (0, 1, 2, 3)),
        ("there", "better", (0, 1)),
        ("there", "better (study)", (2, 3)),
    }


def test_what_serves_as_a_baseline_in_one_study_is_compared_in_the_other(study: Path) -> None:
    more = another(study, f'{PLAIN}{BETTER}[arms.new]\nmethod.name = "lwf"\nagainst = "better"\n')
    found = lasts(study, more)
    assert set(found) == {("better", "plain"), ("<b>odd</b>", "plain"), ("new", "better")}


def test_one_data_set_alone(study: Path) -> None:
    study.write_text(study.read_text() + "[data.here]\nmethod.optim.lr = 0.1\n[data.there]\nmethod.optim.lr = 0.2\n")
    plan = Study.load(study)
    with sqlite3.connect(plan.store) as base:
        for trial in plan.trials(["plain", "better"], [0, 1]):
            base.execute("insert into runs values (?, '', ?, '', '')", (trial.key, json.dumps(metrics(trial.arm, trial.seed))))
    assert [one["data"] for one in json.loads(asked(study, "--json"))["arms"]] == ["here", "there"]
    assert [one["data"] for one in json.loads(asked(study, "--json", "--data", "there"))["arms"]] == ["there"]


def test_studies_and_folders_do_not_mix(study: Path, tmp_path: Path) -> None:
    folder = run_in(tmp_path / "a", "plain", 0)
    for arguments, says in (
        ([study, folder], "a is a folder, a run's"),
        ([folder, folder, "--data", "digits"], "a is a folder, a run's"),
        ([folder, "nope"], "nope is not there"),
        ([folder, run_in(tmp_path / "b", "plain", 0), run_in(tmp_path / "c", "better", 0)], "two runs of plain have the same seed 0"),
        ([folder, tmp_path / "c", run_in(tmp_path / "d", "plain", 0, data="letters", protocol="b0-inc5")], "data and protocol differ"),
        ([study, "--data", "digits"], "has no [data.NAME]"),
    ):
        result = CliRunner().invoke(app, ["compare", *map(str, arguments)])
        assert (result.exit_code, says in " ".join(result.output.split())) == (2, True), result.output


def test_the_same_images_may_lie_elsewhere_and_others_in_the_same_place(tmp_path: Path) -> None:
    one = run_in(tmp_path / "a", "plain", 0, data_digest="aaaa")
    moved = run_in(tmp_path / "b", "better", 0, data_digest="aaaa", data="elsewhere/digits")
    assert "better" in asked(one, moved)
    changed = run_in(tmp_path / "c", "better", 0, data_digest="bbbb")
    result = CliRunner().invoke(app, ["compare", str(one), str(changed)])
    assert (result.exit_code, "their images differ: bbbb in digits and aaaa in digits" in " ".join(result.output.split())) == (2, True)


def test_where_runs_were_computed_is_told_where_it_differs(tmp_path: Path) -> None:
    where = [{"hardware": {"precision": precision}, "processor": "AVX2", "versions": {"torch": "2.13.0"}} for precision in ("fp32", "bf16")]
    folders = [run_in(tmp_path / f"a{seed}", "plain", seed, machine=where[0]) for seed in (0, 1)]
    folders += [run_in(tmp_path / f"b{seed}", "better", seed, machine=where[seed]) for seed in (0, 1)]
    assert "of 2 pairs, these also differ in how they were computed: precision in 1" in " ".join(asked(*folders).split())
    assert json.loads(asked(*folders, "--json"))["differing"] == {"precision": 1}
    asked(*folders, "--out", tmp_path / "c.html")
    assert "Of 2 pairs, these also differ" in (tmp_path / "c.html").read_text()
    assert "also differ" not in asked(*folders[::2])
    told = CliRunner().invoke(app, ["compare", *map(str, folders), "--markdown"])
    assert ("also differ" in told.stderr, "also differ" in told.stdout) == (True, False)


def test_instructions_are_those_of_arithmetic_and_count_where_both_runs_know_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for there, said in (
        ({"avx2": True, "amx_bf16": True, "sha": True, "avx512_fp16": False, "num_sockets": 1, "cpu_name": "x"}, ["amx_bf16", "avx2"]),
        ({"neon": True, "sve_bf16": True, "aes": True, "sme": False}, ["neon", "sve_bf16"]),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda there=there: there, raising=False)
        assert instructions() == said
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert instructions() == []  # an older torch
    runs: list[list[str]] = [["avx2"], ["amx_bf16", "avx2"], [], ["avx2"]]
    folders = [run_in(tmp_path / f"a{seed}", "plain", seed, machine={"instructions": ["avx2"]}) for seed in range(4)]
    folders += [run_in(tmp_path / f"b{seed}", "better", seed, machine={"instructions": found}) for seed, found in enumerate(runs)]
    told = json.loads(asked(*folders, "--json"))
    assert (told["differing"], told["unrecorded"]["instructions"]) == ({"instructions": 1}, 1)
    assert ", instructions in 1" in " ".join(asked(*folders).split())


def test_a_setting_that_is_gone_makes_no_other_arm(tmp_path: Path) -> None:
    configs = ["[method.decoding]\nweight = 0.3\nanchor = 0.0\n", "[method.decoding]\nweight = 0.3\n"]
    folders = [run_in(tmp_path / f"{arm}{seed}", arm, seed, configs[seed]) for arm in ("plain", "better") for seed in (0, 1)]
    (arm,) = json.loads(asked(*folders, "--json"))["arms"]
    assert (arm["arm"], arm["seeds"]) == ("better", [0, 1])


def test_a_run_tells_its_images_and_how_it_was_computed(tmp_path: Path) -> None:
    pictures(tmp_path / "here", {"cat": 1, "dog": 2})
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    folders = []
    for place, method in (("here", "finetune"), ("there", "replay")):
        folder = tmp_path / method
        folders.append(folder)
        told = CliRunner().invoke(
            app, ["run", "--data", str(tmp_path / place), "--method", method, "--protocol", "b0-inc1", "--out", str(folder), *QUICK, *SAME]
        )
        assert told.exit_code == 0, told.output
    run = json.loads((folders[0] / "metrics.json").read_text())
    assert set(CIRCUMSTANCES.values()) <= {name for name, _ in leaves(run["machine"])}
    assert "replay" in asked(*folders)  # the same images at another path
    (tmp_path / "here" / "cat" / "000.png").write_bytes((tmp_path / "here" / "dog" / "000.png").read_bytes())
    told = CliRunner().invoke(app, ["run", "--resume", str(folders[0])])
    assert (told.exit_code, "has other images than when" in " ".join(told.output.split())) == (2, True), told.output


def test_any_measure_and_its_unit(study: Path) -> None:
    found = json.loads(asked(study, "--json", "--measure", "seconds", "--measure", "drift"))
    told = found["arms"][0]["measures"]
    assert told["seconds"]["of_arm"] == 1.0
    assert told["drift"]["n"] == 0  # these runs have none
    assert "| 1 | " in asked(study, "--markdown", "--measure", "seconds")
    result = CliRunner().invoke(app, ["compare", str(study), "--measure", "drit"])
    assert (result.exit_code, "Did you mean 'drift'" in " ".join(result.output.split())) == (2, True)


def test_an_arm_may_be_set_against_another_one(study: Path) -> None:
    study.write_text(study.read_text().replace('method.name = "lwf"', 'method.name = "lwf"\nagainst = "better"'))
    (odd,) = json.loads(asked(study, "--json"))["arms"]  # `better` serves as a baseline and is not compared itself
    assert (odd["arm"], odd["against"]) == ("<b>odd</b>", "better")
    assert odd["measures"]["forgetting"]["values"] == pytest.approx([0.07] * 3)
    assert "<b>odd</b> over better" in asked(study)
    better, odd = json.loads(asked(study, "--json", "--baseline", "plain"))["arms"]
    assert {better["against"], odd["against"]} == {"plain"}
    study.write_text(study.read_text().replace('against = "better"', 'against = "bettr"'))
    result = CliRunner().invoke(app, ["compare", str(study)])
    assert (result.exit_code, "Did you mean 'better'" in " ".join(result.output.split())) == (2, True)


def test_the_forest_plots_alone_are_a_file_of_their_own(study: Path, tmp_path: Path) -> None:
    asked(study, "--out", tmp_path / "c.svg", "--measure", "last", "--measure", "probe")
    root = ElementTree.parse(tmp_path / "c.svg").getroot()
    text = "".join(root.itertext())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert all(word in text for word in ("better", "<b>odd</b>", "last accuracy", "feature probe"))
    result = CliRunner().invoke(app, ["compare", str(study), "--out", str(tmp_path / "c.png")])
    assert (result.exit_code, "must end in .html" in " ".join(result.output.split())) == (2, True)
