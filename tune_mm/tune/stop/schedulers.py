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
from tune_mm.tune.propose.ledger import Assignment
from tune_mm.tune.propose.result_keys import OBJECTIVE_KEY, PASSES_KEY
from tune_mm.tune.space.domains import REAL, Domain, Domains
from tune_mm.tune.stop import protected
from tune_mm.tune.stop._ray_internals import brackets, put_in_bracket, rung_count
from tune_mm.tune.stop.protected import Ranges

EPOCH = "training_iteration"
# Passes per epoch up to which trials that make more of them than others have rungs of their own.
REACH = 64
NEVER: Ranges = ()

FORGETFUL = {
    "median": "the median rule compares with trials from now on only",
    "pbt": "the population starts from the trials that run now",
}

EpochsOf = Callable[[Mapping[str, Any]], Ranges]  # a trial's values -> its protected epochs


class _PastTrial:
    """Stands for a trial of an earlier driver in a bracket, which looks at the id only."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class Patient(TrialScheduler):
    """A scheduler that does not hear of a trial's protected epochs."""

    def __init__(self, quiet: EpochsOf, **settings: Any) -> None:
        untyped: Any = super()
        untyped.__init__(**settings)
        self._quiet = quiet

    def on_trial_result(self, tune_controller: Any, trial: Trial, result: dict[str, Any]) -> str:
        """Ray's decision; in a protected epoch the trial continues."""
        if protected.within(result[EPOCH], self._quiet(trial.config["values"])):
            return TrialScheduler.CONTINUE
        decision: str = super().on_trial_result(tune_controller, trial, result)
        return decision


class Asha(Patient, AsyncHyperBandScheduler):
    """ASHA, or with several brackets asynchronous HyperBand, that knows what came before it.

    A trial that passes several rungs between two decisions counts at the highest alone. Trials end
    by themselves: the last rung is no limit.
    """

    def __init__(
        self,
        past: Iterable[Assignment],
        resumed: Mapping[int, Assignment],
        mode: str,
        **settings: Any,
    ) -> None:
        """
        past: every trial that ended.
        resumed: trials that go on from a checkpoint, with what they had reported up to it. Their
            rungs are filled when they are added, under the id they have now.
        """
        super().__init__(**settings, mode=mode, stop_last_trials=False)
        self._sign = 1.0 if mode == "max" else -1.0
        self._resumed = resumed
        self._fed: set[int] = set()  # numbers of those resumed whose rungs are filled
        for ended in past:
            self._feed(_PastTrial(f"past-{ended.number}"), ended)

    def bracket(self, number: int) -> int:
        """The bracket of a trial: the more rungs, the likelier, with Ray's weights.

        Ray draws it; here it is a function of the trial's number, the same after a resume.
        """
        sizes = [rung_count(bracket) for bracket in brackets(self)]
        weights = [math.exp(size - max(sizes)) for size in sizes]
        return random.Random(number).choices(range(len(sizes)), weights)[0]

    def _feed(self, trial: Any, known: Assignment) -> None:
        quiet = self._quiet(known.values)
        bracket = brackets(self)[self.bracket(known.number)]
        for epoch, passes, value in known.timeline():
            if not protected.within(epoch, quiet):
                bracket.on_result(trial, passes, self._sign * value)

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Ray's, then the trial's own past (once: a trial whose worker died is added again)."""
        super().on_trial_add(tune_controller, trial)
        number: int = trial.config["number"]
        put_in_bracket(self, trial.trial_id, brackets(self)[self.bracket(number)])
        if number in self._resumed and number not in self._fed:
            self._fed.add(number)
            self._feed(trial, self._resumed[number])


class Median(Patient, MedianStoppingRule):
    """Ray's."""


class Pbt(Patient, PopulationBasedTraining):
    """Ray's, for trials that a searcher proposed.

    Ray refuses that because a searcher would be told a result for settings that have changed since.
    Here the ledger keeps the settings that a trial ends with.
    """

    def on_trial_add(self, tune_controller: Any, trial: Trial) -> None:
        """Ray's, which looks at the controller only to find a searcher and refuse it."""
        without_searcher: Any = SimpleNamespace(search_alg=None)
        super().on_trial_add(without_searcher, trial)


