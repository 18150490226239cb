"""Statistics over seeds: spread, paired gain, interval, verdict, and which way a metric is better.

Two settings are compared seed by seed, since a seed fixes the initial weights and the order of the
data in both. With d the n differences:

    interval   95 % Student-t interval of mean(d)
    p          two-sided Wilcoxon signed-rank test of d (Wilcoxon 1945; scipy, exact for few seeds);
               it cannot be less than 2^(1-n), so six seeds are the fewest that can give p < 0.05
    verdict    whether zero lies within the interval; nothing is claimed from fewer than FEWEST seeds
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Direction = Literal["min", "max"]
Verdict = Literal["better", "worse", "no difference shown"]
Seed = TypeVar("Seed", bound=Hashable)

FEWEST = 3  # seeds below which nothing is claimed
LEVEL = 0.95  # of all intervals

CLASSIFICATION: dict[str, Direction] = {
    "loss": "min",
    "accuracy": "max",
    "balanced_accuracy": "max",
    "f1": "max",
    "f1_macro": "max",
}
REGRESSION: dict[str, Direction] = {
    "loss": "min",
    "mae": "min",
    "corr": "max",
    "acc2": "max",
    "acc2_nonzero": "max",
    "acc2_positive": "max",
    "acc7": "max",
    "f1": "max",
}
SEGMENTATION: dict[str, Direction] = {
    "loss": "min",
    "accuracy": "max",
    "miou": "max",
    "dice": "max",
}
METRICS: dict[str, Direction] = {**REGRESSION, **CLASSIFICATION, **SEGMENTATION}
SPLITS = ("train", "val", "test")
OF_A_CLASS = ("iou_", "dice_")  # followed by the name of a class or a region


def direction(metric: str) -> Direction:
    """Whether less or more of `split/metric[/modality]` is better. Raises KeyError for no metric."""
    parts = metric.split("/")
    if len(parts) not in {2, 3} or parts[0] not in SPLITS:
        raise KeyError(metric)
    name = parts[1]
    if name.startswith(OF_A_CLASS):
        return "max"
    return METRICS[name]


def direction_or_max(name: str) -> Direction:
    """The direction of a metric; "max" for other names, such as an objective of one's own."""
    try:
        return direction(name)
    except KeyError:
        return "max"


def sign(metric: str) -> int:
    """1 where more of a metric is better, else -1. Raises KeyError for no metric."""
    if direction(metric) == "max":
        return 1
    return -1


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation of n values."""

    mean: float
    std: float | None  # None for one value
    n: int

    @property
    def interval(self) -> tuple[float, float] | None:
        """The Student-t interval of the mean at LEVEL; None for one value."""
        if self.std is None:
            return None
        from scipy import stats

        quantile = float(stats.t.ppf((1 + LEVEL) / 2, self.n - 1))
        half = quantile * self.std / math.sqrt(self.n)
        return self.mean - half, self.mean + half


def spread(values: Collection[float]) -> Spread | None:
    """The spread of finite values; None of none."""
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), std, len(values))


def differences(ours: Mapping[Seed, float], reference: Mapping[Seed, float]) -> dict[Seed, float]:
    """`ours` minus `reference`, by seed, over the seeds that both have."""
    found = {}
    for seed, value in ours.items():
        if seed in reference:
            found[seed] = value - reference[seed]
    return found


def paired_gain(
    ours: Mapping[Seed, float], reference: Mapping[Seed, float], metric: str
) -> Spread | None:
    """By how much `ours` is better, over the seeds that both have; None without such seeds."""
    found = differences(ours, reference)
    return spread([sign(metric) * value for value in found.values()])


@dataclass(frozen=True)
class Comparison:
    """The mean difference over the n seeds that two settings share."""

    difference: float
    # The interval and the two-sided p of Wilcoxon's signed-rank test; None of fewer than FEWEST.
    low: float | None
    high: float | None
    p: float | None
    n: int

    @property
    def enough(self) -> bool:
        """Whether there are seeds enough for an interval and a p."""
        return self.p is not None


def compare(ours: Mapping[Seed, float], reference: Mapping[Seed, float]) -> Comparison | None:
    """`ours` minus `reference`, paired by seed (finite values); None without shared seeds."""
    found = list(differences(ours, reference).values())
    mean = spread(found)
    if mean is None:
        return None
    if mean.n < FEWEST or mean.interval is None:
        return Comparison(mean.mean, None, None, None, mean.n)
    low, high = mean.interval
    return Comparison(mean.mean, low, high, signed_rank(found), mean.n)


def verdict(gain: Spread | None) -> Verdict | None:
    """What a gain shows; None where it is of fewer than FEWEST seeds."""
    if gain is None or gain.n < FEWEST or gain.interval is None:
        return None
    low, high = gain.interval
    if low > 0:
        return "better"
    if high < 0:
        return "worse"
    return "no difference shown"


def signed_rank(values: Sequence[float]) -> float:
    """The two-sided p of Wilcoxon's signed-rank test of differences; 1 when nothing differs.

    Differences that are equal on paper differ by rounding, which would break ties: they are rounded
    to 12 digits.
    """
    from scipy import stats

    rounded = [round(value, 12) for value in values]
    if not any(rounded):
        return 1.0
    return float(stats.wilcoxon(rounded).pvalue)


def smallest_p(n: int) -> float:
    """The least p that n differences can give."""
    return 2.0 ** (1 - n)
