"""Where settings come from: Optuna's samplers, the exact grid, and the `Searcher` that hands out a ledger's trials."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, RandomSampler
from optuna.trial import Trial
from ray.tune.search import Searcher

from tune_mm.tune.domains import Domain, Scalar
from tune_mm.tune.ledger import Assignment, Ledger, Values
from tune_mm.tune.tpe import WindowedTPE

Domains = Mapping[str, Domain]
SearcherName = Literal["tpe", "random", "cmaes", "nsgaii", "grid"]

FINISHED_KEY, FAILURE_KEY, DIVERGED_KEY, OBJECTIVE_KEY = "finished", "failure", "diverged", "objective"
NOTES_KEY = "notes"
# Passes over the training data so far, and after each epoch (where they are not one per epoch).
PASSES_KEY, SPENT_KEY = "passes", "spent"


def seed_of(seed: int, number: int) -> int:
    """A seed for trial `number`, the same in every process (Python's own hash is not)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")


def sampler(name: SearcherName, seed: int, number: int, startup: int, conditional: bool) -> BaseSampler:
    """The sampler for one trial. startup: trials drawn at random before a model is trusted (tpe, cmaes), or the
    population (nsgaii). A grid needs none: its trials are decided beforehand."""
    chosen = seed_of(seed, number)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        if name == "tpe":
            return WindowedTPE(chosen, startup, conditional)
        if name == "cmaes":
            return CmaEsSampler(seed=chosen, n_startup_trials=startup, warn_independent_sampling=False)
        if name == "nsgaii":
            return NSGAIISampler(seed=chosen, population_size=max(startup, 2))
    return RandomSampler(seed=chosen)


def ordered(domains: Domains) -> tuple[str, ...]:
    """Keys with those that conditions look at first, else as written. Raises ValueError naming the keys of a circle."""
    out: list[str] = []
    left = list(domains)
    while left:
        ready = [k for k in left if not any(c in left for c in domains[k].when)]
        if not ready:
            raise ValueError(f"conditions go round in a circle: {', '.join(left)}")
        out.append(ready[0])
        left.remove(ready[0])
    return tuple(out)


def active(domain: Domain, values: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Whether the domain is drawn, given the values drawn before it and the config's own (`base`, dotted keys)."""
    return all(key_value(key, values, base) in allowed for key, allowed in domain.when.items())


def key_value(key: str, values: Mapping[str, Any], base: Mapping[str, Any]) -> Any:
    """What `key` is in a trial: drawn, or else as configured."""
    return values[key] if key in values else base.get(key, base.get(f"{key}.name"))


def suggest(domains: Domains, base: Mapping[str, Any], trial: Trial) -> Values:
    """Draw every active domain, conditions first."""
    values: Values = {}
    for key in ordered(domains):
        domain = domains[key]
        if not active(domain, values, base):
            continue
        if domain.kind in ("choice", "grid"):
            values[key] = trial.suggest_categorical(key, domain.args)
        else:
            numbers: tuple[Any, ...] = domain.args
            if domain.kind == "randint":
                values[key] = trial.suggest_int(key, *numbers)
            elif domain.kind == "quniform":
                values[key] = trial.suggest_float(key, numbers[0], numbers[1], step=numbers[2])
            else:
                values[key] = trial.suggest_float(key, *numbers, log=domain.kind == "loguniform")
    return values


def grid(domains: Domains, base: Mapping[str, Any]) -> list[Values]:
    """Every combination of the domains' values once; a conditional domain multiplies only points where it is active.

    The last key varies fastest. Raises ValueError for a continuous domain.
    """
    points: list[Values] = [{}]
    for key in ordered(domains):
        choices = domains[key].values()
        if choices is None:
            raise ValueError(f"{key}: a grid needs choice, grid, randint or quniform, got {domains[key].text()}")
        points = [
            {**point, **extra}
            for point in points
            for extra in (_each(key, choices) if active(domains[key], point, base) else [{}])
        ]
    return points


def _each(key: str, choices: tuple[Scalar, ...]) -> list[Values]:
    return [{key: choice} for choice in choices]


class Unkept:
    """Left empty in the file that Ray writes to restore a Tuner, which is not used: the ledger is what is restored."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class AskTell(Unkept, Searcher):
    """Ray's view of a ledger: unfinished trials first, from their checkpoints, then new ones up to `target`.

    Why not ray's OptunaSearch: it tells Optuna that a trial stopped by ASHA is complete, with the value of its partial
    budget. Here every epoch's running best is reported and a stopped trial is told PRUNED.

    capacity() is how many trials may be alive at once. A trial whose worker died for good is told by the driver's
    callback, which knows why (`lost`).
    """

    def __init__(self, ledger: Ledger, target: int, capacity: Callable[[], int]) -> None:
        super().__init__(metric=OBJECTIVE_KEY, mode=ledger.mode)
        self.ledger, self.target, self._capacity = ledger, target, capacity
        self._again, self._asked = ledger.unfinished(), ledger.handed_out()
        self.numbers: dict[str, int] = {}  # ray's trial id -> ledger's number, of live trials
        self.lost: set[str] = set()
        self.resumed: dict[int, Assignment] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's config, None for "not now", Ray's word FINISHED when the stage has all its trials."""
        if not self._again and self._asked >= self.target:
            return cast("dict[str, Any]", Searcher.FINISHED)  # a str, which Ray's own annotation leaves out
        if len(self.numbers) >= self._capacity():
            return None
        if self._again:
            assignment = self.ledger.again(self._again.pop(0))
        else:
            assignment, self._asked = self.ledger.ask(), self._asked + 1
        if assignment.reported:
            self.resumed[assignment.number] = assignment
        self.numbers[trial_id] = assignment.number
        return {"number": assignment.number, "values": assignment.values, "checkpoint": assignment.checkpoint}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report the objective so far."""
        if OBJECTIVE_KEY in result:
            self.ledger.report(self.numbers[trial_id], result["training_iteration"], result[OBJECTIVE_KEY])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell COMPLETE, PRUNED or FAIL."""
        if error:
            self.lost.add(trial_id)
            return
        if not result:  # stopped while it waited: it stays unfinished
            self.numbers.pop(trial_id)
            return
        self.on_trial_result(trial_id, result)
        number, facts = self.numbers.pop(trial_id), facts_of(result)
        if FAILURE_KEY in result:
            self.ledger.fail(number, result[FAILURE_KEY], **facts)
        elif result.get(DIVERGED_KEY):
            epoch = result["training_iteration"]
            self.ledger.fail(number, f"diverged: the loss was not finite in epoch {epoch}", diverged=True, **facts)
        elif result.get(FINISHED_KEY) and math.isfinite(result[OBJECTIVE_KEY]):
            self.ledger.complete(number, result[OBJECTIVE_KEY], **facts)
        elif result.get(FINISHED_KEY):
            self.ledger.fail(number, "no epoch had a finite objective", diverged=True, **facts)
        else:
            self.ledger.prune(number, **facts)

    def tell_lost(self, trial_id: str, reason: str) -> None:
        """The trial's worker died more often than is allowed."""
        self.lost.discard(trial_id)
        if trial_id in self.numbers:
            self.ledger.fail(self.numbers.pop(trial_id), reason)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger is on disk already."""


def facts_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledger keeps of a trial's last result (flattened by ray: a/b/c)."""
    facts: dict[str, Any] = {"epochs": result.get("training_iteration", 0), "best_epoch": result.get("best_epoch", 0)}
    facts["seconds"] = round(float(result.get("seconds", 0.0)), 3)
    if SPENT_KEY in result:
        facts["passes"] = result[SPENT_KEY]
    for group in ("best_metrics", "test"):
        found = {k.removeprefix(f"{group}/"): v for k, v in result.items() if k.startswith(f"{group}/")}
        if found:
            facts[group] = found
    return facts
