"""Named protocols: sizes worked out by hand, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nacre.data.protocols import stage_sizes
from nacre.errors import NacreError


@pytest.mark.parametrize(
    ("protocol", "classes", "sizes"),
    [
        ("b0-inc10", 100, [10] * 10),
        ("b50-inc5", 100, [50] + [5] * 10),
        ("b0-inc3", 10, [3, 3, 3, 1]),
        ("b4-inc4", 10, [4, 4, 2]),
        ("b3-inc5", 10, [3, 5, 2]),
        ("b7-inc3", 7, [7]),
        ("b0-inc1", 1, [1]),
    ],
)
def test_sizes_by_hand(protocol: str, classes: int, sizes: list[int]) -> None:
    assert stage_sizes(protocol, classes) == sizes


@given(st.integers(0, 30), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=60, derandomize=True, deadline=None)
def test_only_the_first_and_the_last_stage_differ(base: int, step: int, classes: int) -> None:
    if max(base, step) > classes:
        with pytest.raises(NacreError, match=f"does not fit {classes} classes"):
            stage_sizes(f"b{base}-inc{step}", classes)
        return
    first, *rest = stage_sizes(f"b{base}-inc{step}", classes)
    assert first == (base or step)
    assert first + sum(rest) == classes
    assert all(size == step for size in rest[:-1])
    assert all(0 < size <= step for size in rest[-1:])


@pytest.mark.parametrize("protocol", ["", "10", "b0inc2", "b0-inc", "b-inc2", "b0-inc2.5", "b0-inc-2", "B0-INC2", " b0-inc2", "b0-inc2\n"])
def test_other_names_are_refused_with_an_example(protocol: str) -> None:
    with pytest.raises(NacreError, match="such as b0-inc2"):
        stage_sizes(protocol, 10)


@pytest.mark.parametrize("protocol", ["b0-inc0", "b5-inc0", "b11-inc1", "b0-inc11"])
def test_names_that_do_not_fit_the_classes_are_refused(protocol: str) -> None:
    with pytest.raises(NacreError, match="does not fit 10 classes"):
        stage_sizes(protocol, 10)
