"""Numbers over seeds: mean and standard deviation, and what a difference between two settings
amounts to.

Two settings are compared seed by seed, since a seed fixes the initial weights and the order of the
data in both. With d the n differences:

    interval   95 % Student-t interval of mean(d), as a search states its gain over the baseline
    p          two-sided Wilcoxon signed-rank test of d (Wilcoxon 1945; scipy, exact for the few seeds there are); it
               cannot be less than 2^(1-n)

so three seeds give p >= 0.25, whatever they measure: six are the fewest that can give p < 0.05.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST = 3  # seeds below which nothing is claimed
LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for one value) of n values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """The mean difference over the n seeds that two settings share; low, high, p: None where n is
    too small.
    """

    difference: float
    low: float | None
    high: float | None
    p: float | None
    n: int

    @property
    def enough(self) -> bool:
        """Whether there are seeds enough for an interval and a p."""
        return self.p is not None


def spread(values: Collection[float]) -> Spread | None:
    """Mean and sample standard deviation of finite values; None of none."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))


def compare(ours: Mapping[int, float], reference: Mapping[int, float]) -> Comparison | None:
    """`ours` minus `reference` over the seeds that both have (values by seed, finite); None without
    such seeds.
    """
    shared = sorted(ours.keys() & reference.keys())
    if not shared:
        return None
    differences = [ours[seed] - reference[seed] for seed in shared]
    mean, n = statistics.fmean(differences), len(shared)
    if n < FEWEST:
        return Comparison(mean, None, None, None, n)
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * statistics.stdev(differences) / math.sqrt(n)
    return Comparison(mean, mean - half, mean + half, signed_rank(differences), n)


def signed_rank(differences: Sequence[float]) -> float:
    """The two-sided p of Wilcoxon's signed-rank test; 1 when nothing differs.

    Differences that are equal on paper differ by rounding, which would break ties: they are rounded
    to 12 digits.
    """
    rounded = np.round(differences, 12)
    return float(stats.wilcoxon(rounded).pvalue) if rounded.any() else 1.0


def smallest_p(n: int) -> float:
    """The least p that n differences can give."""
    return float(2.0 ** (1 - n))
