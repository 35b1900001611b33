"""Paired statistics against scipy's and against hand-made cases."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from nacre.evaluation.paired import EXACT, difference, holm, permutation

VALUES = [0.012, 0.004, -0.003, 0.021, 0.007]


def test_mean_and_interval_are_students() -> None:
    found = difference(VALUES)
    theirs = stats.ttest_1samp(VALUES, 0).confidence_interval(0.95)
    assert found.n == 5
    assert (found.mean, found.low, found.high) == pytest.approx((np.mean(VALUES), theirs.low, theirs.high))


def test_the_permutation_test_is_scipys() -> None:
    theirs = stats.permutation_test((VALUES, np.zeros(5)), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=np.inf)
    assert permutation(VALUES) == pytest.approx(theirs.pvalue)


def test_all_on_one_side_is_the_least_p_there_is() -> None:
    for n in range(2, 9):
        assert permutation([1.0 + i / 10 for i in range(n)]) == 2 / 2**n
    assert permutation([0.0, 0.0, 0.0]) == 1


def test_a_sum_of_rounding_alone_is_no_farther_than_zero() -> None:
    values = [0.1, 0.2, 0.3, -0.4, -0.2]  # 0 in truth, and so are other ways of swapping, some of which come to 0 exactly
    assert sum(values) != 0
    assert permutation(values) == 1


def test_many_pairs_are_drawn_and_come_near_the_normal_law() -> None:
    values = list(np.random.default_rng(3).normal(0.3, 1, EXACT + 24))
    assert permutation(values) == permutation(values)
    assert permutation(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=0.01)


def test_a_single_pair_says_no_more_than_its_difference() -> None:
    found = difference([0.25])
    assert found.mean == 0.25
    assert all(map(math.isnan, (found.low, found.high, found.p)))
    with pytest.raises(ValueError, match="no pairs"):
        difference([])


def test_holm_by_hand() -> None:
    # sorted .01, .02, .03, .04: times 4, 3, 2, 1, and never below one before
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    nans = holm([math.nan, 0.02, 0.04])
    assert math.isnan(nans[0])
    assert nans[1:] == pytest.approx([0.04, 0.04])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=2, max_size=9))
def test_p_is_a_share_that_knows_no_sign_and_no_unit(values: list[float]) -> None:
    p = permutation(values)
    assert 2 / 2 ** len(values) <= p <= 1
    assert permutation([-value for value in values]) == p
    assert permutation([8 * value for value in values]) == p
