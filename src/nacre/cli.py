"""The command line: parse, call, print. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from nacre import __version__
from nacre.errors import NacreError

if TYPE_CHECKING:
    from nacre.experiment import Experiment, Run

app = typer.Typer(no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False, add_completion=False)
WHAT, WHERE, OUTPUT = "What", "Where", "Output"
"""Panels of the help page."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, by custom 128 + SIGINT."""
Given = dict[str, Any]
"""Settings from the command line, by dotted key."""


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn a mistake of the user's into one message and exit code 2, and Ctrl-C into its exit code."""
    try:
        yield
    except NacreError as error:
        for line in str(error).splitlines():
            Console(stderr=True, soft_wrap=True).print(f"[bold red]error[/] {escape(line)}", highlight=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


@app.callback(invoke_without_command=True)
def top(version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False) -> None:
    """Image classifiers that learn new classes in stages, without forgetting the old ones."""
    if version:
        print(__version__)  # noqa: T201 - the answer
        raise typer.Exit


@app.command()
def run(
    recipe: Annotated[Path | None, typer.Argument(help="TOML file with settings; options on the command line win over it.")] = None,
    data: Annotated[str | None, typer.Option(help="Data set: digits.", rich_help_panel=WHAT)] = None,
    protocol: Annotated[str | None, typer.Option(help="Classes per stage: bB-incN, such as b0-inc2.", rich_help_panel=WHAT)] = None,
    method: Annotated[str | None, typer.Option(help="How to learn, see `nacre methods`.", rich_help_panel=WHAT)] = None,
    backbone: Annotated[str | None, typer.Option(help="Network: auto, small, resnet32 ...", rich_help_panel=WHAT)] = None,
    head: Annotated[str | None, typer.Option(help="linear or cosine.", rich_help_panel=WHAT)] = None,
    memory: Annotated[str | None, typer.Option(help="Exemplars: 2000, 20/class, none, all.", rich_help_panel=WHAT)] = None,
    reconstruction: Annotated[
        float | None, typer.Option(help="Weight of the reconstruction term, with any method.", rich_help_panel=WHAT)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of every stage.", rich_help_panel=WHAT)] = None,
    seed: Annotated[int | None, typer.Option(help="Of class order, initialisation and sampling.", rich_help_panel=WHAT)] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as optim.lr=0.1.", rich_help_panel=WHAT),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.", rich_help_panel=WHERE)] = None,
    precision: Annotated[str | None, typer.Option(help="auto, fp32, bf16.", rich_help_panel=WHERE)] = None,
    processes: Annotated[int | None, typer.Option(help="Processes that share every batch.", rich_help_panel=WHERE)] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run's files; by default a new one in runs/.", rich_help_panel=WHERE)
    ] = None,
    resume: Annotated[Path | None, typer.Option(help="Go on with the killed run in this folder.", rich_help_panel=WHERE)] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No bar and no lines; errors only.", rich_help_panel=OUTPUT)] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print metrics.json at the end, and nothing else.", rich_help_panel=OUTPUT)
    ] = False,
) -> None:
    """Learn a stream of classes stage by stage, and write a report."""
    flat = {
        "data": data,
        "protocol": protocol,
        "memory": memory,
        "seed": seed,
        "method.name": method,
        "method.backbone": backbone,
        "method.head": head,
        "method.decoding.weight": reconstruction,
        "hardware.device": device,
        "hardware.precision": precision,
        "hardware.processes": processes,
    }
    given = {key: value for key, value in flat.items() if value is not None}
    with plain_errors():
        if resume is not None and (recipe or given or epochs or set_ or out):
            raise NacreError("--resume goes on with a run as it was described: leave the other settings out.")
        experiment, folder = reopened(resume) if resume is not None else described(recipe, given, epochs, set_ or [], out)
        conduct(experiment, folder, quiet=quiet, as_json=as_json)


def described(
    recipe: Path | None, given: dict[str, Any], epochs: int | None, extra: list[str], out: Path | None
) -> tuple[Experiment, Path]:
    """The experiment that recipe and options describe, and a folder that holds no run."""
    from nacre.experiment import Experiment, read_toml
    from nacre.settings import place

    table = read_toml(recipe) if recipe is not None else {}
    for key, value in [*given.items(), *(assignment(text) for text in extra)]:
        place(table, key, value)
    if epochs is not None:
        place(table, "method.optim.epochs", epochs)
        if isinstance(table["method"].get("later"), dict):
            place(table, "method.later.epochs", epochs)
    experiment = Experiment.of(table)
    if out is None:
        names = (f"{experiment.data}-{table.get('method', {}).get('name', 'reconstruction')}-seed{experiment.seed}{n}" for n in suffixes())
        out = next(path for path in (Path("runs") / name for name in names) if not path.exists())
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise NacreError(f"{out} holds something already: give a new folder, or go on with a killed run by --resume {out}.")
    return experiment, out


