"""What came out: finals as mean and deviation over seeds, the gain over the baseline, summary.json,
the last tables.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table
from scipy import stats

from tune_mm.core import metrics
from tune_mm.tune.output.display import number, settings
from tune_mm.tune.plan.plan import Plan
from tune_mm.tune.propose.ledger import Ledger
from tune_mm.tune.stages import ranked, value_of, values_of

TOP = 10
LEVEL = 0.95


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (0 for one value) of n values; half: half-width of the 95
    % t interval.
    """

    mean: float
    std: float
    n: int
    half: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        n = len(values)
        std = statistics.stdev(values) if n > 1 else 0.0
        half = (
            float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * std / math.sqrt(n) if n > 1 else math.nan
        )
        return cls(statistics.fmean(values), std, n, half)

    def text(self) -> str:
        return f"{self.mean:.4f} ± {self.std:.4f}"


@dataclass(frozen=True)
class Group:
    """One setting's final runs. val, test: the objective by seed, at the best validation epoch.
    epoch_seconds: by seed, a run's whole training divided by its epochs: what a method does between
    epochs is part of it.
    """

    source: str
    role: str
    values: Mapping[str, Any]
    val: Mapping[int, float]
    test: Mapping[int, Mapping[str, float]]
    epoch_seconds: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finals:
    """groups: tuned settings, best first by mean validation objective (never by test), then the
    baseline's.
    """

    metric: str
    groups: tuple[Group, ...]
    gain: Spread | None

    def test(self, group: Group) -> Spread | None:
        """The test metric that belongs to the objective, over seeds."""
        found = [m[self.metric] for m in group.test.values() if self.metric in m]
        return Spread.of(found) if found else None

    @property
    def winner(self) -> Group | None:
        """The best by mean validation objective, the baseline aside."""
        sign = 1 if metrics.mode(self.metric) == "max" else -1
        own = [g for g in self.groups if g.role != "baseline"]
        return max(own, key=lambda g: sign * statistics.fmean(g.val.values()), default=None)

    def over(self, group: Group, other: Group) -> Spread | None:
        """By how much `group` is better than `other` in the test metric, over the seeds that both
        have.
        """
        sign = 1 if metrics.mode(self.metric) == "max" else -1
        both = [
            s
            for s in group.test
            if s in other.test and self.metric in group.test[s].keys() & other.test[s].keys()
        ]
        differences = [
            sign * (group.test[s][self.metric] - other.test[s][self.metric]) for s in both
        ]
        return Spread.of(differences) if differences else None

    @property
    def baseline(self) -> Group | None:
        return next((g for g in self.groups if g.role == "baseline"), None)


def finals(plan: Plan, book: Ledger, chosen: Mapping[str, Mapping[str, Any]]) -> Finals:
    """The final runs of the chosen settings, by source; one none of whose runs ended is left out.

    Tuned ones come best first, the points of a grid in its order.
    """
    sign = 1 if plan.space.mode == "max" else -1
    groups = []
    for source, values in chosen.items():
        runs = [t for t in book.trials(TrialState.COMPLETE) if t.user_attrs["source"] == source]
        runs = [t for t in runs if t.user_attrs["values"]["seed"] in plan.final_seeds]
        if runs:
            val = {t.user_attrs["values"]["seed"]: float(t.value or 0.0) for t in runs}
            test = {t.user_attrs["values"]["seed"]: t.user_attrs.get("test", {}) for t in runs}
            groups.append(
                Group(source, runs[0].user_attrs["role"], values, val, test, _epoch_seconds(runs))
            )
    if not plan.space.exhaustive:
        groups.sort(key=lambda g: (g.role == "baseline", -sign * statistics.fmean(g.val.values())))
    found = Finals("test/" + plan.space.spec.objective.removeprefix("val/"), tuple(groups), None)
    ours, theirs = found.winner, found.baseline
    return (
        found
        if ours is None or theirs is None
        else Finals(found.metric, found.groups, found.over(ours, theirs))
    )


