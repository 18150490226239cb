"""summary.json, and what of it goes on the parent run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from tune_mm.stats import Spread, spread
from tune_mm.tune.output.finals import FinalGroup, Finals
from tune_mm.tune.output.ranking import ranked, value_of, values_of
from tune_mm.tune.plan.plan import Plan
from tune_mm.tune.propose.ledger import Ledger

TOP = 10  # trials listed of each stage
STATES = {"COMPLETE": "completed", "PRUNED": "pruned"}
KEPT = ("epochs", "best_epoch", "seconds", "best_metrics")  # of a trial


def failures(ledgers: Mapping[str, Ledger]) -> tuple[list[str], list[str]]:
    """Trials that failed, and trials that diverged, each with its reason.

    To diverge is an outcome of the setting, no fault.
    """
    failed: list[str] = []
    diverged: list[str] = []
    for stage, ledger in ledgers.items():
        for trial in ledger.trials(TrialState.FAIL):
            reason = trial.user_attrs.get("reason", "no reason known")
            line = f"{stage} {trial.number}: {reason}"
            if trial.user_attrs.get("diverged"):
                diverged.append(line)
            else:
                failed.append(line)
    return failed, diverged


def summary(
    plan: Plan,
    ledgers: Mapping[str, Ledger],
    found: Finals | None,
    data_kind: str,
    status: str,
    seconds: float,
    uri: str,
) -> dict[str, Any]:
    """summary.json."""
    failed, diverged = failures(ledgers)
    best: dict[str, list[dict[str, Any]]] = {}
    for stage, ledger in ledgers.items():
        if stage != "final":
            best[stage] = [trial_facts(trial) for trial in ranked(ledger)[:TOP]]
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
        "stages": {stage: counts(ledger) for stage, ledger in ledgers.items()},
        "best": best,
        "finals": None if found is None else _finals(found),
        "failed": failed,
        "diverged": diverged,
    }


def counts(ledger: Ledger) -> dict[str, int]:
    """How many trials are in each state."""
    states = []
    for trial in ledger.trials():
        states.append(trial.state.name.lower())
    found = {}
    for state in sorted(set(states)):
        found[state] = states.count(state)
    return found


def trial_facts(trial: FrozenTrial) -> dict[str, Any]:
    """One trial as summary.json has it."""
    facts = {
        "trial": trial.number,
        "state": STATES.get(trial.state.name, "stopped"),
        "value": value_of(trial),
        "settings": values_of(trial),
    }
    for key in KEPT:
        if key in trial.user_attrs:
            facts[key] = trial.user_attrs[key]
    return facts


def _finals(found: Finals) -> dict[str, Any]:
    return {
        "chosen_by": "mean validation objective over seeds",
        "groups": [_group(found, group) for group in found.groups],
        "gain": _gain(found),
    }


def _group(found: Finals, group: FinalGroup) -> dict[str, Any]:
    means: dict[str, dict[str, float]] = {}
    for metric in next(iter(group.test.values()), {}):
        over_seeds = spread(group.test_by_seed(metric).values())
        if over_seeds is not None:
            means[metric] = _numbers(over_seeds)
    result = found.test(group)
    return {
        "source": group.source,
        "role": group.role,
        "settings": group.values,
        "val": dict(group.val),
        "test": {seed: dict(metrics) for seed, metrics in group.test.items()},
        "epoch_seconds": dict(group.epoch_seconds),
        "test_mean": means,
        "result": result and {"metric": found.metric, **_numbers(result), "n": result.n},
    }


def _gain(found: Finals) -> dict[str, Any] | None:
    gain = found.gain
    if gain is None:
        return None
    if gain.interval is None:
        interval = None
    else:
        interval = list(gain.interval)
    return {"metric": found.metric, **_numbers(gain), "n": gain.n, "interval95": interval}


def _numbers(found: Spread) -> dict[str, float]:
    """A single value has a deviation of 0 in summary.json."""
    return {"mean": found.mean, "std": found.std or 0.0}


def flat(found: Finals | None, ledgers: Mapping[str, Ledger]) -> dict[str, float]:
    """The few numbers that go on the parent run."""
    out: dict[str, float] = {}
    for stage, ledger in ledgers.items():
        best = ranked(ledger)
        if stage == "final" or not best:
            continue
        value = value_of(best[0])
        if value is not None:
            out[f"best/{stage}"] = value
    if found is None:
        return out
    for role, group in (("final", found.winner), ("baseline", found.baseline)):
        result = None if group is None else found.test(group)
        if result is not None:
            out[f"{role}/{found.metric}"] = result.mean
            out[f"{role}/{found.metric}/std"] = result.std or 0.0
    if found.gain is not None:
        out[f"gain/{found.metric}"] = found.gain.mean
    return out
