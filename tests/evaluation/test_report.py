"""The report: self-contained, escaped, the same bytes twice, and right in its numbers."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from nacre.evaluation.panel import Panel
from nacre.evaluation.report import bytes_text, points, render, seconds_text

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
    assert all(text in page for text in ("86.2 %", "82.5 %", "+15.0", "−15.0", "0.12", "reaches 50.0 %"))  # noqa: RUF001 - typographic minus


def test_without_decoder_without_log_and_unfinished() -> None:
    page = render(measured(1, decoder=False), [], "", None)
    assert "unfinished run" in page
    assert "Then and now" not in page
    assert "The terms over time" not in page


def test_a_hundred_classes() -> None:
    names = [f"class {i}" for i in range(100)]
    many = measured(names=names)
    many["results"]["stages"][-1]["confusion"] = torch.eye(100, dtype=torch.long).tolist()
    assert "class 96" in render(many, ROWS, "", None)


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
