"""Every number of the pages on results comes from stored runs."""

from __future__ import annotations

from pathlib import Path

from nacre.study import Store, Study, table
from nacre.terminal import study_markdown

ROOT = Path(__file__).parents[1]


def test_the_table_of_results_is_what_the_stored_runs_say() -> None:
    study = Study.load(ROOT / "recipes" / "cifar-20-classes.toml")
    rows = Store(ROOT / study.store).rows(study.trials())
    assert rows
    assert study_markdown(study, table(study, rows)) in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_stored_runs_name_no_path_of_a_machine() -> None:
    study = Study.load(ROOT / "recipes" / "cifar-20-classes.toml")
    for row in Store(ROOT / study.store).rows(study.trials()):
        assert row.metrics["data"] == "../shared/data/cifar100"
        assert row.metrics["complete"]
        assert str(Path.home()) not in str(row.metrics)
        assert str(ROOT.resolve().parent) not in str(row.metrics)
