"""Spreads and comparisons against counting by hand and tabulated quantiles."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from tune_mm.stats import (
    METRICS,
    Spread,
    compare,
    direction,
    paired_gain,
    sign,
    signed_rank,
    smallest_p,
    spread,
    verdict,
)

WHOLE = st.lists(st.integers(-50, 50), min_size=3, max_size=6)
T_TWO = 4.302653  # the 97.5 % quantile of Student's t with two degrees of freedom, as tabulated


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
    # Differences 0.4, 0.2, 0.3: mean 0.3, deviation 0.1.
    assert found.difference == pytest.approx(0.3)
    assert found.p == 2 / 8 == smallest_p(3)  # of 8 ways to sign the ranks two lie as far out
    half = T_TWO * 0.1 / math.sqrt(3)
    assert [found.low, found.high] == pytest.approx([0.3 - half, 0.3 + half])


def test_fewer_than_three_seeds_claim_nothing() -> None:
    found = compare({1: 0.9, 2: 0.8}, {1: 0.5, 2: 0.6})
    assert found is not None
    assert found.difference == pytest.approx(0.3)
    assert (found.low, found.high, found.p, found.n, found.enough) == (None, None, None, 2, False)
    assert compare({1: 0.5}, {2: 0.5}) is None


def test_six_seeds_are_the_fewest_for_five_per_cent() -> None:
    six = compare(by_seed([1.0] * 6), by_seed([0.0] * 6))
    five = compare(by_seed([1.0] * 5), by_seed([0.0] * 5))
    assert six is not None and six.p == pytest.approx(2 / 2**6)
    assert five is not None and five.p == pytest.approx(2 / 2**5)
    assert smallest_p(6) < 0.05 < smallest_p(5)


def test_nothing_that_differs_is_no_difference() -> None:
    same = compare(by_seed([0.1 + 0.2, 0.7, 0.9]), by_seed([0.3, 0.7, 0.9]))
    assert same is not None and same.p == 1.0


def ranks(sizes: list[float]) -> list[float]:
    """Ranks from 1; equal ones share the mean of theirs."""
    return [sum(b < a for b in sizes) + (sizes.count(a) + 1) / 2 for a in sizes]


@settings(deadline=None)
@given(WHOLE)
def test_p_is_the_share_of_signed_ranks_that_lie_as_far_out(differences: list[int]) -> None:
    """Over all 2^n signs of the ranks of the differences that are not 0: the share whose sum is as
    far from 0.
    """
    kept = [float(d) for d in differences if d]
    if not kept:
        return
    order = ranks([abs(d) for d in kept])
    own = abs(sum(math.copysign(r, d) for r, d in zip(order, kept, strict=True)))
    sums = [
        abs(sum(s * r for s, r in zip(signs, order, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(kept))
    ]
    assert signed_rank([d / 7 for d in differences]) == pytest.approx(
        sum(x >= own for x in sums) / len(sums)
    )


@settings(deadline=None)
@given(WHOLE, WHOLE)
def test_turned_round_a_comparison_changes_its_sign_alone(a: list[int], b: list[int]) -> None:
    ours, reference = by_seed(list(map(float, a))), by_seed(list(map(float, b)))
    one, other = compare(ours, reference), compare(reference, ours)
    assert one is not None and other is not None
    assert (one.difference, one.n) == (-other.difference, other.n)
    assert one.p == pytest.approx(other.p)
    assert one.low is not None and one.high is not None
    assert [-one.low, -one.high] == pytest.approx([other.high, other.low])


@pytest.mark.parametrize("values", [[0.5], [0.1, 0.4], [0.7, 0.72, 0.69, 0.75]])
def test_an_interval_is_the_textbook_s(values: list[float]) -> None:
    found = spread(values)
    assert found is not None
    assert found.mean == pytest.approx(statistics.fmean(values))
    if len(values) == 1:
        assert (found.std, found.n, found.interval) == (None, 1, None)
    else:
        wanted = stats.t.interval(0.95, len(values) - 1, loc=found.mean, scale=stats.sem(values))
        assert found.interval == pytest.approx(wanted)


def test_a_gain_is_paired_and_signed_by_its_metric() -> None:
    ours = {1: 0.9, 2: 0.8, 5: 0.1}
    reference = {1: 0.6, 2: 0.7, 7: 0.9}
    up = paired_gain(ours, reference, "test/accuracy")
    down = paired_gain(ours, reference, "test/mae")
    assert up is not None and down is not None
    assert up.mean == pytest.approx(0.2)
    assert up.n == 2
    assert down.mean == pytest.approx(-0.2)
    assert paired_gain({1: 0.5}, {2: 0.5}, "test/accuracy") is None


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([0.10, 0.11, 0.09], "better"),
        ([-0.10, -0.11, -0.09], "worse"),
        ([0.10, -0.02, 0.01], "no difference shown"),
        ([0.10, 0.11], None),  # the interval excludes zero, but two seeds claim nothing
        ([0.10], None),
    ],
)
def test_a_verdict_says_where_the_interval_lies(values: list[float], wanted: str | None) -> None:
    assert verdict(spread(values)) == wanted


def test_without_a_gain_there_is_no_verdict() -> None:
    assert verdict(None) is None
    assert verdict(Spread(0.1, None, 1)) is None


def test_losses_and_errors_are_better_when_lower() -> None:
    lower = {name for name in METRICS if direction(f"val/{name}") == "min"}
    assert lower == {"loss", "mae"}
    assert direction("test/iou_car/rgb") == direction("test/dice_ET") == "max"
    assert (sign("val/mae/audio"), sign("val/f1")) == (-1, 1)


@pytest.mark.parametrize("name", ["accuracy", "best/accuracy", "val/nothing", "val/f1/a/b", ""])
def test_what_is_no_metric_has_no_direction(name: str) -> None:
    with pytest.raises(KeyError):
        direction(name)
