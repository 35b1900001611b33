"""Commands for data: what lies at a path, and what is kept of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from nacre.commands.common import LABEL, SIZE, assignment, plain_errors, slug
from nacre.errors import NacreError, choose


def data(
    path: Annotated[str, typer.Argument(help="A folder with a sub-folder per class, or another path, or digits.")],
    out: Annotated[Path | None, typer.Option(help="Where the contact sheet goes; by default NAME-contact.png here.")] = None,
    view: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Draw images beside their training view, changed so, or `natural`."),
    ] = None,
    size: SIZE = None,
    label: LABEL = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Describe a data set: classes, counts, sizes, channels, what cannot be used; and draw a contact sheet."""
    with plain_errors():
        from nacre.data.portrait import contact_sheet, portrait
        from nacre.data.readers import Reading, read
        from nacre.terminal import Bar, portrait_lines

        source = read(path, Reading(size=size or 0, label=label or "", skip_unreadable=True), Bar(Console(stderr=True)).decoded)
        target = out or Path(f"{slug(path)}-contact.png")
        changes = dict(assignment(text) for text in view or [] if text != "natural")
        contact_sheet(source.viewed(changes), target, viewed=bool(view))
        found = portrait(source)
        if as_json:
            print(json.dumps({**found, "contact_sheet": str(target)}, indent=1))  # noqa: T201 - the answer
            return
        for item in portrait_lines(found, target):
            Console(soft_wrap=True, highlight=False).print(item)


def cache(
    clear: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Take away an entry; `all` takes all.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """List decoded data sets and what they take, or clear them."""
    with plain_errors():
        from dataclasses import asdict

        from nacre.data import cache as store
        from nacre.terminal import cache_table

        there = store.entries()
        for entry in there if "all" in (clear or []) else [choose("cache entry", key, {e.key: e for e in there}) for key in clear or []]:
            if not store.remove(entry.key):
                raise NacreError(f"entry {entry.key} is being filled by another process: wait for it, or stop that.")
        there = store.entries()
        if as_json:
            shown = {"folder": str(store.folder()), "limit": store.limit(), "entries": [asdict(entry) for entry in there]}
            print(json.dumps(shown, indent=1))  # noqa: T201 - the answer
            return
        Console().print(cache_table(there, store.folder(), store.limit()))
