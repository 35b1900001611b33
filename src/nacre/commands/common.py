"""What several commands share: options, errors, signals, names."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from nacre.errors import NacreError

if TYPE_CHECKING:
    from nacre.training.phases import Watch

WHAT, WHERE, OUTPUT = "What", "Where", "Output"
"""Panels of the help page."""

SIZE = Annotated[int | None, typer.Option(help="Height and width of images in pixels; found out by default.", rich_help_panel=WHAT)]
LABEL = Annotated[str | None, typer.Option(help="Column of labels, such as fine_label; found out by default.", rich_help_panel=WHAT)]
SKIP = Annotated[bool, typer.Option("--skip-unreadable", help="Leave out what cannot be used, rather than stop.", rich_help_panel=WHAT)]

DEVICE = Annotated[str | None, typer.Option(help="auto, cpu, cuda, mps.", rich_help_panel=WHERE)]
PRECISION = Annotated[str | None, typer.Option(help="auto, fp32, bf16.", rich_help_panel=WHERE)]
SET = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any other setting, such as optim.lr=0.1.", rich_help_panel=WHAT)
]
QUIET = Annotated[bool, typer.Option("--quiet", help="No bar and no lines; errors only.", rich_help_panel=OUTPUT)]
JSON = Annotated[bool, typer.Option("--json", help="One JSON object.", rich_help_panel=OUTPUT)]


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn a mistake of the user's into one message and exit code 2, and a signal into its exit code, by custom 128 + its number."""
    try:
        yield
    except NacreError as error:
        for line in str(error).splitlines():
            Console(stderr=True, soft_wrap=True).print(f"[bold red]error[/] {escape(line)}", highlight=False)
        raise typer.Exit(2) from None
    except KeyboardInterrupt as stop:
        raise typer.Exit(128 + int(getattr(stop, "signal", signal.SIGINT))) from None


@contextmanager
def leaving(watch: Watch, console: Console, advice: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end training after its epoch, with its record on disk; a second one ends it at once.

    Args:
        watch: of the training.
        console: where to say what goes on.
        advice: how to go on later.
    """
    came: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if watch.leaving or not watch.training:
            raise KeyboardInterrupt
        watch.leaving = True
        console.print("[yellow]stopping[/] after this epoch; once more stops at once", highlight=False)

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except KeyboardInterrupt as stop:
        watch.stop()
        stop.signal = came[0] if came else signal.SIGINT  # type: ignore[attr-defined]
        console.print(f"[yellow]stopped[/]; {escape(advice)}", highlight=False)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def slug(data: str) -> str:
    """A data set's name fit for a folder: the last part of its path, in plain letters."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", Path(data).name).strip("-")
    return plain[:40] or "data"


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


def remarks(notes: Sequence[str], shown: int = 5) -> list[str]:
    """What is odd about the data, in a few lines."""
    lines = [f"[yellow]note[/] {escape(note)}" for note in notes[:shown]]
    return lines + ([f"[yellow]note[/] {len(notes) - shown} more; `nacre data` names them all"] if len(notes) > shown else [])
