"""What the final runs say: settings over seeds, the winner, and its gain over the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tune_mm.stats import Spread, paired_gain, sign, spread
from tune_mm.tune.plan.plan import Plan
from tune_mm.tune.propose.ledger import Ledger


@dataclass(frozen=True)
class FinalGroup:
    """One setting's final runs, by seed."""

    source: str  # "search/7", "baseline/2", "grid/0"
    role: str  # tuned, baseline or grid
    values: Mapping[str, Any]  # the setting
    val: Mapping[int, float]  # the objective at the best validation epoch
    test: Mapping[int, Mapping[str, float]]  # all test metrics at that epoch
    # A run's whole training divided by its epochs: what a method does between them is part of it.
    epoch_seconds: Mapping[int, float] = field(default_factory=dict)

    def test_by_seed(self, metric: str) -> dict[int, float]:
        """One test metric, of the seeds that have it."""
        values: dict[int, float] = {}
        for seed, metrics in self.test.items():
            if metric in metrics:
                values[seed] = metrics[metric]
        return values


@dataclass(frozen=True)
class Finals:
    """The final runs of a search."""

    metric: str  # the test metric that belongs to the objective
    # Tuned settings, best first by mean validation objective (never by test), then the baseline's.
    groups: tuple[FinalGroup, ...]
    gain: Spread | None = None  # of the winner over the baseline

    def test(self, group: FinalGroup) -> Spread | None:
        """The test metric that belongs to the objective, over seeds."""
        return spread(group.test_by_seed(self.metric).values())

    @property
    def winner(self) -> FinalGroup | None:
        """The best by mean validation objective, the baseline aside."""
        own = []
        for group in self.groups:
            if group.role != "baseline":
                own.append(group)
        better = sign(self.metric)
        return max(own, key=lambda g: better * statistics.fmean(g.val.values()), default=None)

    def over(self, group: FinalGroup, other: FinalGroup) -> Spread | None:
        """By how much `group` is better than `other` in test, over the seeds that both have."""
        ours = group.test_by_seed(self.metric)
        theirs = other.test_by_seed(self.metric)
        return paired_gain(ours, theirs, self.metric)

    @property
    def baseline(self) -> FinalGroup | None:
        """The tuned baseline's runs."""
        return next((group for group in self.groups if group.role == "baseline"), None)


def finals(plan: Plan, ledger: Ledger, chosen: Mapping[str, Mapping[str, Any]]) -> Finals:
    """The final runs of the chosen settings, by source; one none of whose runs ended is left out.

    Tuned ones come best first, the points of a grid in its order.
    """
    groups: list[FinalGroup] = []
    ended = ledger.trials(TrialState.COMPLETE)
    for source, values in chosen.items():
        runs = []
        for run in ended:
            if run.user_attrs["source"] == source:
                runs.append(run)
        runs = [run for run in runs if _seed(run) in plan.final_seeds]
        if runs:
            groups.append(_group(source, values, runs))
    if not plan.space.exhaustive:
        better = 1 if plan.space.mode == "max" else -1
        groups.sort(
            key=lambda g: (g.role == "baseline", -better * statistics.fmean(g.val.values()))
        )
    found = Finals(metric_in_test(plan.space.spec.objective), tuple(groups))
    if found.winner is None or found.baseline is None:
        return found
    return replace(found, gain=found.over(found.winner, found.baseline))


def metric_in_test(objective: str) -> str:
    """The test metric that belongs to an objective."""
    return "test/" + objective.removeprefix("val/")


def _group(source: str, values: Mapping[str, Any], runs: Sequence[FrozenTrial]) -> FinalGroup:
    val: dict[int, float] = {}
    test: dict[int, Mapping[str, float]] = {}
    seconds: dict[int, float] = {}
    for run in runs:
        seed = _seed(run)
        attrs = run.user_attrs
        val[seed] = float(run.value or 0.0)
        test[seed] = attrs.get("test", {})
        if attrs.get("epochs") and "seconds" in attrs:
            seconds[seed] = attrs["seconds"] / attrs["epochs"]
    return FinalGroup(source, runs[0].user_attrs["role"], values, val, test, seconds)


def _seed(run: FrozenTrial) -> int:
    seed: int = run.user_attrs["values"]["seed"]
    return seed
