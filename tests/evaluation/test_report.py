"""The report: self-contained, escaped, the same bytes twice, and right in its numbers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from nacre.evaluation.numerals import bytes_text, operations, percent, points, seconds_text
from nacre.evaluation.panel import Panel
from nacre.evaluation.plots import confusion, course, matrix
from nacre.evaluation.report import render

NASTY = ["<script>alert(1)</script>", "$x_1$ & 'co'", "long " * 40, '"><img src=x>']


def stage(index: int, total: int, names: list[str], *, decoder: bool) -> dict[str, Any]:
    seen = 2 * (index + 1)
    part = {"accuracy": 0.9, "old": 0.8 if index else None, "new": 1.0}
    return {
        "stage": index + 1,
        "classes": names[seen - 2 : seen],
        "known": seen - 2,
        "seen": seen,
        "accuracies": [0.75] * index + [0.9],
        **part,
        "errors": {"old_to_new": 0.05, "new_to_old": 0.0, "old_to_old": 0.05, "new_to_new": 0.0},
        "calibration": {"all": {"ece": 0.1, "nll": 0.2, "brier": 0.3}},
        "readouts": {"head": part},
        "probe": 0.7,
        "probe_gain": 0.2,
        "drift": {"distance": None, "cka": 0.9} if index else None,
        "reconstruction": {"old": None, "new": 0.3, "unseen": None} if decoder else None,
        "novelty": {"softmax": {"auroc": 0.8, "fpr95": 0.4}} if index + 1 < total else None,
        "confusion": torch.eye(seen, dtype=torch.long).mul(5).tolist(),
    }


def measured(stages: int = 2, *, names: list[str] = NASTY, decoder: bool = True) -> dict[str, Any]:
    return {
        "method": "replay",
        "data": "<b>data</b>",
        "protocol": "b0-inc2",
        "seed": 3,
        "classes": names,
        "test_images": [5, 5],
        "complete": stages == 2,
        "results": {
            "summary": {
                "average_incremental": 0.8625,
                "last": 0.8251,
                "forgetting": 0.15 if stages > 1 else None,
                "backward_transfer": -0.15 if stages > 1 else None,
                "probe": 0.7,
                "probe_random": 0.5,
            },
            "stages": [stage(index, 2, names, decoder=decoder) for index in range(stages)],
        },
        "cost": {
            **dict.fromkeys(("seconds", "images_per_second", "peak_bytes", "deployed_bytes", "carried_bytes"), 1.0),
            **dict.fromkeys(
                ("model_bytes", "exemplars_bytes", "statistics_bytes", "parameters", "decoder_parameters", "flops_per_image"), 1e7
            ),
        },
        "machine": {
            "device": "cpu",
            "hardware": {"precision": "fp32", "layout": "contiguous", "processes": 1},
            "versions": {"torch": "2"},
            "platform": "x",
        },
    }


ROWS = [{"stage": "1", "epoch": str(i), "classification": "0.5", "feature_norm": ""} for i in range(3)] + [
    {"stage": "2", "classification": 0.4}
]


def panel(channels: int = 3) -> Panel:
    image = torch.full((4, channels, 8, 8), 7, dtype=torch.uint8)
    return Panel(image, image, image, torch.tensor([0.125] * 4))


def test_what_comes_from_outside_is_escaped() -> None:
    page = render(measured(), ROWS, "<script>config</script>", panel())
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<b>data</b>" not in page
    assert "&lt;b&gt;data" in page
    assert "$x_1$" in page


def test_it_needs_no_other_file() -> None:
    page = render(measured(), ROWS, "", panel())
    assert not re.search(r"https?://", page)
    assert all(link.startswith(("data:", "#")) for link in re.findall(r"(?:src|href)=\"([^\"]*)\"", page))
    assert page.count("<img src=") == 12


def test_the_same_run_gives_the_same_bytes() -> None:
    assert render(measured(), ROWS, "", panel(1)) == render(measured(), ROWS, "", panel(1))


def test_ids_of_the_figures_do_not_meet() -> None:
    ids = re.findall(r' id="([^"]+)"', render(measured(), ROWS, "", None))
    assert len(ids) == len(set(ids))


def test_numbers_are_shown_as_measured() -> None:
    page = render(measured(), ROWS, "", panel())
    assert all(text in page for text in ("86.2 %", "82.5 %", "+15.0", "−15.0", "0.12", "reaches 50.0 %", "+20.0 points over"))  # noqa: RUF001 - typographic minus


def test_without_decoder_without_log_and_unfinished() -> None:
    page = render(measured(1, decoder=False), [], "", None)
    assert "unfinished run" in page
    assert "Then and now" not in page
    assert "The terms over time" not in page


def test_a_hundred_classes() -> None:
    names = [f"class {i}" for i in range(100)]
    many = measured(names=names)
    many["results"]["stages"][-1]["confusion"] = torch.eye(100, dtype=torch.long).tolist()
    page = render(many, ROWS, "", None)
    assert all(page.count(f">class {i}</text>") == 2 for i in range(100))


@pytest.mark.parametrize("name", ['id="a', "font: 9px b", "url(#c)", "#123456", ' xmlns="d"', "$e_1$", "\u65e5\u672c"])
@pytest.mark.filterwarnings("error")
def test_a_class_name_that_looks_like_markup_stays_as_it_is(name: str) -> None:
    assert confusion([[1, 0], [0, 1]], [name, "other"]).count(f">{name}</text>") == 2


def test_cells_have_a_text_that_is_legible_on_their_colour() -> None:
    found = re.findall(r"<text style=\"[^\"]*fill: ([#\w]+)[^>]*>([\d.]+)</text>", matrix([[0.95], [0.05, None]]))
    colours = {text: colour for colour, text in found}
    assert (colours["95.0"], colours["5.0"]) == ("#ffffff", "currentColor")


def test_a_term_that_is_zero_is_drawn() -> None:
    lines = [course([{"stage": 1, "term": value} for value in values]).count("\nL ") for values in ((0.0, 0.0, 1.0), ("", None, 1.0))]
    assert lines[0] == lines[1] + 2


def without_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_numbers(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [without_numbers(inner) for inner in value]
    return None if isinstance(value, float) else value


@pytest.mark.parametrize("decoder", [True, False])
def test_any_number_may_be_missing(*, decoder: bool) -> None:
    page = render(without_numbers(measured(decoder=decoder)), ROWS, "", None, without_numbers(measured()))
    assert page.count("<b>–</b>") == 6  # noqa: RUF001 - a typographic dash
    assert not re.search(r"\b(None|nan)\b", page)


def test_a_finished_run_says_so_and_the_parts_keep_their_order() -> None:
    page = render(measured(), ROWS, "", panel())
    assert "2 of 2 stages, " in page
    assert ">complete<" in page
    parts = ("Accuracy over stages", "Accuracy matrix", "Confusion", "Errors", "The terms", "Then and now", "Features", "Cost", "Machine")
    places = [page.index(f"<h2>{part}") for part in parts]
    assert places == sorted(places)
    assert places[-1] < page.index("<details>")


def test_a_run_that_is_further_than_its_joint_run_has_no_intransigence_yet() -> None:
    assert re.search(r"<b>–</b><span>intransigence", render(measured(2), ROWS, "", None, measured(1)))  # noqa: RUF001


def test_intransigence_needs_and_uses_the_joint_run() -> None:
    joint = measured()
    for row in joint["results"]["stages"]:
        row["accuracies"][-1] = 1.0
    assert "ntransigence, points" not in render(measured(), ROWS, "", None)
    page = render(measured(), ROWS, "", None, joint)
    assert re.search(r"<b>\+10\.0</b><span>intransigence", page)


@pytest.mark.parametrize(("count", "text"), [(None, "–"), (12, "12 B"), (1500, "1.5 kB"), (2.5e9, "2.50 GB")])  # noqa: RUF001
def test_bytes(count: float | None, text: str) -> None:
    assert bytes_text(count) == text


def test_seconds_and_points() -> None:
    assert [seconds_text(s) for s in (1, 300, 9000)] == ["1.0 s", "5.0 min", "2.5 h"]
    assert points(0.011) == "+1.1"
    assert points(-0.00001) == "0.0"
    assert percent(float("nan")) == "–"  # noqa: RUF001 - a typographic dash
    assert operations(1_234_567) == "1.2 MFLOP"
