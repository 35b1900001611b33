"""Which images are remembered: herding by hand and by brute force, random without looking."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nacre.data.selection import SELECTIONS, herding, random

ANY = torch.Generator()


def brute_force(features: np.ndarray, count: int) -> list[int]:
    """Algorithm 4 of iCaRL in loops: each time the image that brings the mean of the chosen nearest the class mean."""
    unit = [row / math.sqrt(sum(x * x for x in row)) for row in features]
    mean = sum(unit) / len(unit)
    chosen: list[int] = []
    while len(chosen) < min(count, len(unit)):
        best, least = -1, math.inf
        for i in range(len(unit)):
            if i in chosen:
                continue
            running = (unit[i] + sum(unit[j] for j in chosen)) / (len(chosen) + 1)
            gap = math.sqrt(float(((mean - running) ** 2).sum()))
            if gap < least:
                best, least = i, gap
        chosen.append(best)
    return chosen


def test_herding_by_hand() -> None:
    # Unit vectors at 0, 60 and 90 degrees: their mean (0.5, 0.622) points to 51 degrees, so 60 comes first (gap 0.24 against
    # 0.63 and 0.80). With it, 0 degrees gives (0.75, 0.433), gap 0.31, and 90 degrees (0.25, 0.933), gap 0.40: 0 is second.
    features = torch.tensor([[2.0, 0.0], [0.0, 5.0], [0.5, math.sqrt(0.75)]])
    assert herding(3, lambda: features, 3, ANY).tolist() == [2, 0, 1]


def test_lengths_of_features_do_not_count() -> None:
    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    longer = features * torch.logspace(-2, 2, 9, dtype=torch.float64)[:, None]
    assert torch.equal(herding(9, lambda: features, 5, ANY), herding(9, lambda: longer, 5, ANY))


@given(st.integers(1, 10), st.integers(0, 12), st.integers(0, 99))
@settings(max_examples=40, derandomize=True, deadline=None)
def test_herding_by_brute_force(n: int, count: int, seed: int) -> None:
    features = np.random.default_rng(seed).normal(size=(n, 3))
    assert herding(n, lambda: torch.from_numpy(features), count, ANY).tolist() == brute_force(features, count)


@pytest.mark.parametrize("name", list(SELECTIONS))
def test_a_prefix_of_a_choice_is_the_smaller_choice(name: str) -> None:
    features = torch.randn(8, 3, generator=torch.Generator().manual_seed(2))
    whole = SELECTIONS[name](8, lambda: features, 8, torch.Generator().manual_seed(5))
    assert sorted(whole.tolist()) == list(range(8))
    for count in range(8):
        assert torch.equal(SELECTIONS[name](8, lambda: features, count, torch.Generator().manual_seed(5)), whole[:count])


def test_ties_go_to_the_earlier() -> None:
    one = torch.tensor([[3.0, 4.0]])
    assert herding(4, lambda: one.repeat(4, 1), 4, ANY).tolist() == [0, 1, 2, 3]
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    order = herding(15, lambda: rows.repeat(3, 1), 15, ANY).tolist()
    for row in range(5):
        assert [i for i in order if i % 5 == row] == [row, row + 5, row + 10]


def test_random_depends_on_its_generator_alone() -> None:
    def choose(seed: int) -> list[int]:
        return random(30, lambda: pytest.fail("random looked at features"), 10, torch.Generator().manual_seed(seed)).tolist()

    assert choose(1) == choose(1)
    assert choose(1) != choose(2)
    assert len(set(choose(1))) == 10
    counts = np.bincount([i for seed in range(300) for i in choose(seed)], minlength=30)
    assert counts.min() > 60  # 100 expected, with a standard deviation of 8
    assert counts.max() < 140