def _epoch_seconds(runs: Sequence[FrozenTrial]) -> dict[int, float]:
    told = [(t.user_attrs["values"]["seed"], t.user_attrs) for t in runs]
    return {
        seed: attrs["seconds"] / attrs["epochs"]
        for seed, attrs in told
        if attrs.get("epochs") and "seconds" in attrs
    }


def failures(books: Mapping[str, Ledger]) -> tuple[list[str], list[str]]:
    """Trials that failed, and trials that diverged (an outcome of the setting, not a fault), each
    with its reason.
    """
    failed: list[str] = []
    diverged: list[str] = []
    for stage, book in books.items():
        for trial in book.trials(TrialState.FAIL):
            line = f"{stage} {trial.number}: {trial.user_attrs.get('reason', 'no reason known')}"
            (diverged if trial.user_attrs.get("diverged") else failed).append(line)
    return failed, diverged


def summary(
    plan: Plan,
    books: Mapping[str, Ledger],
    found: Finals | None,
    data_kind: str,
    status: str,
    seconds: float,
    uri: str,
) -> dict[str, Any]:
    """summary.json."""
    failed, diverged = failures(books)
    return {
        "format": 1,
        "name": plan.name,
        "uid": plan.uid,
        "space": plan.space.name,
        "method": plan.space.base.method.name,
        "objective": plan.space.spec.objective,
        "mode": plan.space.mode,
        "status": status,
        "data_kind": data_kind,
        "seed": plan.seed,
        "epochs": {"search": plan.epochs, "final": plan.final_epochs},
        "seconds": round(seconds, 1),
        "tracking_uri": uri,
        "stages": {stage: _counts(book) for stage, book in books.items()},
        "best": {
            stage: [_trial(t) for t in ranked(book)[:TOP]]
            for stage, book in books.items()
            if stage != "final"
        },
        "finals": found and _finals(found),
        "failed": failed,
        "diverged": diverged,
    }


def _counts(book: Ledger) -> dict[str, int]:
    states = [t.state.name.lower() for t in book.trials()]
    return {state: states.count(state) for state in sorted(set(states))}


def _trial(trial: FrozenTrial) -> dict[str, Any]:
    kept: dict[str, Any] = {
        k: trial.user_attrs[k]
        for k in ("epochs", "best_epoch", "seconds", "best_metrics")
        if k in trial.user_attrs
    }
    state = {"COMPLETE": "completed", "PRUNED": "pruned"}.get(trial.state.name, "stopped")
    return {
        "trial": trial.number,
        "state": state,
        "value": value_of(trial),
        "settings": values_of(trial),
        **kept,
    }


def _finals(found: Finals) -> dict[str, Any]:
    groups = []
    for group in found.groups:
        test = found.test(group)
        mean_of = {
            k: Spread.of([m[k] for m in group.test.values()])
            for k in next(iter(group.test.values()), {})
        }
        groups.append(
            {
                "source": group.source,
                "role": group.role,
                "settings": group.values,
                "val": dict(group.val),
                "test": {seed: dict(m) for seed, m in group.test.items()},
                "epoch_seconds": dict(group.epoch_seconds),
                "test_mean": {k: {"mean": s.mean, "std": s.std} for k, s in mean_of.items()},
                "result": test
                and {"metric": found.metric, "mean": test.mean, "std": test.std, "n": test.n},
            }
        )
    gain = found.gain
    interval = (
        None if gain is None or gain.n < 2 else [gain.mean - gain.half, gain.mean + gain.half]
    )
    return {
        "chosen_by": "mean validation objective over seeds",
        "groups": groups,
        "gain": gain
        and {
            "metric": found.metric,
            "mean": gain.mean,
            "std": gain.std,
            "n": gain.n,
            "interval95": interval,
        },
    }


