"""What runs in the driver while Ray trains: a callback that writes ledger, tracking and display,
and a stop switch.
"""

from __future__ import annotations

import contextlib
import math
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from optuna.trial import FrozenTrial
from ray.tune import Callback, Checkpoint, Stopper
from ray.tune.experiment import Trial
from ray.tune.result import HOSTNAME, NODE_IP

from tune_mm.config import Config
from tune_mm.core import artifacts
from tune_mm.track.tags import Stage
from tune_mm.tune.output.display import Board
from tune_mm.tune.propose.result_keys import FAILURE_KEY, NOTES_KEY, OBJECTIVE_KEY, SPENT_KEY
from tune_mm.tune.propose.searcher import AskTell, Unkept

HOPELESS = 3  # trials that all fail before a stage gives up
SUDDEN = "died unexpectedly"  # what Ray says of a worker that is gone without a word


class Tracking(Protocol):
    """See `tracking.Tracker`."""

    def start(
        self, stage: Stage, number: int, config: Config, facts: Mapping[str, Any]
    ) -> None: ...
    def log(self, stage: Stage, number: int, metrics: Mapping[str, float], epoch: int) -> None: ...
    def tag(self, stage: Stage, number: int, tags: Mapping[str, str]) -> None: ...
    def file(self, stage: Stage, number: int, path: Path, name: str) -> None: ...
    def finish(self, stage: Stage, trial: FrozenTrial) -> None: ...
    def stopped(self, stage: Stage, number: int, reason: str) -> None: ...
    def flush(self) -> None: ...


class StopSwitch(Unkept, Stopper):
    """Stops a stage: at a deadline, on a signal, or when every trial fails.

    Trials that run stay unfinished in the ledger, so that a resumed search picks them up.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self.deadline = deadline  # time.monotonic()
        self.reason = ""  # why the stage stops; "" while it runs

    def now(self, reason: str) -> None:
        """Stop; the first reason stands."""
        self.reason = self.reason or reason

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        if self.deadline is not None and time.monotonic() >= self.deadline:
            self.now("time budget")
        return bool(self.reason)


class TrialCallback(Unkept, Callback):
    """Follows the trials of one stage: writes tracking and the board, and notes checkpoints."""

    def __init__(
        self,
        stage: Stage,
        searcher: AskTell,
        config_of: Callable[[Mapping[str, Any]], Config],
        tracking: Tracking,
        board: Board,
        stop: StopSwitch,
        scheme: str = "",
        mutates: bool = False,
    ) -> None:
        """
        config_of: makes a trial's whole config from its values.
        scheme: what makes a URI of Ray's checkpoint paths.
        mutates: the scheduler changes settings (population-based training), for which it needs the
            checkpoints of other trials.
        """
        self.stage = stage
        self.searcher = searcher
        self.config_of = config_of
        self.tracking = tracking
        self.board = board
        self.stop = stop
        self.mutates = mutates
        self._scheme = scheme
        self._number: dict[str, int] = {}  # of live trials, by Ray's id; -1: never began
        self._node: dict[int, str] = {}  # where a trial is, by number
        self._ended = 0
        self._failed = 0

    # ---- Ray's hooks

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """A trial has an actor (again, after its worker died)."""
        if trial.trial_id in self._number:
            return
        number = self.searcher.numbers[trial.trial_id]
        self._number[trial.trial_id] = number
        values = trial.config["values"]
        attrs = self.searcher.ledger.frozen(number).user_attrs
        facts: dict[str, Any] = {}
        for key in ("role", "source"):
            if key in attrs:
                facts[key] = attrs[key]
        self.tracking.start(self.stage, number, self.config_of(values), facts)
        resumed = self.searcher.resumed.get(number)
        epoch = 0 if resumed is None else resumed.reported[-1][0]
        self.board.started(number, values, epoch)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch."""
        if FAILURE_KEY in result:
            return
        number = self._number[trial.trial_id]
        epoch = result["training_iteration"]
        self._tag_node(number, result)
        metrics = _finite(result["metrics"])
        if self.mutates:  # settings change on the way
            values = trial.config["values"]
            for key, value in values.items():
                if isinstance(value, float):
                    metrics[f"hp/{key}"] = value
            self.searcher.ledger.note(number, values=values)
        if math.isfinite(result[OBJECTIVE_KEY]):
            # First: what the UI compares by. A record of its own, since after a kill it alone may
            # be written once more.
            self.tracking.log(self.stage, number, {"objective": result[OBJECTIVE_KEY]}, epoch)
        self.tracking.log(self.stage, number, metrics, epoch)
        for note in result.get(NOTES_KEY, ()):
            self.board.say(f"{self.stage} {number}: {note}")
        self.board.progress(number, epoch, result[OBJECTIVE_KEY])

    def on_checkpoint(
        self, iteration: int, trials: list[Trial], trial: Trial, checkpoint: Checkpoint, **info: Any
    ) -> None:
        """A checkpoint is complete: from now on the trial goes on from there."""
        number = self._number[trial.trial_id]
        last = trial.last_result
        place = {"path": f"{self._scheme}{checkpoint.path}", "epoch": last["training_iteration"]}
        if SPENT_KEY in last:
            place["passes"] = last[SPENT_KEY]
        self.searcher.ledger.note(number, checkpoint=place)
        if self.stage == "final" and trial.last_result.get("done"):
            keep_files(self.tracking, self.stage, number, checkpoint)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """It ended, and the searcher has told the ledger."""
        self._end(trial)
        if not self.mutates and self.stage != "final" and trial.checkpoint is not None:
            with contextlib.suppress(OSError):
                system: Any = trial.checkpoint.filesystem
                system.delete_dir(str(Path(trial.checkpoint.path).parent))

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Its worker died more often than is allowed."""
        why = cause(trial) or "no reason known"
        self.searcher.tell_lost(trial.trial_id, f"the worker died: {why}")
        self._number.setdefault(trial.trial_id, -1)
        self._end(trial)

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Its worker died; Ray starts another from the last checkpoint."""
        if trial.trial_id not in self._number:
            return
        number = self._number[trial.trial_id]
        line = f"{self.stage} {number}: its worker died; it goes on from its checkpoint"
        why = cause(trial)
        if why and SUDDEN not in why:
            line += f" ({why})"
        self.board.say(line)

    # ---- helpers

    def _tag_node(self, number: int, result: dict[str, Any]) -> None:
        """Tell tracking on which node the trial is, when it has begun there."""
        node = f"{result.get(HOSTNAME, '')} ({result.get(NODE_IP, '')})"
        if self._node.get(number) != node:
            self._node[number] = node
            self.tracking.tag(self.stage, number, {"node": node})

    def _end(self, trial: Trial) -> None:
        number = self._number.pop(trial.trial_id)
        if number < 0:
            return
        frozen = self.searcher.ledger.frozen(number)
        state = _state(frozen)
        self.tracking.finish(self.stage, frozen)
        self.board.ended(number, state, str(frozen.user_attrs.get("reason", "")))
        self._ended += 1
        if state == "failed":
            self._failed += 1
        if self._failed == self._ended >= HOPELESS:
            self.stop.now(f"the first {HOPELESS} trials all failed")

    def cut_off(self, reason: str) -> None:
        """The stage was stopped: what runs is marked so in tracking and stays unfinished in the
        ledger.
        """
        for number in self._number.values():
            if number >= 0:
                self.tracking.stopped(self.stage, number, reason)


