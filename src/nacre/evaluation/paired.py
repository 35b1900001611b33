"""Is one arm better than another? Statistics of differences between runs that share everything but the arm.

Shapes: n pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

import numpy as np

EXACT = 16
"""Up to so many pairs all signs are tried; beyond, `DRAWS` of them are drawn."""
DRAWS = 100_000


@dataclass(frozen=True)
class Difference:
    """What n paired differences say, in the unit of the numbers."""

    n: int
    mean: float
    low: float
    """Of the 95 % interval of the mean; nan for a single pair."""
    high: float
    p: float
    """Of the permutation test; nan for a single pair."""
    adjusted: float = math.nan
    """The same after Holm's correction over all arms that were compared."""


def difference(values: Sequence[float]) -> Difference:
    """Mean, interval and test of paired differences.

    Raises:
        ValueError: there are none.
    """
    if not values:
        raise ValueError("no pairs")
    if len(values) == 1:
        return Difference(1, values[0], math.nan, math.nan, math.nan)
    reach = half_width(values)
    return Difference(len(values), mean(values), mean(values) - reach, mean(values) + reach, permutation(values))


def half_width(values: Sequence[float], level: float = 0.95) -> float:
    """Half the width of Student's interval of the mean of two values or more (Student 1908)."""
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, len(values) - 1)) * stdev(values) / math.sqrt(len(values))


def permutation(values: Sequence[float]) -> float:
    """Share of all ways to swap the two of each pair that give a mean as far from 0 (Fisher 1935, section 21).

    Exact up to `EXACT` pairs, so never below 2 / 2^n; beyond, of a fixed sample of ways, the one at hand counted among them.
    """
    found, n = np.asarray(values, dtype=float), len(values)
    far = abs(found.sum()) - 1e-12 * np.abs(found).sum()  # as far but for rounding, also where the sum is nothing but that
    if n <= EXACT:
        signs = 1 - 2 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float((np.abs(signs @ found) >= far).mean())
    signs = np.random.default_rng(0).choice([-1.0, 1.0], size=(DRAWS, n))
    return float(((np.abs(signs @ found) >= far).sum() + 1) / (DRAWS + 1))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted so that the chance of any false alarm among them stays what it is (Holm 1979); nan stays and does not count."""
    order = sorted((index for index, p in enumerate(ps) if not math.isnan(p)), key=lambda index: ps[index])
    found, worst = [math.nan] * len(ps), 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(order) - rank) * ps[index]))
        found[index] = worst
    return found
