"""The report's pictures: each function draws one figure and returns it as inline SVG in the page's own text colour.

Accuracies are shares in [0, 1] and drawn as percent.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

TEAL, ROSE, VIOLET, GOLD, GREY = "#2a9d9a", "#d1657f", "#7d6fb8", "#b8812f", "#8a929c"
INK = "#123456"
"""Stands for the page's text colour until the SVG is written."""
PEARL = LinearSegmentedColormap.from_list("pearl", ["#8a929c14", "#4fb3ad66", "#3f78b3d0", "#4c4799"])
"""Lets the page shine through where it is faint, so that the page's text colour is legible on it by day and by night."""
BRIGHT = 0.72
"""Above this `PEARL` is so dense that white is the more legible text; contrast is nowhere below 3.9, by day or by night."""
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
    "axes.axisbelow": True,
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
        name: sets the ids inside apart from those of other figures on the page, and is read out in its place.
    """
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser's fonts draw the text, not matplotlib's
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)  # it says nothing here, and links
    return re.sub(r"<[^>]+>", lambda tag: inlined(tag[0], name), svg)  # tags alone: a class name may look like anything


def inlined(tag: str, name: str) -> str:
    """A tag of matplotlib's SVG, made fit for a place inside a page."""
    tag = tag.replace(INK, "currentColor").replace("xlink:href", "href")
    tag = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", tag)
    tag = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', f'role="img" aria-label="{name.replace("-", " ")}"', tag)
    return re.sub(r' xmlns(:xlink)?="[^"]*"', "", tag)


