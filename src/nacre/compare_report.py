"""A comparison as pictures: a page with forest plots, or these alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from nacre import __version__
from nacre.compare import Comparison, Entry
from nacre.compare_text import better, chance, interval, level, remarks
from nacre.evaluation import plots
from nacre.evaluation.measures import measure
from nacre.evaluation.paired import Difference
from nacre.evaluation.report import pages


def page(found: Comparison) -> str:
    """The report: HTML that needs no other file; everything from outside is escaped."""
    names = found.asked.measures
    groups: list[dict[str, Any]] = []
    for data in dict.fromkeys(one.data for one in found.entries):
        entries = [one for one in found.entries if one.data == data]
        pairs = [(one, place, seed) for one in entries for place, seed in enumerate(one.seeds)]
        groups.append(
            {
                "data": data,
                "pictures": [picture(found, entries, name, len(groups)) for name in names],
                "rows": [{"arm": found.name(one), "n": len(one.seeds), "cells": cells(one)} for one in entries],
                "pairs": [
                    {"arm": found.name(one), "seed": seed, "differences": [single(one.values[name][place], name) for name in names]}
                    for one, place, seed in pairs
                ],
            }
        )
    return (
        pages()
        .get_template("comparison.html.j2")
        .render(
            title=found.title,
            baseline=found.baseline,
            readout=f"answers of {found.asked.readout.replace('_', ' ')}" if found.asked.readout else "each method's declared readout",
            date=time.strftime("%Y-%m-%d %H:%M"),
            version=__version__,
            measures=[measure(name).title for name in names],
            groups=groups,
            remarks=[text[0].upper() + text[1:] for text in remarks(found)],
        )
    )


def picture(found: Comparison, entries: Sequence[Entry], name: str, group: int) -> dict[str, Any]:
    """The forest plot of one measure."""
    shown = measure(name)
    others = ", or than what is named" if any(one.against != found.baseline for one in entries) else ""
    side = {True: "Left of the line is better", False: "Right of the line is better", None: "Left of the line is less"}[shown.less]
    return {
        "heading": shown.title[0].upper() + shown.title[1:],
        "note": f"{side} than {found.baseline}{others}. Bars are 95 % intervals; a diamond is a single pair.",
        "svg": Markup(plots.forest([[whiskers(found, entries, name, "")]], f"forest-{name}-{group}")),
    }


def whiskers(found: Comparison, entries: Sequence[Entry], name: str, title: str) -> plots.Whiskers:
    """One measure's differences, ready to be drawn."""
    gaps = [(found.name(one), one.differences[name]) for one in entries]
    rows = [plots.Whisker(label, gap.mean, gap.low, gap.high, better(gap, name)) for label, gap in gaps]
    return plots.Whiskers(title, rows, measure(name).scale)


def figure(found: Comparison) -> str:
    """All measures side by side, a row of them per data set: an SVG file that is legible on light and dark pages."""
    sets = {data: [one for one in found.entries if one.data == data] for data in dict.fromkeys(one.data for one in found.entries)}
    grid = [
        [whiskers(found, entries, name, f"{data}: {measure(name).title}".removeprefix(": ")) for name in found.asked.measures]
        for data, entries in sets.items()
    ]
    svg = plots.forest(grid, "forest").replace("currentColor", plots.GREY)
    return svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)


def cells(one: Entry) -> list[dict[str, str]]:
    """What the table says of each measure."""
    return [
        {"mean": level(one.means[name][0], name), "difference": interval(gap, name), "p": chance(gap)}
        for name, gap in one.differences.items()
    ]


def single(value: float, name: str) -> str:
    """One pair's difference."""
    return interval(Difference(1, value, value, value, value), name)
