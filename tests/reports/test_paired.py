"""Spreads and comparisons against counting by hand, exact fractions and scipy."""

from __future__ import annotations

import itertools
import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tune_mm.reports.paired import compare, interval, sign_flip, smallest_p, spread

WHOLE = st.lists(st.integers(-50, 50), min_size=3, max_size=6)


def by_seed(values: list[float]) -> dict[int, float]:
    return dict(enumerate(values, 1))


def test_a_spread_is_mean_and_sample_deviation() -> None:
    found = spread([0.6, 0.7, 0.9])
    # mean 2.2 / 3; squares of the deviations: 0.0178 + 0.0011 + 0.0278 = 0.14 / 3, over n - 1 = 2
    assert found is not None and found.n == 3
    assert [found.mean, found.std] == pytest.approx([2.2 / 3, math.sqrt(0.14 / 6)])


def test_one_value_has_no_deviation_and_none_no_spread() -> None:
    one = spread([0.5])
    assert one is not None and (one.mean, one.std, one.n) == (0.5, None, 1)
    assert spread([]) is None


def test_a_comparison_is_over_the_seeds_that_both_have() -> None:
    found = compare({1: 0.9, 2: 0.8, 3: 0.7, 9: 5.0}, {1: 0.5, 2: 0.6, 3: 0.4, 8: -5.0})
    assert found is not None
    assert found.n == 3 and found.enough
    assert found.difference == pytest.approx((0.4 + 0.2 + 0.3) / 3)
    # All differences are positive: of 8 ways to sign them only this one and its opposite are as far from 0.
    assert found.p == 2 / 8 == smallest_p(3)
    # Of the 27 resamples the lowest and the highest 2.5 % hold less than one: the least and the greatest difference.
    assert [found.low, found.high] == pytest.approx([0.2, 0.4])


def test_fewer_than_three_seeds_claim_nothing() -> None:
    found = compare({1: 0.9, 2: 0.8}, {1: 0.5, 2: 0.6})
    assert found is not None
    assert found.difference == pytest.approx(0.3)
    assert (found.low, found.high, found.p, found.n, found.enough) == (None, None, None, 2, False)
    assert compare({1: 0.5}, {2: 0.5}) is None


def test_six_seeds_are_the_fewest_for_five_per_cent() -> None:
    six = compare(by_seed([1.0] * 6), by_seed([0.0] * 6))
    five = compare(by_seed([1.0] * 5), by_seed([0.0] * 5))
    assert six is not None and six.p == 2 / 2**6 < 0.05
    assert five is not None and five.p == 2 / 2**5 > 0.05


@given(WHOLE)
def test_p_is_the_share_of_signings_that_lie_as_far_out(differences: list[int]) -> None:
    sums = [sum(s * d for s, d in zip(signs, differences, strict=True))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    expected = sum(abs(x) >= abs(sum(differences)) for x in sums) / len(sums)
    assert sign_flip(np.array(differences, dtype=float) / 7) == pytest.approx(expected)


def test_p_is_scipys() -> None:
    differences = np.array([0.3, -0.1, 0.25, 0.4, 0.05, -0.02, 0.31])
    theirs = stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(differences) == pytest.approx(theirs.pvalue)


@given(WHOLE)
def test_the_interval_leaves_no_more_than_its_share_outside(differences: list[int]) -> None:
    """Of all n^n resampled means, counted as fractions, at most 2.5 % lie below the interval and 2.5 % above."""
    n = len(differences)
    means = [Fraction(sum(c), n) for c in itertools.product(differences, repeat=n)] if n < 6 else []
    low, high = interval(np.array(differences, dtype=float))
    assert min(differences) <= low <= high <= max(differences)
    if means:
        assert sum(float(m) < low - 1e-9 for m in means) <= 0.025 * len(means)
        assert sum(float(m) > high + 1e-9 for m in means) <= 0.025 * len(means)
        # The next mean inwards would leave more outside.
        assert sum(float(m) <= low + 1e-9 for m in means) > 0.025 * len(means)


def test_the_interval_of_many_seeds_is_that_of_the_normal_law() -> None:
    differences = np.random.default_rng(3).normal(0.5, 1.0, 40)
    half = 1.96 * statistics.stdev(differences.tolist()) / math.sqrt(40)
    low, high = interval(differences)
    assert low == pytest.approx(differences.mean() - half, abs=0.06)
    assert high == pytest.approx(differences.mean() + half, abs=0.06)
    assert interval(differences) == (low, high)


def test_p_of_many_seeds_is_that_of_a_t_test() -> None:
    differences = np.random.default_rng(5).normal(0.3, 1.0, 30)
    assert sign_flip(differences) == pytest.approx(stats.ttest_1samp(differences, 0.0).pvalue, abs=0.02)


@given(WHOLE, WHOLE)
def test_turned_round_a_comparison_changes_its_sign_alone(a: list[int], b: list[int]) -> None:
    ours, reference = by_seed(list(map(float, a))), by_seed(list(map(float, b)))
    one, other = compare(ours, reference), compare(reference, ours)
    assert one is not None and other is not None
    assert (one.difference, one.p, one.n) == (-other.difference, other.p, other.n)
    assert one.low is not None and one.high is not None
    assert [-one.low, -one.high] == pytest.approx([other.high, other.low])
