"""Which trials are stopped early: Ray's schedulers, and their memory given back after a resume.

Ray keeps a scheduler's memory in its own experiment state, which is not used here: a resumed search starts a fresh
scheduler. The rungs of asha and hyperband are rebuilt from the ledger's intermediate
values; the others start without memory.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping
from types import SimpleNamespace
from typing import Any, cast

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from tune_mm.config import ScheduleConfig
from tune_mm.core.schedule import epochs_of as schedule_span
from tune_mm.tune.domains import Domain
from tune_mm.tune.ledger import Assignment
from tune_mm.tune.searchers import OBJECTIVE_KEY

TIME = "training_iteration"
History = Iterable[tuple[int, float]]

FORGETFUL = {
    "median": "the median rule compares with trials from now on only",
    "pbt": "the population starts from the trials that run now",
}


class _Past:
    """Stands for a trial of an earlier driver in a bracket, which looks at the id only."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class Asha(AsyncHyperBandScheduler):
    """ASHA, or with several brackets asynchronous HyperBand, that can be told what happened before it was made.

    past: the reports of every trial that ended, by number. resumed: trials that go on from a checkpoint, with what they
    had reported up to it: their rungs are filled when they are added, under the id they have now. A bracket is a
    function of the trial's number (Ray draws it), so that it is the same after a resume.
    """

    def __init__(self, past: Mapping[int, History], resumed: Mapping[int, Assignment], **settings: Any) -> None:
        super().__init__(**settings)
        self._resumed, self._given = resumed, set[int]()
        for number, history in past.items():
            self._feed(number, _Past(f"past-{number}"), history)

    def bracket(self, number: int) -> int:
        """The bracket of a trial: the more rungs, the likelier, with Ray's weights."""
        sizes = [len(b._rungs) for b in self._brackets]
        weights = [math.exp(s - max(sizes)) for s in sizes]
        return random.Random(number).choices(range(len(sizes)), weights)[0]

    def _feed(self, number: int, trial: Any, history: History) -> None:
        sign = 1.0 if self._mode == "max" else -1.0
        for epoch, value in history:
            self._brackets[self.bracket(number)].on_result(trial, epoch, sign * value)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Ray's, then the trial's own past (once: a trial whose worker died is added again)."""
        super().on_trial_add(tune_controller, trial)
        number: int = trial.config["number"]
        self._trial_info[trial.trial_id] = self._brackets[self.bracket(number)]
        if number in self._resumed and number not in self._given:
            self._given.add(number)
            self._feed(number, trial, self._resumed[number].reported)


class Pbt(PopulationBasedTraining):
    """Ray's, for trials that a searcher proposed.

    Ray refuses that because a searcher would be told a result for settings that have changed since. Here the ledger
    keeps the settings that a trial ends with.
    """

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(cast("Any", SimpleNamespace(search_alg=None)), trial)


def epochs_of(share: float, epochs: int) -> int:
    """A float below 1 is a share of `epochs`, else it is epochs; at least 1, at most all."""
    return max(1, min(epochs, round(share * epochs) if 0 < share < 1 else int(share)))


def first_stop(grace: float, epochs: int, schedule: ScheduleConfig | None) -> int:
    """The epoch at which a trial may be stopped first: after `grace` and, under a step schedule, a twentieth of the
    epochs (at least one) past its last drop. schedule None: by `grace` alone."""
    first = epochs_of(grace, epochs)
    if schedule is None or schedule.name != "step":
        return first
    drops = [round(schedule_span(m, epochs)) for m in schedule.milestones]
    last = max((d for d in drops if d < epochs), default=0)
    return min(epochs, max(first, last + max(1, round(epochs / 20))))


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
    """The scheduler `name`. hyperband is the asynchronous one: Ray's own waits for brackets that a search that asks for
    one trial at a time never fills. grace: see epochs_of; for pbt it is the number of epochs between two exploits."""
    first = epochs_of(grace, epochs)
    goal: dict[str, Any] = {"time_attr": TIME, "metric": OBJECTIVE_KEY, "mode": mode}
    if name in ("asha", "hyperband"):
        brackets = len(rungs(epochs, grace, reduction)) if name == "hyperband" else 1
        settings = {**goal, "max_t": epochs, "grace_period": first, "reduction_factor": reduction, "brackets": brackets}
        return Asha(past, resumed, **settings)
    if name == "median":
        return MedianStoppingRule(**goal, grace_period=first)
    if name == "pbt":
        mutations: dict[str, Any] = {"values": {k: _mutation(d) for k, d in domains.items() if mutable(k, d)}}
        return Pbt(**goal, perturbation_interval=first, hyperparam_mutations=mutations)
    none: Any = FIFOScheduler  # which has no type hints
    return cast("TrialScheduler", none())


def mutable(key: str, domain: Domain) -> bool:
    """Whether population-based training may change a setting mid-run: floats of the method and the optimizer that every
    trial has."""
    drawn = domain.kind in ("uniform", "loguniform", "quniform")
    return key.startswith(("method.", "optim.")) and drawn and not domain.when


def _mutation(domain: Domain) -> Any:
    numbers: tuple[Any, ...] = domain.args
    draw: dict[str, Any] = {"uniform": tune.uniform, "loguniform": tune.loguniform, "quniform": tune.quniform}
    return draw[domain.kind](*numbers)


def rungs(epochs: int, grace: float, reduction: float) -> tuple[int, ...]:
    """The epochs at which ASHA decides (for the plan that is shown)."""
    first = epochs_of(grace, epochs)
    count = int(math.log(epochs / first) / math.log(reduction) + 1)
    return tuple(int(first * reduction**k) for k in range(count))
