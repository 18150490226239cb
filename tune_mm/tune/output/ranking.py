"""Trials of a ledger by objective, and the settings that they stand for."""

from __future__ import annotations

from optuna.trial import FrozenTrial, TrialState

from tune_mm.tune.propose.ledger import Ledger
from tune_mm.tune.space.domains import Values


def values_of(trial: FrozenTrial) -> Values:
    """A trial's settings; under population-based training, those it ended with."""
    return dict(trial.user_attrs.get("values") or trial.params)


def value_of(trial: FrozenTrial) -> float | None:
    """The objective of a trial, at its end or as far as it came."""
    if trial.state == TrialState.COMPLETE:
        return trial.value
    reported = trial.intermediate_values
    if not reported:
        return None
    return reported[max(reported)]


def ranked(ledger: Ledger) -> list[FrozenTrial]:
    """Trials by objective, best first: completed ones, then those that were stopped, never failed.

    Of several with the same settings the best stays.
    """
    ordered = _by_objective(ledger, TrialState.COMPLETE)
    ordered += _by_objective(ledger, TrialState.PRUNED, TrialState.RUNNING)
    seen: list[Values] = []
    distinct: list[FrozenTrial] = []
    for trial in ordered:
        values = values_of(trial)
        if values not in seen:
            seen.append(values)
            distinct.append(trial)
    return distinct


def _by_objective(ledger: Ledger, *states: TrialState) -> list[FrozenTrial]:
    sign = -1 if ledger.mode == "max" else 1
    found: list[tuple[float, int, FrozenTrial]] = []
    for trial in ledger.trials(*states):
        value = value_of(trial)
        if value is not None:
            found.append((sign * value, trial.number, trial))
    found.sort(key=lambda one: one[:2])
    return [trial for *_, trial in found]
