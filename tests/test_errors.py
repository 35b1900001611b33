"""The one error a user is meant to read."""

from __future__ import annotations

import pytest

from nacre.errors import NacreError, choose, nearest

NAMES = {"herding": 1, "random": 2, "closest": 3}


def test_a_name_that_is_there_is_looked_up() -> None:
    assert [choose("selection", name, NAMES) for name in NAMES] == [1, 2, 3]


@pytest.mark.parametrize(("typo", "meant"), [("herdin", "herding"), ("RANDOM", "random"), ("closets", "closest"), ("rnadom", "random")])
def test_a_typo_gets_a_suggestion(typo: str, meant: str) -> None:
    assert nearest(typo, NAMES) == f" Did you mean '{meant}'?"
    with pytest.raises(NacreError) as caught:
        choose("selection", typo, NAMES)
    assert str(caught.value) == f"unknown selection '{typo}': use one of herding, random, closest. Did you mean '{meant}'?"


@pytest.mark.parametrize("value", ["", "xyz", "0"])
def test_what_is_like_nothing_gets_none(value: str) -> None:
    assert nearest(value, NAMES) == ""
    with pytest.raises(NacreError, match=r"use one of herding, random, closest\.$"):
        choose("selection", value, NAMES)


def test_of_no_names_none_is_near() -> None:
    assert nearest("herding", []) == ""


def test_callers_may_catch_it_as_a_value_error() -> None:
    with pytest.raises(ValueError, match="unknown"):
        choose("thing", "x", {})