def epochs_of(share: float, epochs: int) -> int:
    """A float below 1 is a share of `epochs`, else it is epochs; at least 1, at most all."""
    count = int(share)
    if 0 < share < 1:
        count = round(share * epochs)
    return max(1, min(epochs, count))


def until_drop(epochs: int, schedule: ScheduleConfig | None) -> Ranges:
    """The epochs before a twentieth of all (at least one) past a step schedule's last drop.

    () for None or another schedule.
    """
    if schedule is None or schedule.name != "step":
        return ()
    drops = []
    for milestone in schedule.milestones:
        drops.append(round(schedule_span(milestone, epochs)))
    last = max((drop for drop in drops if drop < epochs), default=0)
    past = min(epochs, last + max(1, round(epochs / 20)))
    if past <= 1:
        return ()
    return ((1, past - 1),)


def first_stop(grace: float, epochs: int, schedule: ScheduleConfig | None) -> int:
    """When a trial may be stopped first: after `grace` and a little past a step schedule's last drop.

    schedule None: by `grace` alone.
    """
    after_drop = protected.behind(1, until_drop(epochs, schedule))
    return min(epochs, max(epochs_of(grace, epochs), after_drop))


def make(
    name: str,
    mode: str,
    epochs: int,
    grace: float,
    reduction: float,
    domains: Domains,
    past: Iterable[Assignment],
    resumed: Mapping[int, Assignment],
    quiet: EpochsOf = lambda values: NEVER,
) -> TrialScheduler:
    """The scheduler `name`.

    hyperband is the asynchronous one: Ray's other waits for brackets that a search that asks for
    one trial at a time never fills.

    grace: see epochs_of, in passes over the data; for pbt what lies between two exploits.
    past, resumed: see Asha.
    quiet: a trial's protected epochs.
    """
    first = epochs_of(grace, epochs)
    goal: dict[str, Any] = {
        "time_attr": PASSES_KEY,
        "metric": OBJECTIVE_KEY,
        "mode": mode,
        "quiet": quiet,
    }
    if name in ("asha", "hyperband"):
        if name == "hyperband":
            count = len(rungs(epochs, grace, reduction))
        else:
            count = 1
        return Asha(
            past,
            resumed,
            **goal,
            max_t=REACH * epochs,
            grace_period=first,
            reduction_factor=reduction,
            brackets=count,
        )
    if name == "median":
        return Median(**goal, grace_period=first)
    if name == "pbt":
        changed = {}
        for key, d in domains.items():
            if mutable(key, d):
                changed[key] = _mutation(d)
        return Pbt(**goal, perturbation_interval=first, hyperparam_mutations={"values": changed})
    untyped: Any = FIFOScheduler
    return cast("TrialScheduler", untyped())


def mutable(key: str, domain: Domain) -> bool:
    """Whether population-based training may change a setting mid-run.

    Floats of the method and the optimizer that every trial has.
    """
    return key.startswith(("method.", "optim.")) and domain.kind in REAL and not domain.when


def _mutation(domain: Domain) -> Any:
    numbers: tuple[Any, ...] = domain.args
    if domain.kind == "uniform":
        return tune.uniform(*numbers)
    if domain.kind == "loguniform":
        return tune.loguniform(*numbers)
    return tune.quniform(*numbers)


def rungs(epochs: int, grace: float, reduction: float, quiet: Ranges = NEVER) -> tuple[int, ...]:
    """After which passes over the data ASHA decides, for trials that make one per epoch.

    A rung in a protected epoch moves behind it, and is none if that is past the end.
    """
    first = epochs_of(grace, epochs)
    count = int(math.log(epochs / first) / math.log(reduction) + 1)
    out: list[int] = []
    for power in range(count):
        rung = protected.behind(int(first * reduction**power), quiet)
        if rung <= epochs and rung not in out:
            out.append(rung)
    return tuple(out)
