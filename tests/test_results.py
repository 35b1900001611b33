"""Every number of the pages on results comes from stored runs, by the command that stands above it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nacre.cli import app
from nacre.study import Store

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"^(nacre [^\n#]*--markdown)[^\n]*\n```\n\n((?:\|[^\n]*\n)+)", re.MULTILINE)
FIGURE = re.compile(r"`(nacre compare [^`\n]*) --out (docs/[^`\s]+\.svg)`")
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
PAGES = {name: TABLE.findall(text) for name, text in TEXTS.items()}
FIGURES = [pair for text in TEXTS.values() for pair in FIGURE.findall(text)]
INTERVAL = re.compile(r"([+-]?[\d.]+) \[([+-]?[\d.]+), ([+-]?[\d.]+)\]")
CHANCE = re.compile(INTERVAL.pattern + r"(?: \||,? \(?p) (\.\d+|1\b)")
STUDIES = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.sqlite"))


@pytest.mark.parametrize(("command", "table"), [pair for pairs in PAGES.values() for pair in pairs])
def test_a_table_is_what_its_command_prints_of_the_stored_runs(command: str, table: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    assert result.exit_code == 0, result.output
    assert table.strip() == result.stdout.strip()


@pytest.mark.parametrize(("command", "figure"), FIGURES)
def test_a_figure_is_what_its_command_draws_of_the_stored_runs(
    command: str, figure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, [*shlex.split(command)[1:], "--out", str(tmp_path / "figure.svg")])
    assert result.exit_code == 0, result.output
    assert (ROOT / figure).read_text(encoding="utf-8") == (tmp_path / "figure.svg").read_text(encoding="utf-8")


def test_no_figure_of_evidence_stands_without_its_command() -> None:
    shown = [name for text in TEXTS.values() for name in re.findall(r"^!\[[^\]]*\]\((evidence[^)]*)\)", text, re.MULTILINE)]
    assert sorted(f"docs/{name}" for name in shown) == sorted(name for _, name in FIGURES if name.startswith("docs/evidence")) != []


@pytest.mark.parametrize("page", ["results.md", "evidence.md", "evidence-studies.md"])
def test_no_table_of_results_stands_without_its_command(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert len(PAGES[page]) == len(re.findall(r"^\| ---", text, re.MULTILINE)) > 0


def found(pattern: re.Pattern[str], text: str) -> set[tuple[float, ...]]:
    """The numbers of every match: a difference, its lower and upper end, and with `CHANCE` its p."""
    return {tuple(map(float, match)) for match in pattern.findall(text.replace("\N{MINUS SIGN}", "-"))}


@pytest.mark.parametrize("pattern", [INTERVAL, CHANCE], ids=["interval", "p"])
@pytest.mark.parametrize("page", sorted(TEXTS))
def test_an_interval_in_prose_stands_in_a_table(page: str, pattern: re.Pattern[str]) -> None:
    tables = found(pattern, "".join(table for pairs in PAGES.values() for _, table in pairs))
    known = tables | {(-mean, -high, -low, *p) for mean, low, high, *p in tables}  # the same from the other arm's side
    today = (part for part in TEXTS[page].split("\n\n") if not part.startswith("|") and "git checkout" not in part)
    assert found(pattern, " ".join(" ".join(today).split())) - known == set()


@pytest.mark.parametrize("page", ["README.md", *sorted(f"docs/{name}" for name in PAGES if name != "README.md")])
def test_a_blank_line_ends_every_table(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert not re.findall(r"^\|[^\n]*\n[^|\n][^\n]*", text, re.MULTILINE)  # else it is drawn as a row


@pytest.mark.parametrize("name", STUDIES)
def test_stored_runs_are_whole_and_name_no_path_of_a_machine(name: str) -> None:
    runs = Store(ROOT / "benchmarks" / "results" / f"{name}.sqlite").all()
    assert runs
    for metrics in runs:
        assert metrics["complete"]
        assert not Path(metrics["data"]).is_absolute()
        assert str(Path.home()) not in str(metrics)
        assert str(ROOT.resolve().parent) not in str(metrics)
