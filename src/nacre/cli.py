"""The command line: every command under its name."""

from __future__ import annotations

from typing import Annotated

import typer

from nacre import __version__
from nacre.commands import compare, data, model, runs

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)
USE, COMPARE, LOOK = "A model in use", "Ways to learn, compared", "Data"
"""Panels of the help page."""


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Image classifiers that learn new classes in stages, without forgetting the old ones."""
    if version:
        print(__version__)  # noqa: T201 - the answer
        raise typer.Exit


for panel, commands in (
    (USE, (model.learn, model.predict, model.evaluate, model.inspect, model.drop, model.rename, model.shrink, model.export)),
    (COMPARE, (runs.run, runs.report, runs.study, compare.compare, runs.methods, runs.protocols)),
    (LOOK, (data.data, data.cache)),
):
    for command in commands:
        app.command(rich_help_panel=panel)(command)


def main() -> None:
    """Entry point of the `nacre` command."""
    app(prog_name="nacre")


if __name__ == "__main__":
    main()
