"""Studies as used: stored as they finish, never computed twice, gone on with after a kill, errors that say what to do."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from rich.console import Console
from typer.testing import CliRunner

from nacre.cli import app
from nacre.conducting import Progress, counts, parallel
from nacre.errors import NacreError
from nacre.experiment import Experiment, Run
from nacre.study import Store, Study, spread, table
from nacre.terminal import study_table

STUDY = """
name = "little"
seeds = [3, 4]
epochs = 1

[base.method]
backbone = "small"

[base.hardware]
device = "cpu"
precision = "fp32"
layout = "contiguous"
threads = 1

[arms.replay]
method.name = "replay"
published = { average = 50.0, last = 40.0, source = "nobody" }

[arms.wide]
method.name = "replay"
memory = "40/class"
method.optim.epochs = 2
"""


def written(folder: Path, text: str = STUDY) -> Path:
    path = folder / "little.toml"
    path.write_text(text)
    return path


def told(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["study", *arguments])
    return result.exit_code, result.output


def test_a_study_computes_every_arm_and_seed_once(tmp_path: Path) -> None:
    path = written(tmp_path)
    code, output = told(str(path), "--jobs", "1", "--threads", "1", "--json")
    assert code == 0, output
    assert output.count("last accuracy") == 4
    assert "another study" not in output  # nobody else is there, so between one run and the next nothing is waited for
    found = json.loads(output[output.index("{\n") :])
    assert [(entry["arm"], entry["runs"]) for entry in found["arms"]] == [("replay", 2), ("wide", 2)]
    study = Study.load(path)
    rows = Store(study.store).rows(study.trials())
    assert {(row.arm, row.seed) for row in rows} == {(arm, seed) for arm in ("replay", "wide") for seed in (3, 4)}
    assert rows[0].log.count("\n") == 6  # a line per stage and epoch, and the head
    assert not study.store.with_suffix(".unfinished").exists()

    trial = study.trial("wide", "", 4)
    assert trial.experiment.method.optim.epochs == 2  # the arm's own word wins
    session = Run(trial.experiment, tmp_path / "alone")
    for _ in session.stages():
        pass
    alone = session.metrics()["results"]["summary"]
    mine = next(row for row in rows if (row.arm, row.seed) == ("wide", 4))
    assert mine.number("last") == alone["last"]
    assert mine.number("average_incremental") == alone["average_incremental"]

    before = sqlite3.connect(study.store).execute("select key, finished from runs").fetchall()
    code, output = told(str(path), "--jobs", "2", "--threads", "1")
    assert code == 0
    assert "last accuracy" not in output
    assert sqlite3.connect(study.store).execute("select key, finished from runs").fetchall() == before

    code, output = told(str(path), "--show", "--markdown")
    average, last = (sum(100 * row.number(name) for row in rows if row.arm == "replay") / 2 for name in ("average_incremental", "last"))
    line = next(line for line in output.splitlines() if line.startswith("| `replay`"))
    assert f"| 50.0/40.0 | {average - 50:+.1f}/{last - 40:+.1f} |" in line
    assert f"{average:.1f} ±" in line


def test_runs_that_are_set_aside_are_kept_but_count_no_more(tmp_path: Path) -> None:
    path = written(tmp_path)
    plan = Study.load(path)
    assert (told(str(path), "--set-aside")[0], plan.store.exists()) == (2, False)
    store = Store(plan.store)
    with store.base:
        for trial in plan.trials():
            store.base.execute("insert into runs values (?, '', '{}', '', '')", (trial.key,))
    one, begun = plan.trial("wide", "", 3), plan.store.with_suffix(".unfinished") / plan.trial("wide", "", 3).key
    begun.mkdir(parents=True)
    (begun / "model.nacre").write_text("half learnt by what is mended now")
    with FileLock(begun.with_suffix(".lock")):
        code, output = told(str(path), "--set-aside", "--arm", "wide", "--seed", "3")
        assert (code, "is being computed just now" in " ".join(output.split())) == (2, True)
    code, output = told(str(path), "--set-aside", "--arm", "wide", "--seed", "3")
    assert (code, "set aside: wide seed 3\n" in output) == (0, True)
    assert not begun.parent.exists()
    assert store.keys() >= {trial.key for trial in plan.trials() if trial.key != one.key}
    assert not store.holds(one.key)
    assert (len(store.keys()), len(store.all())) == (4, 3)
    assert "there was none" in told(str(path), "--set-aside", "--arm", "wide", "--seed", "3")[1]
    with store.base:
        store.base.execute("insert into runs values (?, '', '{}', '', '')", (one.key,))
    assert "set aside: wide" in told(str(path), "--set-aside", "--arm", "wide", "--seed", "3")[1]  # once more, and at once
    assert len(store.keys()) == 5


def test_another_name_of_the_same_configuration_is_the_same_run(tmp_path: Path) -> None:
    study = Study.load(written(tmp_path, STUDY + '\n[arms.again]\nmethod.name = "replay"\n'))
    keys = {(trial.arm, trial.seed): trial.key for trial in study.trials()}
    assert keys["again", 3] == keys["replay", 3]
    assert len(set(keys.values())) == 4
    assert "little" not in study.trial("replay", "", 3).config


@pytest.mark.slow
def test_a_killed_study_leaves_no_process_and_goes_on(tmp_path: Path) -> None:
    path = written(tmp_path, STUDY.replace("epochs = 1", "epochs = 12", 1))
    command = [sys.executable, "-m", "nacre", "study", str(path), "--jobs", "2", "--threads", "1", "--arm", "replay"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        scratch = tmp_path / "little.unfinished"
        until(lambda: len(list(scratch.glob("*/metrics.json"))) == 2 or process.poll() is not None)
        workers = workers_of(tmp_path)
        process.send_signal(signal.SIGKILL)
    assert workers
    until(lambda: not workers_of(tmp_path))
    study = Study.load(path)
    code, output = told(str(path), "--jobs", "2", "--threads", "1", "--arm", "replay")
    assert code == 0, output
    rows = Store(study.store).rows(study.trials(["replay"]))
    assert len(rows) == 2
    session = Run(study.trial("replay", "", 3).experiment, tmp_path / "alone")
    for _ in session.stages():
        pass
    assert rows[0].metrics["results"]["summary"] == json.loads(json.dumps(session.metrics()["results"]["summary"]))


@pytest.mark.slow
def test_what_a_killed_study_had_finished_is_there_and_not_computed_again(tmp_path: Path) -> None:
    path = written(tmp_path, STUDY.replace("epochs = 1", "epochs = 12", 1))
    study, only = Study.load(path), ["--jobs", "1", "--threads", "1", "--arm", "replay"]
    with subprocess.Popen(
        [sys.executable, "-m", "nacre", "study", str(path), *only], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        until(lambda: (study.store.exists() and len(Store(study.store).rows(study.trials(["replay"]))) == 1) or process.poll() is not None)
        process.send_signal(signal.SIGKILL)
    until(lambda: not workers_of(tmp_path))
    (first,) = Store(study.store).rows(study.trials(["replay"]))
    code, output = told(str(path), *only)
    assert code == 0, output
    rows = Store(study.store).rows(study.trials(["replay"]))
    assert len(rows) == 2
    assert rows[0] == first


@pytest.mark.skipif(os.name != "posix", reason="reads /proc")
def test_two_studies_at_once_compute_every_run_once(tmp_path: Path) -> None:
    path = written(tmp_path, STUDY.replace("[3, 4]", "[3, 4, 5]"))
    command = [sys.executable, "-m", "nacre", "study", str(path), "--jobs", "1", "--threads", "1", "--arm", "replay"]
    both = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told_by = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], told_by
    assert sum(text.count("last accuracy") for text in told_by) == 3  # each is told by the study that computed it
    study = Study.load(path)
    assert len(Store(study.store).rows(study.trials(["replay"]))) == 3
    assert not study.store.with_suffix(".unfinished").exists()


def test_a_study_says_that_it_waits_for_another(tmp_path: Path) -> None:
    path = written(tmp_path)
    study = Study.load(path)
    trial = study.trials()[0]
    scratch = study.store.with_suffix(".unfinished")
    scratch.mkdir(parents=True)
    command = [
        sys.executable,
        "-m",
        "nacre",
        "study",
        str(path),
        "--jobs",
        "1",
        "--threads",
        "1",
        "--arm",
        trial.arm,
        "--seed",
        str(trial.seed),
    ]
    with FileLock(scratch / f"{trial.key}.lock"):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert process.stderr is not None
        assert any("under way in another study" in line for line in iter(process.stderr.readline, ""))
        assert process.poll() is None
    rest = process.communicate(timeout=300)[1]
    assert process.returncode == 0, rest
    assert rest.count("last accuracy") == 1  # the other one left without a result, so this one computes it


def until(true: object, seconds: float = 120) -> None:
    assert callable(true)
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.05)


def workers_of(folder: Path) -> list[int]:
    """Processes that compute a run below a folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if "nacre.worker" in line and str(folder) in line:
            found.append(int(entry.parent.name))
    return found


