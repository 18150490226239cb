"""Optuna's journal file as a search uses it: quick at thousands of trials, safe on a full disk."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import time
from collections.abc import Container
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

PAUSE = 1.0  # seconds between attempts to write to a full disk
BLOCK = 65536  # bytes read at a time in search of the last line

log = logging.getLogger("tune_mm.tune")
optuna.logging.set_verbosity(optuna.logging.WARNING)


class _Backend(JournalFileBackend):
    """Appends without waiting for the disk, and waits while it is full: no search can go on then.

    A killed process loses nothing that it wrote; a power cut may lose the last seconds. Optuna's
    own backend calls fsync for every record, which costs milliseconds, and a trial has dozens.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self._path = path

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        lines = []
        for record in logs:
            lines.append(json.dumps(record, separators=(",", ":")) + "\n")
        text = "".join(lines).encode()
        warned = False
        while not self._append(text):
            if not warned:
                log.warning(
                    "%s: its disk is full; the search waits for room (or Ctrl-C twice, then --resume)",
                    self._path,
                )
            warned = True
            time.sleep(PAUSE)

    def _append(self, text: bytes) -> bool:
        """Append all of `text`, or nothing where the disk is full. Raises OSError."""
        with open(self._path, "ab", buffering=0) as file:
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
    """Counts trials, and finds those that wait, by looking at new ones only.

    Optuna looks at all of them whenever one is asked for.
    """

    def __init__(self, backend: JournalFileBackend) -> None:
        super().__init__(backend)
        self._counted: dict[int, int] = {}  # by study: how many trials were looked at
        self._waiting: dict[int, list[int]] = {}  # by study: ids of those that waited

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        if deepcopy or states != (TrialState.WAITING,):
            return super().get_all_trials(study_id, deepcopy, states)
        self._look(study_id)
        found = []
        for trial_id in self._waiting[study_id]:
            found.append(self.get_trial(trial_id))
        return found

    def get_n_trials(
        self, study_id: int, state: tuple[TrialState, ...] | TrialState | None = None
    ) -> int:
        if state is not None:
            return super().get_n_trials(study_id, state)
        self._look(study_id)
        return self._counted[study_id]

    def _look(self, study_id: int) -> None:
        """Bring both up to date."""
        count = self._counted.get(study_id, 0)
        maybe_waiting = self._waiting.get(study_id, [])
        with contextlib.suppress(KeyError):  # past the last one
            while True:
                maybe_waiting.append(self.get_trial_id_from_study_id_trial_number(study_id, count))
                count += 1
        self._counted[study_id] = count
        self._waiting[study_id] = [i for i in maybe_waiting if self._waits(i)]

    def _waits(self, trial_id: int) -> bool:
        return self.get_trial(trial_id).state == TrialState.WAITING


def open_storage(path: Path) -> JournalStorage:
    """The journal at `path`, made if missing; a line cut short by a kill is dropped.

    Call it only under the search's lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():
        with path.open("rb+") as file:
            file.truncate(_length_of_whole_lines(file))
    return _Journal(_Backend(path))


def _length_of_whole_lines(file: IO[bytes]) -> int:
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - BLOCK)
        file.seek(start)
        at = file.read(end - start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
