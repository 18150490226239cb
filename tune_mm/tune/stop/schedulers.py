"""Which trials are stopped early: Ray's schedulers, and their memory given back after a resume.

Ray keeps a scheduler's memory in its own experiment state, which is not used here: a resumed search
starts a fresh scheduler. The rungs of asha and hyperband are rebuilt from the ledger's intermediate
values; the others start without memory.

Their time is passes over the training data, those included that a method makes beside its epochs:
trials are compared at equal cost. Where nothing is passed twice, that is the epoch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping
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
from tune_mm.tune.keys import OBJECTIVE_KEY, PASSES_KEY
from tune_mm.tune.propose.ledger import Assignment
from tune_mm.tune.space.domains import Domain
from tune_mm.tune.stop import protected
from tune_mm.tune.stop.protected import Ranges

EPOCH = "training_iteration"
REACH = 64  # passes per epoch up to which trials that make more of them than others have rungs of their own
NEVER: Ranges = ()

FORGETFUL = {
    "median": "the median rule compares with trials from now on only",
    "pbt": "the population starts from the trials that run now",
}


class _Past:
    """Stands for a trial of an earlier driver in a bracket, which looks at the id only."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class Patient(TrialScheduler):
    """A scheduler that does not hear of some epochs of a trial. quiet: which, by the trial's
    values.
    """

    def __init__(self, quiet: Callable[[Mapping[str, Any]], Ranges], **settings: Any) -> None:
        ray_s: Any = super()  # without type hints
        ray_s.__init__(**settings)
        self._quiet = quiet

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Ray's, behind the trial's quiet epochs; in them the trial goes on."""
        if protected.within(result[EPOCH], self._quiet(trial.config["values"])):
            return TrialScheduler.CONTINUE
        decided: str = super().on_trial_result(tune_controller, trial, result)
        return decided


class Asha(Patient, AsyncHyperBandScheduler):
    """ASHA, or with several brackets asynchronous HyperBand, that can be told what happened before
    it was made.

    past: every trial that ended. resumed: trials that go on from a checkpoint, with what they had
    reported up to it: their rungs are filled when they are added, under the id they have now. A
    bracket is a function of the trial's number (Ray draws it), so that it is the same after a
    resume.

    A trial that passes several rungs between two decisions counts at the highest alone. Trials end
    by themselves: the last rung is no limit.
    """

    def __init__(
        self, past: Iterable[Assignment], resumed: Mapping[int, Assignment], **settings: Any
    ) -> None:
        super().__init__(**settings, stop_last_trials=False)
        self._resumed, self._given = resumed, set[int]()
        for ended in past:
            self._feed(_Past(f"past-{ended.number}"), ended)

    def bracket(self, number: int) -> int:
        """The bracket of a trial: the more rungs, the likelier, with Ray's weights."""
        sizes = [len(b._rungs) for b in self._brackets]
        weights = [math.exp(s - max(sizes)) for s in sizes]
        return random.Random(number).choices(range(len(sizes)), weights)[0]

    def _feed(self, trial: Any, known: Assignment) -> None:
        sign, quiet = 1.0 if self._mode == "max" else -1.0, self._quiet(known.values)
        bracket: Any = self._brackets[self.bracket(known.number)]
        for epoch, passes, value in known.timeline():
            if not protected.within(epoch, quiet):
                bracket.on_result(trial, passes, sign * value)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Ray's, then the trial's own past (once: a trial whose worker died is added again)."""
        super().on_trial_add(tune_controller, trial)
        number: int = trial.config["number"]
        self._trial_info[trial.trial_id] = self._brackets[self.bracket(number)]
        if number in self._resumed and number not in self._given:
            self._given.add(number)
            self._feed(trial, self._resumed[number])


class Median(Patient, MedianStoppingRule):
    """Ray's."""


class Pbt(Patient, PopulationBasedTraining):
    """Ray's, for trials that a searcher proposed.

    Ray refuses that because a searcher would be told a result for settings that have changed since.
    Here the ledger keeps the settings that a trial ends with.
    """

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        super().on_trial_add(cast("Any", SimpleNamespace(search_alg=None)), trial)


