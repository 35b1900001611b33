"""Numbers of a run from its metrics and its log, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from nacre.errors import NacreError
from nacre.evaluation.measures import MEASURES, measure, measured

STAGES: list[dict[str, Any]] = [
    {"probe": 0.4, "drift": None, "errors": {"old_to_new": None}, "readouts": {"head": {"accuracy": 0.9}}},
    {"probe": 0.6, "drift": {"distance": 0.5, "cka": 0.9}, "errors": {"old_to_new": 0.1}, "readouts": {"head": {"accuracy": 0.7}}},
    {"probe": 0.8, "drift": {"distance": 1.0, "cka": 0.7}, "errors": {"old_to_new": 0.3}, "readouts": {"head": {"accuracy": 0.5}}},
]
RUN = {"results": {"summary": {"last": 0.55, "probe": 0.8}, "stages": STAGES}, "cost": {"seconds": 12}}
LOG = "stage,feature_norm,gradient_cosine\n1,2.0,\n2,4.0,0.5\n2,6.0,0.1\n"


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("last", 0.55),
        ("probe", 0.8),
        ("probe@1", 0.4),
        ("probe@2", 0.6),
        ("probe_mean", 0.6),
        ("drift", 0.75),
        ("cka", 0.8),
        ("old_to_new", 0.2),
        ("feature_norm", 4.0),
        ("gradient_cosine", 0.3),
        ("seconds", 12.0),
    ],
)
def test_each_number(name: str, want: float) -> None:
    assert measured(RUN, LOG, name) == pytest.approx(want)


def test_what_a_run_does_not_have_is_no_number() -> None:
    assert math.isnan(measured(RUN, LOG, "forgetting"))
    assert math.isnan(measured(RUN, LOG, "gradient_ratio"))
    assert math.isnan(measured(RUN, LOG, "new_to_old"))
    assert math.isnan(measured(RUN, LOG, "probe@4"))


@pytest.mark.parametrize("name", ["probe@0", "probe@", "probe@x", "probe@-1", "last@2"])
def test_a_stage_is_a_number_and_of_the_probe(name: str) -> None:
    with pytest.raises(NacreError, match=f"unknown measure '{name}': use one of"):
        measure(name)


def test_another_readouts_answers() -> None:
    assert measured(RUN, LOG, "average_incremental", "head") == pytest.approx(0.7)
    assert measured(RUN, LOG, "last", "head") == 0.5
    assert measured(RUN, LOG, "probe", "head") == 0.8
    with pytest.raises(LookupError, match="head"):
        measured(RUN, LOG, "last", "linear")


def test_every_measure_of_a_study_has_a_title() -> None:
    assert all(each.title for each in MEASURES.values())
