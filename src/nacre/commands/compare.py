"""The command that puts runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape

from nacre.commands.common import plain_errors
from nacre.errors import NacreError

if TYPE_CHECKING:
    from nacre.compare import Asked, Comparison
    from nacre.study import Store, Study


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="STUDY.toml...|RUN...", help="Files of studies, or folders of runs.")],
    baseline: Annotated[
        str | None, typer.Option(help="What all others are compared with, whatever the study sets them against; by default its first arm.")
    ] = None,
    arm: Annotated[list[str] | None, typer.Option(help="Only this arm, and Holm over those given; may be given again.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="Only this data set of a study; may be given again.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Only pairs of this seed; may be given again.")] = None,
    readout: Annotated[str | None, typer.Option(help="Whose answers count: head, nearest_mean, linear; by default each method's.")] = None,
    measure: Annotated[list[str] | None, typer.Option(help="What to compare, such as drift; may be given again.")] = None,
    store: Annotated[Path | None, typer.Option(help="SQLite file of finished runs; by default each study's own.")] = None,
    out: Annotated[Path | None, typer.Option(help="Also write a report here: .html for a page, .svg for forest plots alone.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="The table as Markdown.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Compare arms with a baseline by paired differences: 95 % intervals, permutation tests, Holm's correction."""
    with plain_errors():
        from nacre import compare_text, files
        from nacre.compare import Asked
        from nacre.evaluation.measures import USUAL
        from nacre.terminal import comparison_table

        if out is not None and out.suffix not in (".html", ".svg"):
            raise NacreError(f"--out is {str(out)!r}, but it must end in .html for a page or in .svg for the forest plots alone.")
        asked = Asked(tuple(measure or ()) or USUAL, readout or "", tuple(arm or ()), tuple(seed or ()))
        found = set_side_by_side(runs, baseline or "", data or (), store, asked)
        if not found.entries:
            raise NacreError(f"no arm has a run with a seed that {found.baseline} has too: compute more runs.")
        if out is not None:
            from nacre import compare_report

            files.write(out, compare_report.figure(found) if out.suffix == ".svg" else compare_report.page(found))
        if as_json:
            print(files.as_json(compare_text.plain(found), indent=1))  # noqa: T201 - the answer
        elif markdown:
            print(compare_text.markdown(found))  # noqa: T201 - the answer
            for remark in compare_text.remarks(found):
                Console(stderr=True).print(escape(remark), highlight=False)
        else:
            wide = Console()
            Console(width=None if wide.is_terminal else 400).print(comparison_table(found))
            if out is not None:
                wide.print(f"report: {escape(str(out))}", highlight=False, soft_wrap=True)


def set_side_by_side(runs: Sequence[Path], baseline: str, data: Sequence[str], store: Path | None, asked: Asked) -> Comparison:
    """Compare what was given: files of studies, or folders of runs."""
    from nacre import compare as sides

    missing = [path for path in runs if not path.exists()]
    if missing:
        raise NacreError(f"{missing[0]} is not there: give files of studies, or folders that `nacre run` filled.")
    folders = [path for path in runs if path.is_dir()]
    if not folders:
        return sides.of_studies([opened(path, data, store) for path in runs], baseline, asked)
    if len(folders) < len(runs) or data or store:
        raise NacreError(f"{folders[0]} is a folder, a run's: give either files of studies, which --data and --store fit, or folders.")
    return sides.of_folders(folders, baseline, asked)


def opened(path: Path, data: Sequence[str], store: Path | None) -> tuple[Study, Store]:
    """A study, and its finished runs."""
    from nacre.study import Store, Study

    study = Study.load(path).among(data=data)
    where = store or study.store
    if not where.exists():
        raise NacreError(f"{where} is not there: no run of this study is finished. Compute them with `nacre study {path}`.")
    return study, Store(where)