def stage_axis(axes: Axes, x: Sequence[int]) -> None:
    """Stages along the x axis, with room around one that is alone."""
    axes.set(xlabel="stage", xlim=(x[0] - 0.5, max(x[-1], 4) + 0.5), xticks=x[:: 1 + len(x) // 26])
    axes.grid(visible=False, axis="x")


READOUTS = {"head": ("trained head", (4, 2)), "nearest_mean": ("nearest mean", (1, 1.5)), "linear": ("linear on exemplars", (6, 2, 1, 2))}
"""How a readout is called and dashed."""


def curve(stages: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy over stages: all, old and new classes, and the other readouts' thin beside them."""
    x = [stage["stage"] for stage in stages]
    found: list[float] = []

    def line(axes: Axes, shares: Sequence[float | None], label: str, **style: Any) -> None:
        found.extend(100 * share for share in shares if share is not None)
        if any(share is not None for share in shares):
            axes.plot(x, percents(shares), label=label, **style)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, colour in (("all", TEAL), ("old", VIOLET), ("new", ROSE)):
            shares = [stage["accuracy" if name == "all" else name] for stage in stages]
            line(axes, shares, f"{name} classes", marker="o", color=colour, linewidth=2.6 if name == "all" else 1.8, markersize=5)
        for name, (label, dashes) in READOUTS.items():
            shares = [stage["readouts"].get(name, {}).get("accuracy") for stage in stages]
            line(axes, shares, label, color=GREY, linewidth=1.1, dashes=dashes)
        stage_axis(axes, x)
        axes.set(ylabel="accuracy, %", ylim=(10 * (min(found, default=0) // 10) - 1.5, 101.5))
        if found:
            axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return drawn(9.6, 3.5, draw, "accuracy-over-stages")


def heat(axes: Axes, shares: Sequence[Sequence[float | None]], texts: Sequence[Sequence[str]] | None, size: float) -> None:
    """A matrix as coloured square cells, missing ones empty.

    Args:
        axes: to draw on.
        shares: in [0, 1]; rows may be of different lengths.
        texts: written into the cells, where there is room.
        size: of the texts, in points.
    """
    width = max(len(row) for row in shares)
    cells = [[float("nan") if value is None else value for value in row] + [float("nan")] * (width - len(row)) for row in shares]
    axes.imshow(cells, cmap=PEARL, vmin=0, vmax=1, interpolation="none")
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for i, row in enumerate(texts or ()):
        for j, text in enumerate(row):
            colour = "white" if cells[i][j] > BRIGHT else INK
            axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=size)


def matrix(rows: Sequence[Sequence[float | None]]) -> str:
    """The accuracy matrix, with numbers where they are legible."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        count = len(rows)
        digits = 1 if count <= 12 else 0
        texts = [["" if value is None else f"{100 * value:.{digits}f}" for value in row] for row in rows]
        heat(axes, rows, texts if count <= SMALL else None, min(10, 170 / count))
        places = range(0, count, 1 + count // 26)
        names = [str(place + 1) for place in places]
        axes.set_xticks(places, names)
        axes.set_yticks(places, names)
        room = max(count, 4) - 0.5
        axes.set(xlabel="classes of stage", ylabel="after stage", xlim=(-0.5, room), ylim=(room, -0.5))

    return drawn(5.3, 4.9, draw, "accuracy-matrix")


def confusion(counts: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Which class was taken for which, with the counts where they are legible.

    Args:
        counts: [K][K], row = true class, column = answer.
        names: of the classes; those beyond K are left out.

    Returns:
        Cells whose colour is the square root of the share of the true class, so that rare errors are seen.
    """
    size = len(counts)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shares = [[math.sqrt(value / max(1, sum(row))) for value in row] for row in counts]
        heat(axes, shares, [[str(value or "") for value in row] for row in counts] if size <= SMALL else None, min(10, 130 / size))
        places = range(0, size, -(-size // 100))
        labels = [shortened(names[place]) for place in places]
        letters = 10 if size <= 12 else 8 if size <= 40 else 6.2
        axes.set_xticks(places, labels, rotation=90 if max(map(len, labels)) > 2 else 0, fontsize=letters)
        axes.set_yticks(places, labels, fontsize=letters)
        room = max(size, 4) - 0.5
        axes.set(xlabel="answer", ylabel="truth", xlim=(-0.5, room), ylim=(room, -0.5))
        if size > SMALL:
            axes.set_xticks([place - 0.5 for place in places[::10]], minor=True)
            axes.set_yticks([place - 0.5 for place in places[::10]], minor=True)
            axes.grid(visible=True, which="minor", color=GREY, linewidth=0.3)
            axes.tick_params(which="minor", length=0)

    return drawn(*((5.3, 4.9) if size <= SMALL else (11.1, 10.6)), draw, "confusion")


SMALL = 25
"""So many classes leave room for numbers in half a page."""


def shortened(name: str, most: int = 16) -> str:
    """A name with its end left out where it is too long."""
    return name if len(name) <= most else name[: most - 1] + "…"


def errors(stages: Sequence[Mapping[str, Any]]) -> str:
    """Errors by direction, stacked per stage, as shares of all test images."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        x = [stage["stage"] for stage in stages]
        base = [0.0] * len(stages)
        for name, colour in (("old_to_new", ROSE), ("new_to_old", VIOLET), ("old_to_old", TEAL), ("new_to_new", GOLD)):
            share = [100 * (stage["errors"][name] or 0) for stage in stages]
            axes.bar(x, share, bottom=base, color=colour, label=name.replace("_to_", " taken for "), width=0.62)
            base = [a + b for a, b in zip(base, share, strict=True)]
        stage_axis(axes, x)
        axes.set_ylabel("errors, % of test images")
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1))

    return drawn(9.6, 3, draw, "errors")


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
        grid = figure.subplots(-(-len(names) // across), across, squeeze=False)
        edges = [i for i, (a, b) in enumerate(itertools.pairwise(rows), 1) if a["stage"] != b["stage"]]
        for axes, name, colour in zip(grid.flat, names, itertools.cycle([TEAL, ROSE, VIOLET, GOLD])):
            axes.plot(range(1, len(rows) + 1), [measured(row.get(name)) for row in rows], color=colour, linewidth=1.6)
            axes.set_xlim(0.5, len(rows) + 0.5)
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set_title(name.replace("_", " "), fontsize=10, loc="left")
            for edge in edges:
                axes.axvline(edge + 0.5, color=GREY, linewidth=0.6, dashes=(2, 2))
        for axes in grid.flat[len(names) :]:
            axes.set_axis_off()
        for axes in grid.flat[max(0, len(names) - across) : len(names)]:
            axes.set_xlabel("epoch, all stages")

    return drawn(11.1, 1.9 * -(-len(names) // 3) + 0.3, draw, "terms") if names else ""


def percents(shares: Sequence[float | None]) -> list[float]:
    """Percent, with NaN for none."""
    return [float("nan") if share is None else 100 * share for share in shares]


def measured(value: Any) -> float:
    """A number of the log, which may be text; NaN for none."""
    return float("nan") if value is None or value == "" else float(value)


@dataclass(frozen=True)
class Whisker:
    """A difference with its interval; low and high are nan for a single pair."""

    label: str
    mean: float
    low: float
    high: float
    better: bool | None
    """Whether it is for the better; None where that is open."""


@dataclass(frozen=True)
class Whiskers:
    """Differences of one measure on one data set."""

    title: str
    """Above them; may be empty."""
    rows: Sequence[Whisker]
    """One per arm."""
    scale: float
    """What they are shown times: 100 for shares, whose differences are points."""

    def draw(self, axes: Axes) -> None:
        """One below the other, around zero."""
        axes.axvline(0, color=GREY, linewidth=1.2)
        for place, row in enumerate(self.rows):
            colour = {True: TEAL, False: ROSE, None: GREY}[row.better]
            axes.plot([self.scale * row.low, self.scale * row.high], [place] * 2, color=colour, linewidth=2.4, solid_capstyle="round")
            axes.plot([self.scale * row.mean], [place], marker="o" if math.isfinite(row.low) else "D", color=colour, markersize=7)
        axes.set_yticks(range(len(self.rows)), [shortened(row.label, 34) for row in self.rows])
        axes.set(xlabel="difference, points" if self.scale > 1 else "difference", ylim=(len(self.rows) - 0.4, -0.6))
        axes.set_title(self.title, fontsize=10, loc="left")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        ends = [abs(value) for row in self.rows for value in (row.mean, row.low, row.high) if math.isfinite(value)]
        reach = 1.08 * self.scale * max(ends, default=0.0) or self.scale / 100
        axes.set_xlim(-reach, reach)


def forest(grid: Sequence[Sequence[Whiskers]], name: str) -> str:
    """Differences with their intervals.

    Args:
        grid: rows of panels, equally many in each, whose arms stand at the left.
        name: of the figure.
    """
    heights = [0.34 * len(panels[0].rows) + 1.0 + 0.2 * bool(panels[0].title) for panels in grid]

    def draw(figure: Figure) -> None:
        places = figure.subplots(len(grid), len(grid[0]), sharey="row", squeeze=False, height_ratios=heights)
        for line, panels in zip(places, grid, strict=True):
            for axes, panel in zip(line, panels, strict=True):
                panel.draw(axes)

    return drawn(9.6, sum(heights), draw, name)