def flat(found: Finals | None, books: Mapping[str, Ledger]) -> dict[str, float]:
    """The few numbers that go on the parent run."""
    out: dict[str, float] = {}
    for stage, book in books.items():
        best = ranked(book)
        if stage != "final" and best and (value := value_of(best[0])) is not None:
            out[f"best/{stage}"] = value
    if found is not None:
        for role, group in (("final", found.winner), ("baseline", found.baseline)):
            spread = found.test(group) if group is not None else None
            if spread is not None:
                out |= {
                    f"{role}/{found.metric}": spread.mean,
                    f"{role}/{found.metric}/std": spread.std,
                }
        if found.gain is not None:
            out[f"gain/{found.metric}"] = found.gain.mean
    return out


# ---- tables


def show(console: Console, plan: Plan, books: Mapping[str, Ledger], found: Finals | None) -> None:
    """The last tables: best trials, finals, gain."""
    for stage in ("search", "baseline"):
        if stage in books:
            console.print(_best_table(plan, stage, books[stage], 5 if stage == "search" else 1))
    if found is not None and found.groups:
        console.print(_finals_table(plan, found))
        # Within a suite the table of all searches has the gain.
        if not (plan.space.exhaustive or plan.options.suite):
            console.print(_verdict(found))


def _best_table(plan: Plan, stage: str, book: Ledger, rows: int) -> Table:
    objective, counts = plan.space.spec.objective, _counts(book)
    told = ", ".join(f"{n} {s}" for s, n in counts.items())
    table = Table(title=f"{stage} of {plan.name}: {told}", title_justify="left")
    for name in ("trial", objective, "epochs", "state", "settings"):
        table.add_column(
            name, justify="right" if name in ("trial", objective, "epochs") else "left"
        )
    for trial in ranked(book)[:rows]:
        row = _trial(trial)
        cells = (str(trial.number), number(row["value"]), str(row.get("epochs", "-")), row["state"])
        table.add_row(*cells, settings(row["settings"]))
    return table


def _finals_table(plan: Plan, found: Finals) -> Table:
    seeds = ", ".join(map(str, plan.final_seeds))
    how = "every point of the grid" if plan.space.exhaustive else "chosen by validation"
    title = f"finals: {plan.final_epochs} epochs, seeds {seeds}; mean ± standard deviation; {how}"
    table = Table(title=title, title_justify="left")
    against = ("over the first",) if plan.space.exhaustive else ()
    for name in ("from", "runs", plan.space.spec.objective, found.metric, *against, "settings"):
        table.add_column(name, justify="left" if name in ("from", "settings") else "right")
    for group in found.groups:
        test = found.test(group)
        val = Spread.of(list(group.val.values()))
        cells = [
            group.source.replace("/", " "),
            str(val.n),
            val.text(),
            test.text() if test else "-",
        ]
        if against:
            gain = found.over(group, found.groups[0])
            cells.append(
                ""
                if group is found.groups[0]
                else f"{gain.mean:+.4f} ± {gain.std:.4f}"
                if gain
                else "-"
            )
        table.add_row(*cells, settings(group.values), style="bold" if group is found.winner else "")
    return table


def _verdict(found: Finals) -> str:
    gain = found.gain
    if gain is None:
        return (
            "no baseline to compare with"
            if found.baseline is None
            else "no gain: no seed ended in both"
        )
    way = "lower is better" if metrics.mode(found.metric) == "min" else "higher is better"
    if gain.n < 2:
        return f"gain over the tuned baseline: {gain.mean:+.4f} {found.metric} ({way}; one seed, no interval)"
    low, high = gain.mean - gain.half, gain.mean + gain.half
    sure = "" if low > 0 or high < 0 else "; zero lies within: no difference is shown"
    size = f"{gain.mean:+.4f} ± {gain.std:.4f} {found.metric} ({way})"
    return f"gain over the tuned baseline: {size}, {gain.n} paired seeds, 95 % interval {low:+.4f} to {high:+.4f}{sure}"