ROOM = 2**50


def test_threads_that_are_given_leave_room_for_so_many_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nacre.conducting.free_memory", lambda: ROOM)
    trial = Study.load(written(tmp_path)).trials()[0]
    assert [parallel(trial, 8, threads) for threads in (1, 3, 8, 9)] == [(8, 1), (2, 3), (1, 8), (1, 9)]


def test_no_more_runs_than_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nacre.training.runtime.Runtime.peak_bytes", lambda _: 10**9)
    monkeypatch.setattr("nacre.training.speed.measure", lambda *_: 1.0)
    trial = Study.load(written(tmp_path)).trials()[0]
    for gigabytes, found in ((100, (8, 1)), (7, (3, 1)), (1, (1, 1))):
        monkeypatch.setattr("nacre.conducting.free_memory", lambda free=gigabytes: free * 10**9)
        assert parallel(trial, 8, 1) == found
    assert parallel(trial, 8) == (1, 8)  # one at a time, with all cores, is as fast as one with one


def test_runs_and_threads_as_really_measured_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nacre.conducting.free_memory", lambda: ROOM)
    jobs, threads = parallel(Study.load(written(tmp_path)).trials()[0], 2)
    assert (jobs, threads) in {(2, 1), (1, 2)}


@pytest.mark.parametrize(
    ("side_by_side", "found"),
    [
        ({1: 4.0, 2: 1.5, 4: 0.6}, (1, 4)),  # 4 / 4.0, 2 / 1.5 and 1 / 0.6 steps per second
        ({1: 1.0, 2: 0.8, 4: 0.7}, (4, 1)),
        ({1: 2.0, 2: 0.9, 4: 0.8}, (2, 2)),
    ],
)
def test_threads_are_those_that_bring_the_most_side_by_side(
    side_by_side: dict[int, float], found: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: object) -> float:
        return side_by_side[torch.get_num_threads()]

    before = torch.get_num_threads()
    monkeypatch.setattr("nacre.training.speed.measure", measured)
    monkeypatch.setattr("nacre.conducting.free_memory", lambda: ROOM)
    assert parallel(Study.load(written(tmp_path)).trials()[0], 4) == found
    assert torch.get_num_threads() == before


