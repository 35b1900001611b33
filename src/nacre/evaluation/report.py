"""One run as one self-contained HTML file: what was learnt, what was lost, and what it cost."""

from __future__ import annotations

import base64
import io
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image
from torch import Tensor

from nacre import __version__
from nacre.evaluation import metrics as formulas
from nacre.evaluation import plots
from nacre.evaluation.matrix import AccuracyMatrix
from nacre.evaluation.numerals import amount, bytes_text, number, operations, percent, points, seconds_text
from nacre.evaluation.panel import Panel

Row = Mapping[str, Any]


def render(metrics: Row, rows: Sequence[Row], config: str, panel: Panel | None, joint: Row | None = None) -> str:
    """Write the report.

    Args:
        metrics: content of metrics.json.
        rows: of log.csv; numbers may be text.
        config: content of config.toml.
        panel: exemplars with their reconstructions; None without a decoder.
        joint: metrics.json of a joint run of the same stream, for the intransigence.

    Returns:
        HTML that needs no other file, no script and no network; everything from outside is escaped.
    """
    stages = metrics["results"]["stages"]
    pictures = {
        "curve": plots.curve(stages),
        "matrix": plots.matrix([stage["accuracies"] for stage in stages]),
        "confusion": plots.confusion(stages[-1]["confusion"], metrics["classes"]),
        "errors": plots.errors(stages),
        "course": plots.course(rows),
    }
    return (
        pages()
        .get_template("report.html.j2")
        .render(
            run=metrics,
            stages=stages,
            summary=metrics["results"]["summary"],
            cost=metrics["cost"],
            machine=metrics["machine"],
            config=config,
            small=plots.SMALL,
            pictures={name: Markup(svg) for name, svg in pictures.items()},
            panel=pictures_of(panel, metrics["classes"]) if panel is not None else [],
            joint=joint,
            intransigence=None if joint is None else intransigence(metrics, joint),
            scores=list(dict.fromkeys(name for stage in stages for name in stage["novelty"] or {})),
        )
    )


def pages() -> Environment:
    """The templates; whatever they are given is escaped."""
    loader = PackageLoader("nacre.evaluation", ".")
    found = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters.update(
        percent=percent, points=points, number=number, amount=amount, bytes=bytes_text, seconds=seconds_text, operations=operations
    )
    return found


def render_evaluation(found: Row, classes: Sequence[str], about: Mapping[str, str | None]) -> str:
    """Write the report of an evaluation.

    Args:
        found: what `nacre.evaluation.appraisal.appraise` gave.
        classes: names, by label.
        about: `model`, `images` and `unknowns` as they were named.

    Returns:
        HTML that needs no other file; everything from outside is escaped.
    """
    return (
        pages()
        .get_template("evaluation.html.j2")
        .render(
            found=found,
            about={**about, "version": __version__, "date": time.strftime("%Y-%m-%d %H:%M")},
            confusion=Markup(plots.confusion(found["confusion"], classes)),
            small=plots.SMALL,
        )
    )


def matrix(measured: Row) -> AccuracyMatrix:
    """The accuracy matrix of a metrics.json."""
    found = AccuracyMatrix(measured["test_images"])
    for index, stage in enumerate(measured["results"]["stages"]):
        found.record(index, [math.nan if value is None else value for value in stage["accuracies"]])
    return found


def intransigence(measured: Row, joint: Row) -> float | None:
    """The run's intransigence towards a joint run; None where that has not come as far."""
    own, ceiling = matrix(measured), matrix(joint)
    return formulas.intransigence(own, ceiling) if len(ceiling) >= len(own) else None


def pictures_of(panel: Panel, names: Sequence[str]) -> list[dict[str, Any]]:
    """Per class: its name, the three pictures as data URIs, and the unexplained variance now."""
    columns = zip(names, panel.images, panel.then, panel.now, panel.errors.tolist(), strict=False)
    return [{"name": name, "views": [data_uri(image) for image in views], "error": error} for name, *views, error in columns]


def data_uri(image: Tensor) -> str:
    """A picture [C, H, W], uint8, as a PNG inside a link; grey for one channel."""
    pixels = image[0].numpy() if len(image) == 1 else image[:3].permute(1, 2, 0).numpy()
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