def _finite(metrics: Mapping[str, Any]) -> dict[str, float]:
    """The numbers among them that a store takes."""
    numbers = {}
    for key, value in metrics.items():
        if isinstance(value, (int, float)):
            numbers[key] = value
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def _state(trial: FrozenTrial) -> str:
    """completed, pruned, failed or diverged."""
    if "reason" in trial.user_attrs:
        if trial.user_attrs.get("diverged"):
            return "diverged"
        return "failed"
    if trial.state.name == "COMPLETE":
        return "completed"
    return "pruned"


def cause(trial: Trial) -> str:
    """Why a trial's worker died last, in one line; "" where that is not known.

    From the log that Ray keeps on the driver's side: its own copy of the error lies with the
    checkpoints, late, and cut short where their disk is full.
    """
    try:
        text = Path(trial.error_file or "").read_text(errors="replace")
    except OSError:
        return ""
    plain = re.sub(r"\x1b\[\d*m", "", text)
    last = plain.rpartition("Failure # ")[2]  # "1 (occurred at ...)", then the error
    lines = [line.strip() for line in last.splitlines()[1:] if line.strip()]
    if not lines:
        return ""
    # An exception's own words end its traceback.
    if lines[0].startswith("ray::"):
        line = lines[-1]
    else:
        line = lines[0]
    return line[:500]


def keep_files(tracking: Tracking, stage: Stage, number: int, checkpoint: Checkpoint) -> None:
    """Hand the files that a final run leaves to tracking, which copies them."""
    with checkpoint.as_directory() as folder:
        for name in artifacts.NAMES:
            with contextlib.suppress(FileNotFoundError):
                tracking.file(stage, number, Path(folder) / name, name)
