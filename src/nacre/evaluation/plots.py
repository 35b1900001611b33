"""The report's pictures: each function draws one figure and returns it as inline SVG in the page's own text colour.

Accuracies are shares in [0, 1] and drawn as percent.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

TEAL, ROSE, VIOLET, GOLD, GREY = "#2a9d9a", "#d1657f", "#7d6fb8", "#c9974b", "#8a929c"
INK = "#123456"
"""Stands for the page's text colour until the SVG is written."""
PEARL = LinearSegmentedColormap.from_list("pearl", ["#8a929c14", "#a5dbd6", "#4f9fb8", "#5c5aa6"])
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "nacre",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8a929c40",
    "text.parse_math": False,
    "legend.frameon": False,
}


def drawn(width: float, height: float, draw: Callable[[Figure], None], name: str) -> str:
    """One figure as SVG.

    Args:
        width: in inches; the page scales it.
        height: in inches.
        draw: fills the figure.
        name: sets the ids inside apart from those of other figures on the page.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", svg)
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)  # names its vocabulary by links, and says nothing here
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{name}"', svg, count=1)
    return re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg.replace("xlink:href", "href"))


def curve(stages: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over stages: all, old and new classes, and the other readouts' thin beside them."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        x = [stage["stage"] for stage in stages]
        for name, colour in (("all", TEAL), ("old", VIOLET), ("new", ROSE)):
            y = [stage["accuracy" if name == "all" else name] for stage in stages]
            axes.plot(x, percents(y), "o-", color=colour, label=f"{name} classes", linewidth=2.6 if name == "all" else 1.8, markersize=5)
        for name, dashes in (("head", (4, 2)), ("nearest_mean", (1, 1.5)), ("linear", (6, 2, 1, 2))):
            y = [stage["readouts"].get(name, {}).get("accuracy") for stage in stages]
            if any(value is not None for value in y):
                label = {"head": "trained head", "nearest_mean": "nearest mean", "linear": "linear on exemplars"}[name]
                axes.plot(x, percents(y), color=GREY, linewidth=1.1, dashes=dashes, label=label)
        axes.set(xlabel="stage", ylabel="accuracy, %", xticks=x)
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return drawn(7.4, 3.2, draw, "accuracy-over-stages")


def heat(axes: Axes, rows: Sequence[Sequence[float | None]], top: float) -> None:
    """A matrix as coloured cells, missing ones empty."""
    width = max(len(row) for row in rows)
    cells = [[float("nan") if value is None else value for value in row] + [float("nan")] * (width - len(row)) for row in rows]
    axes.imshow(cells, cmap=PEARL, vmin=0, vmax=top, aspect="auto")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def matrix(rows: Sequence[Sequence[float]]) -> str:
    """The accuracy matrix, with numbers where they are legible."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        heat(axes, rows, 1)
        count = len(rows)
        step = max(1, count // 10)
        axes.set(xlabel="classes of stage", ylabel="after stage")
        names = [str(stage + 1) for stage in range(0, count, step)]
        axes.set_xticks(range(0, count, step), names)
        axes.set_yticks(range(0, count, step), names)
        if count <= 12:
            for i, row in enumerate(rows):
                for j, value in enumerate(row):
                    axes.text(j, i, f"{100 * value:.0f}", ha="center", va="center", color="white" if value > 0.55 else INK)

    return drawn(4.4, 3.8, draw, "accuracy-matrix")


def confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Which class was taken for which, as shares of the true class."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shares = [[value / max(1, sum(row)) for value in row] for row in counts]
        heat(axes, shares, 1)
        size = len(counts)
        step = max(1, -(-size // 25))
        labels = [name if len(name) <= 14 else name[:13] + "…" for name in names[:size:step]]
        axes.set_xticks(range(0, size, step), labels, rotation=90 if max(map(len, labels)) > 2 else 0)
        axes.set_yticks(range(0, size, step), labels)
        axes.set(xlabel="answer", ylabel="truth")
        if size <= 12:
            for i, row in enumerate(counts):
                for j, value in enumerate(row):
                    if value:
                        axes.text(j, i, str(value), ha="center", va="center", color="white" if shares[i][j] > 0.55 else INK)

    return drawn(4.8, 4.2, draw, "confusion")


def errors(stages: Sequence[Mapping[str, Any]]) -> str:
    """Errors by direction, stacked per stage, as shares of all test images."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        x = [stage["stage"] for stage in stages]
        base = [0.0] * len(stages)
        for name, colour in (("old_to_new", ROSE), ("new_to_old", VIOLET), ("old_to_old", TEAL), ("new_to_new", GOLD)):
            share = [100 * stage["errors"][name] for stage in stages]
            axes.bar(x, share, bottom=base, color=colour, label=name.replace("_to_", " taken for "), width=0.62)
            base = [a + b for a, b in zip(base, share, strict=True)]
        axes.set(xlabel="stage", ylabel="errors, % of test images", xticks=x)
        axes.grid(visible=False, axis="x")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return drawn(7.4, 2.7, draw, "errors")


ABOUT = ("lr", "seconds", "images", "stage", "phase", "epoch")
"""Columns of the log that are no term and no meter."""
METERS = ("feature_norm", "logit_known", "logit_new", "gradient_ratio", "gradient_cosine")
"""Columns that are no term."""


def course(rows: Sequence[Mapping[str, Any]]) -> str:
    """Every term and meter of the log over the epochs, stages set apart by lines."""
    logged = dict.fromkeys(name for row in rows for name in row if name not in ABOUT)
    names = sorted(logged, key=METERS.__contains__)  # the terms first

    def draw(figure: Figure) -> None:
        across = min(3, len(names))
        grid = figure.subplots(-(-len(names) // across), across, squeeze=False, sharex=True)
        edges = [i for i, (a, b) in enumerate(itertools.pairwise(rows), 1) if a["stage"] != b["stage"]]
        for axes, name, colour in zip(grid.flat, names, itertools.cycle([TEAL, ROSE, VIOLET, GOLD])):
            axes.plot(range(len(rows)), [float(row.get(name) or "nan") for row in rows], color=colour)
            axes.set_title(name.replace("_", " "), fontsize=10, loc="left")
            for edge in edges:
                axes.axvline(edge - 0.5, color=GREY, linewidth=0.6, dashes=(2, 2))
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        for axes in grid[-1]:
            axes.set_xlabel("epoch, all stages")

    return drawn(10, 1.7 * -(-len(names) // 3) + 0.3, draw, "terms") if names else ""


def percents(shares: Sequence[float | None]) -> list[float]:
    """Percent, with NaN for none."""
    return [float("nan") if share is None else 100 * share for share in shares]