def test_the_live_table_says_what_is_finished_and_what_is_under_way(tmp_path: Path) -> None:
    study = Study.load(written(tmp_path, STUDY.replace("arms.replay", 'arms."[red]replay"')))
    trials = study.trials()
    doing = [Progress(trials[0], stage=1, stages=5), Progress(trials[3], elsewhere=True)]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(study_table(study, table(study, []), doing))
    shown = " ".join(console.export_text().split())
    assert "[red]replay 0/2" in shown  # a name from outside is no markup
    assert "50.0/40.0" in shown
    assert "under way: [red]replay seed 3 stage 2/5, wide seed 4 in another study" in shown


@pytest.mark.skipif(os.name != "posix", reason="reads /proc")
def test_a_worker_ends_when_nobody_listens(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(Experiment.of({"method": {"name": "replay", "optim": {"epochs": 5000}}}).toml())
    command = [sys.executable, "-m", "nacre.worker", str(config), str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        until(lambda: (tmp_path / "run" / "config.toml").exists())
        assert process.poll() is None
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 1


def test_a_run_that_fails_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path, STUDY + '\n[arms.broken]\ndata = "/nowhere/at/all"\n')
    code, output = told(str(path), "--jobs", "2", "--seed", "3")
    assert code == 2
    threads = max(1, len(os.sched_getaffinity(0)) // 2) if hasattr(os, "sched_getaffinity") else max(1, (os.cpu_count() or 1) // 2)
    assert f"2 at once with {threads} threads each" in " ".join(output.split())
    assert "broken, seed 3" in output
    assert "/nowhere/at/all" in output
    study = Study.load(path)
    assert {row.arm for row in Store(study.store).rows(study.trials())} == {"replay", "wide"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seeds = 2\n", "no [arms.NAME]"),
        ("seeds = []\n[arms.a]\n", "seeds is []"),
        ("seeds = [-1]\n[arms.a]\n", "seeds is [-1]"),
        ("speed = 2\n[arms.a]\n", "unknown speed"),
        ("[arms]\na = 3\n", "arms.a must be a table"),
        ('data = "digits"\n[arms.a]\n', "data is 'digits', but it must be tables"),
        ('[arms.a]\nmethod.name = "repaly"\n', "Did you mean 'replay'"),
        ("[arms.a]\nmethod.optim.lr = -1\n", "lr is -1"),
        ("epochs = 0\n[arms.a]\n", "epochs is 0"),
    ],
)
def test_mistakes_in_a_study_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(NacreError) as error:
        Study.load(written(tmp_path, text)).trials()
    assert said in str(error.value)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite"
    path.write_text("no database at all, but long enough to be read as the head of one" * 20)
    with pytest.raises(NacreError, match="no file of a study"):
        Store(path)
    code, output = told(str(written(tmp_path, STUDY.replace("published", "# published"))), "--show")
    assert code == 2
    assert "no run of this study is finished" in output
    tables = "\n[data.digits]\n[data.letters]\n"
    for text, option, word, said in (
        (STUDY, "--arm", "replya", "unknown arm 'replya'"),
        (STUDY + tables, "--data", "digts", "unknown data 'digts'"),
        (STUDY, "--data", "digits", "has no [data.NAME]"),
    ):
        code, output = told(str(written(tmp_path, text)), option, word)
        assert code == 2
        assert said in " ".join(output.split())


def test_a_study_is_narrowed_to_some_arms_and_data_sets(tmp_path: Path) -> None:
    study = Study.load(written(tmp_path, STUDY + "\n[data.small]\n[data.large]\n"))
    every = {(trial.arm, trial.data) for trial in study.trials()}
    arm, *_ = study.arms
    assert {(trial.arm, trial.data) for trial in study.among([arm], ["large"]).trials()} == {(arm, "large")}
    assert {(trial.arm, trial.data) for trial in study.among().trials()} == every


def test_what_was_published_is_shown_and_what_was_not_run_is_not(tmp_path: Path) -> None:
    path = written(tmp_path, STUDY + '\n[arms.told]\npublished = { average = 61.25, source = "somebody, ResNet-18" }\n')
    code, output = told(str(path), "--show")
    assert code == 0, output
    heads, *rows = (line.split() for line in output.splitlines() if line.strip())
    assert heads == ["arm", "runs", "average", "last", "forgetting", "probe", "seconds", "carried", "published", "difference"]
    assert rows[:2] == [["replay", "0/2", *"------", "50.0/40.0", "-"], ["told", "0/2", *"------", "61.2", "-"]]
    assert "published average, told: somebody, ResNet-18" in output
    assert "published average/last, replay: nobody" in output
    assert [path.name for path in tmp_path.iterdir()] == ["little.toml"]  # showing makes no file
    code, output = told(str(path), "--show", "--markdown", "--arm", "told")
    assert output.splitlines()[2:] == [
        "| `told` | 0 | - | - | - | - | - | - | 61.2 | - |",
        "",
        "published average, told: somebody, ResNet-18.",
    ]
    entry = json.loads(told(str(path), "--show", "--json")[1])["arms"][0]
    assert (entry["runs"], entry["average_incremental"], entry["difference"]) == (0, [None, None], {"average": None, "last": None})


def test_where_only_the_last_accuracy_or_nothing_was_published_that_is_said(tmp_path: Path) -> None:
    more = '\n[arms.late]\npublished = { last = 49.5, source = "a plot" }\n\n[arms.new]\npublished = "none known"\n'
    _, output = told(str(written(tmp_path, STUDY + more)), "--show")
    assert re.search(r"^late .* -/49.5 +- *$", output, re.MULTILINE)
    assert re.search(r"^new .* none known +- *$", output, re.MULTILINE)
    assert "published last, late: a plot" in output
    assert output.count("none known") == 1


@pytest.mark.parametrize(
    "given", ["{ mean = 3.0 }", "{ last = 0.5, average = 120.0 }", "{ last = 'high' }", "51.2", "{ last = 4.0, source = 3 }"]
)
def test_what_was_published_is_checked(given: str, tmp_path: Path) -> None:
    code, output = told(str(written(tmp_path, STUDY + f"\n[arms.odd]\npublished = {given}\n")), "--show")
    assert code == 2
    assert "arm odd has published = " in " ".join(output.split())
    assert "in percent" in output


def test_spread_leaves_out_what_is_no_number() -> None:
    assert spread([1.0, float("nan"), 3.0]) == (2.0, pytest.approx(2**0.5))
    assert list(counts(6)) == [1, 2, 4, 6]
    assert list(counts(1)) == [1]
    assert table(Study("s", "", (0,), {"a": {}}, {"": {}}, {}, Path("none")), []) == []