def epochs_of(share: float, epochs: int) -> int:
    """A float below 1 is a share of `epochs`, else it is epochs; at least 1, at most all."""
    return max(1, min(epochs, round(share * epochs) if 0 < share < 1 else int(share)))


def until_drop(epochs: int, schedule: ScheduleConfig | None) -> Ranges:
    """The epochs before a twentieth of all (at least one) past a step schedule's last drop. None,
    or another: ().
    """
    if schedule is None or schedule.name != "step":
        return ()
    drops = [round(schedule_span(m, epochs)) for m in schedule.milestones]
    last = max((d for d in drops if d < epochs), default=0)
    past = min(epochs, last + max(1, round(epochs / 20)))
    return ((1, past - 1),) if past > 1 else ()


def first_stop(grace: float, epochs: int, schedule: ScheduleConfig | None) -> int:
    """When a trial may be stopped first: after `grace` and, under a step schedule, a little past
    its last drop.

    schedule None: by `grace` alone.
    """
    return min(
        epochs, max(epochs_of(grace, epochs), protected.behind(1, until_drop(epochs, schedule)))
    )


def make(
    name: str,
    mode: str,
    epochs: int,
    grace: float,
    reduction: float,
    domains: Mapping[str, Domain],
    past: Iterable[Assignment],
    resumed: Mapping[int, Assignment],
    quiet: Callable[[Mapping[str, Any]], Ranges] = lambda values: NEVER,
) -> TrialScheduler:
    """The scheduler `name`. hyperband is the asynchronous one: Ray's own waits for brackets that a
    search that asks for one trial at a time never fills. grace: see epochs_of, in passes over the
    data; for pbt it is what lies between two exploits. quiet: the epochs in which a trial is not
    stopped, by its values.
    """
    first = epochs_of(grace, epochs)
    goal: dict[str, Any] = {
        "time_attr": PASSES_KEY,
        "metric": OBJECTIVE_KEY,
        "mode": mode,
        "quiet": quiet,
    }
    if name in ("asha", "hyperband"):
        brackets = len(rungs(epochs, grace, reduction)) if name == "hyperband" else 1
        shape = {
            "max_t": REACH * epochs,
            "grace_period": first,
            "reduction_factor": reduction,
            "brackets": brackets,
        }
        return Asha(past, resumed, **goal, **shape)
    if name == "median":
        return Median(**goal, grace_period=first)
    if name == "pbt":
        mutations: dict[str, Any] = {
            "values": {k: _mutation(d) for k, d in domains.items() if mutable(k, d)}
        }
        return Pbt(**goal, perturbation_interval=first, hyperparam_mutations=mutations)
    none: Any = FIFOScheduler  # which has no type hints
    return cast("TrialScheduler", none())


def mutable(key: str, domain: Domain) -> bool:
    """Whether population-based training may change a setting mid-run: floats of the method and the
    optimizer that every trial has.
    """
    drawn = domain.kind in ("uniform", "loguniform", "quniform")
    return key.startswith(("method.", "optim.")) and drawn and not domain.when


def _mutation(domain: Domain) -> Any:
    numbers: tuple[Any, ...] = domain.args
    draw: dict[str, Any] = {
        "uniform": tune.uniform,
        "loguniform": tune.loguniform,
        "quniform": tune.quniform,
    }
    return draw[domain.kind](*numbers)


def rungs(epochs: int, grace: float, reduction: float, quiet: Ranges = NEVER) -> tuple[int, ...]:
    """After which passes over the data ASHA decides, for trials that make one per epoch: a rung in
    a quiet epoch moves behind it, and is none if that is past the end.
    """
    first = epochs_of(grace, epochs)
    count = int(math.log(epochs / first) / math.log(reduction) + 1)
    found = (protected.behind(int(first * reduction**k), quiet) for k in range(count))
    return tuple(dict.fromkeys(rung for rung in found if rung <= epochs))
