"""The ledger: Optuna's journal file, the only truth about the trials of a search.

One file holds one study per stage (`<search>/search`, `<search>/baseline`, `<search>/final`).
Everything that a stopped search needs to go on is in it: a trial that is still RUNNING there is
unfinished, its last checkpoint is in its `user_attrs`. So `--resume` after a kill and `--extend`
are the same: hand out what is unfinished, then ask for more until the stage has its number of
trials. optuna-dashboard opens the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from tune_mm.tune.space.domains import Values

Suggest = Callable[[Trial], Values]

PAUSE = 1.0  # seconds between attempts to write to a full disk

log = logging.getLogger("tune_mm.tune")
optuna.logging.set_verbosity(optuna.logging.WARNING)


class Busy(RuntimeError):
    """Another process is running this search."""


class Lock:
    """One driver per search: a lock on a file, which the system gives back when the process ends,
    however it ends.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] = path.open("a")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise Busy(
                f"{path.parent.name}: another process is running this search ({path} is locked)"
            ) from None

    def close(self) -> None:
        """Let the next driver in."""
        self._file.close()


class _Backend(JournalFileBackend):
    """Appends without waiting for the disk, but for a full one to have room again: nothing can go
    on without it.

    A killed process loses nothing that it wrote; a power cut may lose the last seconds. With the
    wait every record costs milliseconds, and a trial has dozens.
    """

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        text = "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in logs).encode()
        told = False
        while not self._append(text):
            if not told:
                log.warning("%s: its disk is full; the search waits for room (or Ctrl-C twice, then --resume)",
                            self._file_path)  # fmt: skip
            told = True
            time.sleep(PAUSE)

    def _append(self, text: bytes) -> bool:
        """Whether all of it is in the file; else nothing is, for the disk is full. Raises OSError."""
        with open(self._file_path, "ab", buffering=0) as file:
            before = file.seek(0, os.SEEK_END)
            try:
                if file.write(text) == len(text):
                    return True
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
            file.truncate(before)
        return False


class _Journal(JournalStorage):
    """Counts trials, and finds those that wait, by looking at new ones; Optuna looks at all for
    every one asked for.
    """

    def __init__(self, backend: JournalFileBackend) -> None:
        super().__init__(backend)
        self._looked: dict[
            int, tuple[int, list[int]]
        ] = {}  # by study: how many were there, ids of those that waited

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if deepcopy or states != (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        return [self.get_trial(i) for i in self._look(study_id)[1]]

    def get_n_trials(
        self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None
    ) -> int:
        return self._look(study_id)[0] if state is None else super().get_n_trials(study_id, state)

    def _look(self, study_id: int) -> tuple[int, list[int]]:
        count, waiting = self._looked.get(study_id, (0, []))
        new: list[int] = []
        with contextlib.suppress(KeyError):  # past the last one
            while True:
                new.append(self.get_trial_id_from_study_id_trial_number(study_id, count + len(new)))
        waiting = [i for i in (*waiting, *new) if self.get_trial(i).state == TrialState.WAITING]
        self._looked[study_id] = count + len(new), waiting
        return self._looked[study_id]


def open_storage(path: Path) -> JournalStorage:
    """The journal at `path`, made if missing. Only under the search's Lock: a line cut short by a
    kill is dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(_whole(file))
    return _Journal(_Backend(str(path)))


def _whole(file: IO[bytes]) -> int:
    """Length of the file up to its last complete line."""
    size = end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - 65536)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0 if size else size


@dataclass(frozen=True)
class Point:
    """Settings decided beforehand for one trial: params drawn from domains, or attrs with whole
    `values`.
    """

    params: Values = field(default_factory=dict)
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Assignment:
    """A trial to run. checkpoint: where to go on from (None: from the start); reported: (epoch,
    value) up to there.

    passes: over the training data, after each epoch from the first (): one per epoch.
    """

    number: int
    values: Values
    checkpoint: str | None = None
    reported: tuple[tuple[int, float], ...] = ()
    passes: tuple[float, ...] = ()

    def timeline(self) -> Iterator[tuple[int, float, float]]:
        """(epoch, passes, value) of what it has reported."""
        for epoch, value in self.reported:
            yield (
                epoch,
                self.passes[epoch - 1] if epoch <= len(self.passes) else float(epoch),
                value,
            )


class Ledger:
    """One stage's study.

    suggest draws the settings of a trial; sampler(number) is the sampler for trial `number` (seeded
    by the number, so that a resumed search draws what it would have drawn); point(number) gives
    settings decided beforehand, or None.
    """

    def __init__(
        self,
        storage: JournalStorage,
        name: str,
        mode: str,
        suggest: Suggest,
        sampler: Callable[[int], BaseSampler],
        point: Callable[[int], Point | None],
    ) -> None:
        self.name, self.mode = name, mode
        self._suggest, self._sampler, self._point = suggest, sampler, point
        direction = StudyDirection.MAXIMIZE if mode == "max" else StudyDirection.MINIMIZE
        self.study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=direction,
            load_if_exists=True,
            sampler=sampler(0),
        )
        self._storage, self._id = storage, storage.get_study_id_from_name(name)
        self._reported: dict[int, int] = {}
        self._open: dict[int, Trial] = {}

    # ---- what is there

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """Trials in the given states (all without), by number."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    def unfinished(self) -> list[int]:
        """Numbers of the trials that were handed out and not ended."""
        return [t.number for t in self.trials(TrialState.RUNNING)]

    def handed_out(self) -> int:
        """How many trials were ever handed out."""
        return sum(t.state != TrialState.WAITING for t in self.trials())

    def past(self, *states: TrialState) -> Iterator[Assignment]:
        """What trials in the given states have reported."""
        for t in self.trials(*states):
            values = dict(t.user_attrs.get("values") or t.params)
            done, passes = sorted(t.intermediate_values.items()), t.user_attrs.get("passes", ())
            yield Assignment(t.number, values, reported=tuple(done), passes=tuple(passes))

    def frozen(self, number: int) -> FrozenTrial:
        """The record of trial `number`."""
        return self._storage.get_trial(self._trial_id(number))

    def _trial_id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._id, number)

    # ---- handing out

    def ask(self) -> Assignment:
        """A new trial."""
        waiting = self.trials(TrialState.WAITING)
        number = waiting[0].number if waiting else self._storage.get_n_trials(self._id)
        if not waiting and (point := self._point(number)) is not None:
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
        values = attrs["values"] if "values" in attrs else self._suggest(trial)
        frozen = self.frozen(trial.number)
        saved = attrs.get("checkpoint")
        done = sorted(frozen.intermediate_values.items())
        self._open[trial.number] = trial
        self._reported[trial.number] = done[-1][0] if done else 0
        if saved is None:
            return Assignment(trial.number, values)
        reported = tuple(p for p in done if p[0] <= saved["epoch"])
        return Assignment(
            trial.number, values, saved["path"], reported, tuple(saved.get("passes", ()))
        )

    # ---- what becomes of a trial

    def report(self, number: int, epoch: int, value: float) -> None:
        """The objective so far at an epoch; an epoch that is there already (run again after a
        resume) is skipped.
        """
        if epoch > self._reported[number] and math.isfinite(value):
            self._open[number].report(value, epoch)
            self._reported[number] = epoch

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
