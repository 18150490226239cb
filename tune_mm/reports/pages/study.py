"""A search's trials as an Optuna study in memory, for Optuna's importances and pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from tune_mm.reports.pages.blocks import label
from tune_mm.reports.pages.search import Scalar, Search, SearchedDomain, Trial

STATES = {
    "completed": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "stopped": TrialState.RUNNING,
    "running": TrialState.RUNNING,
}


def study(search: Search, stage: str = "search", name: str = "") -> Study:
    """The trials of a tuning stage under their own numbers; a number without a run is a failed
    trial without settings.

    Texts are made fit for plotly's labels.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = search.trials.get(stage, ())
    domains = search.domains.get(stage, {})
    if search.mode == "min":
        direction = StudyDirection.MINIMIZE
    else:
        direction = StudyDirection.MAXIMIZE
    out = optuna.create_study(direction=direction, study_name=label(name) if name else None)
    seen = {}
    for key in domains:
        seen[key] = [t.settings[key] for t in trials if key in t.settings]
    drawn = {key: distribution(domain, seen[key]) for key, domain in domains.items() if seen[key]}
    for number, trial in sorted({t.number: t for t in trials if t.number >= 0}.items()):
        while len(out.trials) < number:
            out.add_trial(create_trial(state=TrialState.FAIL))
        out.add_trial(_frozen(trial, drawn))
    return out


def distribution(domain: SearchedDomain, seen: Sequence[Scalar]) -> BaseDistribution:
    """Optuna's form of a domain, widened to what was seen: population-based training leaves its
    bounds.
    """
    numbers = []
    for v in (*domain.args[:2], *seen):
        if isinstance(v, (int, float)) and not isinstance(v, bool):
            numbers.append(float(v))
    if domain.kind in ("choice", "grid") or len(numbers) < 2 + len(seen):
        return CategoricalDistribution(tuple(dict.fromkeys(map(_plain, (*domain.args, *seen)))))
    low = min(numbers)
    high = max(numbers)
    if domain.kind == "randint":
        return IntDistribution(int(low), math.ceil(high))
    return FloatDistribution(low, high, log=domain.kind == "loguniform" and low > 0)


def _plain(value: Scalar) -> Scalar:
    if isinstance(value, str):
        return label(value)
    return value


def _frozen(trial: Trial, drawn: dict[str, BaseDistribution]) -> FrozenTrial:
    state = STATES.get(trial.record.status, TrialState.FAIL)
    if state is TrialState.COMPLETE and trial.value is None:
        state = TrialState.FAIL
    params: dict[str, Any] = {}
    for k, v in trial.settings.items():
        if k in drawn:
            params[k] = _plain(v)
    return create_trial(
        state=state,
        value=trial.value if state is TrialState.COMPLETE else None,
        params=params,
        distributions={k: drawn[k] for k in params},
        intermediate_values={
            epoch: value for epoch, value in trial.progress if math.isfinite(value)
        },
    )