def suffixes() -> Iterator[str]:
    """Yield no text first, then -2, -3 and so on."""
    yield ""
    number = 2
    while True:
        yield f"-{number}"
        number += 1


def assignment(text: str) -> tuple[str, Any]:
    """Read KEY=VALUE, the value as TOML or else as text; keys of the method may leave out `method.`."""
    import tomllib
    from dataclasses import fields

    from nacre.experiment import Experiment
    from nacre.methods import METHODS

    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise NacreError(f"--set {text!r} is no assignment: write key=value, such as optim.lr=0.1.")
    try:
        parsed = tomllib.loads(f"x = {value}")["x"]
    except tomllib.TOMLDecodeError:
        parsed = value
    key = key.strip()
    first = key.split(".")[0]
    of_methods = {field.name for cls in METHODS.values() for field in fields(cls)} - {field.name for field in fields(Experiment)}
    return (f"method.{key}" if first in of_methods else key), parsed


def reopened(folder: Path) -> tuple[Experiment, Path]:
    """The experiment of a run's folder."""
    from nacre.experiment import CONFIG, Experiment

    if not (folder / CONFIG).is_file():
        raise NacreError(f"{folder} holds no run (no {CONFIG} in it): give the folder that `nacre run` printed.")
    return Experiment.load(folder / CONFIG), folder


def conduct(experiment: Experiment, folder: Path, *, quiet: bool, as_json: bool) -> None:
    """Run an experiment, show how it goes, and write its report."""
    from nacre.experiment import METRICS, MODEL, REPORT, Run, write_report
    from nacre.terminal import Bar, closing_lines, stage_line

    talk = not quiet and not as_json
    screen, answers = Console(stderr=True), Console(soft_wrap=True, highlight=False)
    session: Run = Run(experiment, folder)
    talk = talk and session.runtime.main
    bar = Bar(screen, session.stream, session.experiment.method)
    if talk:
        session.watch = bar
        screen.print(heading(session), highlight=False)
        for result in session.history:
            answers.print(stage_line({**result, "seconds": 0.0}, session.total))
    try:
        for result in session.stages():
            bar.stop()
            if talk:
                answers.print(stage_line(result, session.total))
    except KeyboardInterrupt:
        bar.stop()
        screen.print(f"[yellow]stopped[/]; go on with: nacre run --resume {escape(str(folder))}", highlight=False)
        raise
    if not session.runtime.main:
        return
    write_report(folder)
    if as_json:
        print((folder / METRICS).read_text())  # noqa: T201 - the answer
    elif talk:
        paths = [("report", str(folder / REPORT)), ("model", str(folder / MODEL))]
        for line in closing_lines(session.metrics()["results"]["summary"], paths):
            answers.print(line)


def heading(session: Run) -> str:
    """What runs, in a line."""
    from nacre.modelfile import method_settings

    setting, hardware = session.experiment, session.runtime.hardware
    name = method_settings(setting.method)["name"]
    return (
        f"[bold]{escape(name)}[/] on {escape(setting.data)}, {setting.protocol}: {session.total} stages, memory {setting.memory}, "
        f"seed {setting.seed} [dim]({session.runtime.describe()}, {hardware.precision}, {hardware.layout})[/]"
    )


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a run.")],
    joint: Annotated[Path | None, typer.Option(help="Folder of a joint run of the same data and seed, for intransigence.")] = None,
) -> None:
    """Write a run's report.html again."""
    with plain_errors():
        from nacre.experiment import write_report

        print(write_report(folder, joint))  # noqa: T201 - the answer


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """List the methods: name, family, memory, paper."""
    from nacre.methods import METHODS

    rows = [
        {"name": name, "family": cls.family, "memory": str(cls.budget), "paper": cls.paper, "what": (cls.__doc__ or "").splitlines()[0]}
        for name, cls in METHODS.items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))  # noqa: T201 - the answer
        return
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 1, 0), header_style="bold")
    for column in ("method", "family", "memory"):
        table.add_column(column, no_wrap=True)
    table.add_column("what it does")
    for row in rows:
        table.add_row(f"[cyan]{row['name']}[/]", row["family"], row["memory"], f"{row['what']}\n[dim]{row['paper']}[/]")
    Console().print(table)


def main() -> None:
    """Entry point of the `nacre` command."""
    app(prog_name="nacre")


if __name__ == "__main__":
    main()
