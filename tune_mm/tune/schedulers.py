"""Which trials are stopped early: Ray's schedulers, and their memory given back after a resume.

Ray keeps a scheduler's memory in its own experiment state, which is not used here: a resumed search starts a fresh
scheduler. ASHA's rungs are rebuilt from the ledger's intermediate values; the others start without memory.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from tune_mm.tune.domains import Domain
from tune_mm.tune.ledger import Assignment
from tune_mm.tune.searchers import OBJECTIVE_KEY

TIME = "training_iteration"
History = Iterable[tuple[int, float]]

FORGETFUL = {
    "hyperband": "hyperband's brackets start empty",
    "median": "the median rule compares with trials from now on only",
    "pbt": "the population starts from the trials that run now",
}


class _Past:
    """Stands for a trial of an earlier driver in a bracket, which looks at the id only."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class Asha(AsyncHyperBandScheduler):
    """ASHA that can be told what happened before it was made.

    past: the reports of every trial that ended, by number. resumed: trials that go on from a checkpoint, with what they
    had reported up to it: their rungs are filled when they are added, under the id they have now.
    """

    def __init__(self, past: Mapping[int, History], resumed: Mapping[int, Assignment], **settings: Any) -> None:
        super().__init__(**settings)
        self._resumed, self._given = resumed, set[int]()
        for number, history in past.items():
            self._feed(_Past(f"past-{number}"), history)

    def _feed(self, trial: Any, history: History) -> None:
        sign = 1.0 if self._mode == "max" else -1.0
        for epoch, value in history:
            self._brackets[0].on_result(trial, epoch, sign * value)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Ray's, then the trial's own past (once: a trial whose worker died is added again)."""
        super().on_trial_add(tune_controller, trial)
        number: int = trial.config["number"]
        if number in self._resumed and number not in self._given:
            self._given.add(number)
            self._feed(trial, self._resumed[number].reported)


def epochs_of(share: float, epochs: int) -> int:
    """A float below 1 is a share of `epochs`, else it is epochs; at least 1, at most all."""
    return max(1, min(epochs, round(share * epochs) if 0 < share < 1 else int(share)))


def make(
    name: str,
    mode: str,
    epochs: int,
    grace: float,
    reduction: float,
    domains: Mapping[str, Domain],
    past: Mapping[int, History],
    resumed: Mapping[int, Assignment],
) -> TrialScheduler:
    """The scheduler `name`. grace: see epochs_of; for pbt it is the number of epochs between two exploits."""
    first = epochs_of(grace, epochs)
    goal: dict[str, Any] = {"time_attr": TIME, "metric": OBJECTIVE_KEY, "mode": mode}
    if name == "asha":
        settings = {**goal, "max_t": epochs, "grace_period": first, "reduction_factor": reduction}
        return Asha(past, resumed, **settings)
    if name == "hyperband":
        return HyperBandScheduler(**goal, max_t=epochs, reduction_factor=reduction)
    if name == "median":
        return MedianStoppingRule(**goal, grace_period=first)
    if name == "pbt":
        mutations: dict[str, Any] = {"values": {k: _mutation(d) for k, d in domains.items() if mutable(k, d)}}
        return PopulationBasedTraining(**goal, perturbation_interval=first, hyperparam_mutations=mutations)
    none: Any = FIFOScheduler  # which has no type hints
    return cast("TrialScheduler", none())


def mutable(key: str, domain: Domain) -> bool:
    """Whether population-based training may change the setting mid-run: floats of the method and the optimizer."""
    return key.startswith(("method.", "optim.")) and domain.kind in ("uniform", "loguniform", "quniform")


def _mutation(domain: Domain) -> Any:
    numbers: tuple[Any, ...] = domain.args
    draw: dict[str, Any] = {"uniform": tune.uniform, "loguniform": tune.loguniform, "quniform": tune.quniform}
    return draw[domain.kind](*numbers)


def rungs(epochs: int, grace: float, reduction: float) -> tuple[int, ...]:
    """The epochs at which ASHA decides (for the plan that is shown)."""
    first = epochs_of(grace, epochs)
    count = int(math.log(epochs / first) / math.log(reduction) + 1)
    return tuple(int(first * reduction**k) for k in range(count))
