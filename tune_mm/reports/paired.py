"""Numbers over seeds: mean and standard deviation, and what a difference between two settings amounts to.

Two settings are compared seed by seed, since a seed fixes the initial weights and the order of the data in both. With d
the n differences:

    interval   95 % percentile bootstrap of mean(d) (Efron & Tibshirani 1993, ch. 13), over all n^n resamples where they
               can be counted, else over 10 000 drawn ones
    p          two-sided sign-flip (permutation) test of mean(d) = 0: the share of the 2^n ways to sign d whose mean is
               as far from 0 or farther (Fisher 1935); it cannot be less than 2^(1-n)

so three seeds give p >= 0.25, whatever they measure: six are the fewest that can give p < 0.05.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

FEWEST = 3  # seeds below which nothing is claimed
COUNTED = 6  # n up to which all n^n resamples are counted
SIGNED = 16  # n up to which all 2^n signs are counted
DRAWS = 10_000
LEVEL = 0.05


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (None for one value) of n values."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Comparison:
    """The mean difference over the n seeds that two settings share; low, high, p: None where n is too small."""

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
    """`ours` minus `reference` over the seeds that both have (values by seed, finite); None without such seeds."""
    shared = sorted(ours.keys() & reference.keys())
    if not shared:
        return None
    differences = np.array([ours[seed] - reference[seed] for seed in shared])
    mean, n = math.fsum(differences) / len(shared), len(shared)
    if n < FEWEST:
        return Comparison(mean, None, None, None, n)
    low, high = interval(differences)
    return Comparison(mean, low, high, sign_flip(differences), n)


def interval(differences: np.ndarray) -> tuple[float, float]:
    """The bounds within which 95 % of the resampled means of [n] differences lie; the same for the same differences."""
    n = len(differences)
    if n <= COUNTED:
        chosen = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        chosen = np.random.default_rng(0).integers(n, size=(DRAWS, n))
    # Few resamples leave gaps between quantiles: the outer value is taken, not one between.
    means = np.sort(differences[chosen].mean(axis=1))
    outside = math.floor(LEVEL / 2 * len(means))
    return float(means[outside]), float(means[-1 - outside])


def sign_flip(differences: np.ndarray) -> float:
    """The two-sided p of [n] differences; beyond SIGNED of them estimated from drawn signs, their own among them."""
    n = len(differences)
    if n <= SIGNED:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    else:
        drawn = np.random.default_rng(0).choice([-1, 1], size=(DRAWS, n))
        signs = np.concatenate([np.ones((1, n), dtype=drawn.dtype), drawn])
    sums = np.abs(signs @ differences)
    slack = 1e-12 * np.abs(differences).sum()  # sums that are equal on paper differ by rounding
    return float(np.mean(sums >= abs(differences.sum()) - slack))


def smallest_p(n: int) -> float:
    """The least p that n differences can give."""
    return float(2.0 ** (1 - n))
