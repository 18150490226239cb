"""The ledger: Optuna's journal file, the only truth about the trials of a search.

One file holds one study per stage (`<search>/search`, `<search>/baseline`, `<search>/final`).
Everything that a stopped search needs to go on is in it: a trial that is still RUNNING there is
unfinished, its last checkpoint is in its `user_attrs`. So `--resume` after a kill and `--extend`
are the same: hand out what is unfinished, then ask for more until the stage has its number of
trials. optuna-dashboard opens the file.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import optuna
from filelock import FileLock, Timeout
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from tune_mm.tune.space.domains import Values


class Busy(RuntimeError):
    """Another process is running this search."""


class Lock:
    """One driver per search: a file lock, which the system releases when the process ends."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            name = path.parent.name
            rule = "another process is running this search"
            raise Busy(f"{name}: {rule} ({path} is locked)") from None

    def close(self) -> None:
        """Let the next driver in."""
        self._lock.release()


def last_end(storage: JournalStorage) -> datetime | None:
    """When the last of all trials in the journal ended, by its own record; None before the first.

    The file's own times say nothing: a copy has new ones.
    """
    ends: list[datetime] = []
    for study in storage.get_all_studies():
        for trial in storage.get_all_trials(study._study_id, deepcopy=False):
            if trial.datetime_complete is not None:
                ends.append(trial.datetime_complete)
    return max(ends, default=None)


@dataclass(frozen=True)
class Point:
    """Settings decided beforehand for one trial."""

    params: Values = field(default_factory=dict)  # drawn from the space's domains
    attrs: Mapping[str, Any] = field(default_factory=dict)  # or whole, under "values"


@dataclass(frozen=True)
class Assignment:
    """A trial to run."""

    number: int
    values: Values
    checkpoint: str | None = None  # where it goes on; None: from the start
    reported: tuple[tuple[int, float], ...] = ()  # (epoch, value) up to the checkpoint
    passes: tuple[float, ...] = ()  # over the training data, after each epoch; (): one per epoch

    def timeline(self) -> Iterator[tuple[int, float, float]]:
        """(epoch, passes, value) of what it has reported."""
        for epoch, value in self.reported:
            passes = float(epoch)
            if epoch <= len(self.passes):
                passes = self.passes[epoch - 1]
            yield epoch, passes, value


class Ledger:
    """One stage's study."""

    def __init__(
        self,
        storage: JournalStorage,
        name: str,
        mode: str,
        suggest: Callable[[Trial], Values],
        sampler: Callable[[int], BaseSampler],
        point: Callable[[int], Point | None],
    ) -> None:
        """
        suggest: draws the settings of a trial.
        sampler: the sampler for a trial by number: seeded by it, so that a resumed search draws
            what it would have drawn.
        point: settings decided beforehand for a trial, by number.
        """
        self.name = name
        self.mode = mode
        self._suggest = suggest
        self._sampler = sampler
        self._point = point
        if mode == "max":
            direction = StudyDirection.MAXIMIZE
        else:
            direction = StudyDirection.MINIMIZE
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=direction,
            load_if_exists=True,
            sampler=sampler(0),
        )
        self._storage = storage
        self._study_id = storage.get_study_id_from_name(name)
        self._last_epoch: dict[int, int] = {}  # reported, by number
        self._open: dict[int, Trial] = {}  # by number

    # ---- what is there

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in the given states (all without), by number."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def unfinished(self) -> list[int]:
        """Numbers of the trials that were handed out and have not ended."""
        found = []
        for trial in self.trials(TrialState.RUNNING):
            found.append(trial.number)
        return found

    def handed_out(self) -> int:
        """How many trials were ever handed out."""
        return sum(trial.state != TrialState.WAITING for trial in self.trials())

    def past(self, *states: TrialState) -> Iterator[Assignment]:
        """What trials in the given states have reported."""
        for trial in self.trials(*states):
            values = dict(trial.user_attrs.get("values") or trial.params)
            reported = tuple(sorted(trial.intermediate_values.items()))
            passes = tuple(trial.user_attrs.get("passes", ()))
            yield Assignment(trial.number, values, reported=reported, passes=passes)

    def frozen(self, number: int) -> FrozenTrial:
        """The record of trial `number`."""
        return self._storage.get_trial(self._trial_id(number))

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)

    # ---- handing out

    def ask(self) -> Assignment:
        """A new trial."""
        waiting = self.trials(TrialState.WAITING)
        if waiting:
            number = waiting[0].number
        else:
            number = self._storage.get_n_trials(self._study_id)
            point = self._point(number)
            if point is not None:
                self.study.enqueue_trial(point.params, user_attrs=dict(point.attrs))
        self.study.sampler = self._sampler(number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            trial = self.study.ask()
        return self._assign(trial)

    def again(self, number: int) -> Assignment:
        """An unfinished trial once more, from its last checkpoint."""
        self.study.sampler = self._sampler(number)
        return self._assign(Trial(self.study, self._trial_id(number)))

    def _assign(self, trial: Trial) -> Assignment:
        attrs = trial.user_attrs
        if "values" in attrs:
            values = attrs["values"]
        else:
            values = self._suggest(trial)
        reported = sorted(self.frozen(trial.number).intermediate_values.items())
        self._open[trial.number] = trial
        self._last_epoch[trial.number] = reported[-1][0] if reported else 0
        saved = attrs.get("checkpoint")
        if saved is None:
            return Assignment(trial.number, values)
        kept = tuple(pair for pair in reported if pair[0] <= saved["epoch"])
        passes = tuple(saved.get("passes", ()))
        return Assignment(trial.number, values, saved["path"], kept, passes)

    # ---- what becomes of a trial

    def report(self, number: int, epoch: int, value: float) -> None:
        """The objective so far at an epoch. One that is there (run again after a resume) is skipped."""
        if epoch > self._last_epoch[number] and math.isfinite(value):
            self._open[number].report(value, epoch)
            self._last_epoch[number] = epoch

    def note(self, number: int, **facts: Any) -> None:
        """Facts about an unfinished trial (JSON-able), kept in its user_attrs."""
        for key, value in facts.items():
            self._open[number].set_user_attr(key, value)

    def complete(self, number: int, value: float, **facts: Any) -> None:
        """It ran to its end."""
        self._tell(number, TrialState.COMPLETE, facts, value)

    def prune(self, number: int, **facts: Any) -> None:
        """The scheduler stopped it; Optuna takes the last reported value."""
        self._tell(number, TrialState.PRUNED, facts)

    def fail(self, number: int, reason: str, **facts: Any) -> None:
        """It diverged or died, and why."""
        self._tell(number, TrialState.FAIL, {**facts, "reason": reason})

    def _tell(
        self, number: int, state: TrialState, facts: Mapping[str, Any], value: float | None = None
    ) -> None:
        self.note(number, **facts)
        self.study.tell(self._open.pop(number), value, state=state)
