"""`RunTrainable`: Ray's class Trainable around anything shaped like `core.run.Run`, made by a
factory.

One actor runs many trials (`reuse_actors`): data sets stay loaded and torch stays warm. A trial's
mistakes (a setting the model refuses, a bug in a method) are results, not exceptions: they would
come again, so trying again helps nobody. What kills a worker (out of memory, a lost node) is left
to Ray, which goes on from the last checkpoint elsewhere.
"""

from __future__ import annotations

import math
import os
import shutil
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from ray.tune import Checkpoint, Trainable
from ray.tune.result import SHOULD_CHECKPOINT

from tune_mm.core import artifacts, checkpoint
from tune_mm.tune.execute.restore import newest_whole
from tune_mm.tune.propose.result_keys import (
    DIVERGED_KEY,
    FAILURE_KEY,
    FINISHED_KEY,
    NOTES_KEY,
    OBJECTIVE_KEY,
    PASSES_KEY,
    SPENT_KEY,
)

STATE = "state.pt"
MARGIN = 2**20  # bytes that stay free: Ray writes small files of its own beside a checkpoint


class EpochResult(Protocol):
    """See `core.run.Result`."""

    @property
    def metrics(self) -> dict[str, float]: ...
    @property
    def best(self) -> bool: ...
    @property
    def done(self) -> bool: ...
    @property
    def diverged(self) -> bool: ...
    @property
    def notes(self) -> tuple[str, ...]: ...


class Runnable(Protocol):
    """What a trial runs; `core.run.Run` is one."""

    best_value: float
    best_epoch: int
    epochs_done: int

    def epoch(self) -> EpochResult: ...
    def test(self) -> dict[str, float]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...
    def best_state(self) -> dict[str, torch.Tensor]: ...
    def gradient_vectors(self) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class TrialJob:
    """What the trials of a stage share; sent to the workers once."""

    build: Callable[[Mapping[str, Any]], Runnable]  # a trial's values -> what runs
    epochs: int  # when a run is done
    cpus: float = 1.0  # threads that torch may use
    save_every: float = 10.0  # seconds between checkpoints; 0: after every epoch
    test: bool = False  # compute the test metrics once, at the end (finals only)
    storage: str = ""  # the local folder of checkpoints; "": they are kept elsewhere
    gpus: float | None = None  # what Ray booked for a trial; None: whatever there is
    environment: Mapping[str, str] = field(default_factory=dict)  # set before CUDA is used


class RunTrainable(Trainable):
    """config: {"number", "values", "checkpoint"}, as handed out by `AskTell`."""

    run: Runnable | None

    def setup(self, config: dict[str, Any], job: TrialJob | None = None) -> None:
        """Ray's hook. job comes through `tune.with_parameters`.

        Nothing is built before the first step: Ray hands a trial whose actor is still starting to
        an actor that falls free and kills the starting one, so that with short trials slow starts
        would leave slots empty for good.
        """
        assert job is not None
        self._job = job
        torch.set_num_threads(max(1, int(job.cpus)))
        _keep_to(job)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Run another trial in this actor."""
        self._settings = new_config
        self.run = None
        self._failure = ""  # why the run cannot go on
        self._finished = False
        self._best_metrics: dict[str, float] = {}
        self._notes: list[str] = []  # for the user, with the next result
        self._spent: list[float] = []  # passes over the data after each epoch
        self._full = False  # the disk of the checkpoints, as far as was said
        self._seconds = 0.0
        self._saved_at = time.monotonic()
        return True

    def _begin(self) -> None:
        """Build the run, if that is still to be done."""
        config = self._settings
        if self.run is not None or self._failure:
            return
        try:
            self.run = self._job.build(config["values"])
            if config["checkpoint"]:
                self._notes += newest_whole(Checkpoint(config["checkpoint"]), self._load)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # noqa: BLE001  told as the trial's result, with its reason
            self._failure = explain(e)

    def step(self) -> dict[str, Any]:
        """One epoch; in a final run's last step also the test."""
        self._begin()
        if self.run is None or self._failure:
            return self._failed()
        try:
            return self._advance(self.run)
        except torch.OutOfMemoryError:
            raise
        except Exception as e:  # noqa: BLE001  told as the trial's result, with its reason
            self._failure = explain(e)
            return self._failed()

    def _failed(self) -> dict[str, Any]:
        return {
            FAILURE_KEY: self._failure,
            OBJECTIVE_KEY: math.nan,
            "done": True,
            FINISHED_KEY: False,
            PASSES_KEY: self._spent[-1] if self._spent else 0.0,
        }

    def _advance(self, run: Runnable) -> dict[str, Any]:
        start = time.monotonic()
        metrics: dict[str, float] = {}
        diverged = False
        if not self._finished and run.epochs_done < self._job.epochs:
            found = run.epoch()
            metrics = found.metrics
            diverged = found.diverged
            self._finished = found.done
            self._notes += found.notes
            self._spent.append(metrics.get("passes", float(run.epochs_done)))
            if found.best:
                self._best_metrics = {k: v for k, v in metrics.items() if k.startswith("val/")}
        self._finished = self._finished or run.epochs_done >= self._job.epochs
        result: dict[str, Any] = {
            "training_iteration": run.epochs_done,
            PASSES_KEY: self._spent[-1] if self._spent else float(run.epochs_done),
            OBJECTIVE_KEY: run.best_value if math.isfinite(run.best_value) else math.nan,
            "best_epoch": run.best_epoch,
            FINISHED_KEY: self._finished,
            DIVERGED_KEY: diverged,
            "done": self._finished,
            "metrics": metrics,
            "best_metrics": self._best_metrics,
        }
        one_per_epoch = list(range(1, len(self._spent) + 1))
        if self._spent != one_per_epoch:
            result[SPENT_KEY] = list(self._spent)
        if self._job.test and self._finished and not diverged:
            result["test"] = run.test()
        self._seconds += time.monotonic() - start
        result["seconds"] = self._seconds
        if self._due() and self._room(run):
            result[SHOULD_CHECKPOINT] = True
        result[NOTES_KEY] = self._notes
        self._notes = []
        return result

    def _due(self) -> bool:
        """Whether a checkpoint is wanted; of a final run that has ended for the sake of the files
        that it leaves.
        """
        if self._finished:
            return self._job.test
        return time.monotonic() - self._saved_at >= self._job.save_every

    def _room(self, run: Runnable) -> bool:
        """Whether a checkpoint fits where they are kept.

        One that does not fit would end the trial, which would be tried again from the one before,
        and so on. Said once, and again at the end.
        """
        if not os.path.isdir(self._job.storage):
            return True
        kept: list[Any] = [run.state_dict()]
        if self._finished:
            kept += [run.best_state(), run.gradient_vectors()]
        needed = MARGIN + checkpoint.size(tuple(kept))
        free = shutil.disk_usage(self._job.storage).free
        if free >= needed:
            self._full = False
            return True
        if not self._full or self._finished:
            self._notes.append(self._no_room(needed, free))
        self._full = True
        return False

    def _no_room(self, needed: int, free: int) -> str:
        mib = 2**20
        what = f"it needs {needed / mib:.1f} MiB and {self._job.storage} has {free / mib:.1f} left"
        rest = "training goes on, the last checkpoint stays"
        if self._finished:
            rest = "its files are not kept"
        return f"no checkpoint: {what}; {rest}"

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Write the whole state; at the end of a final run also what is kept of it for use
        elsewhere.
        """
        if self.run is None:
            return
        own = {
            "best_metrics": self._best_metrics,
            "seconds": self._seconds,
            "finished": self._finished,
        }
        own["spent"] = list(self._spent)
        checkpoint.save({"run": self.run.state_dict(), "own": own}, Path(checkpoint_dir) / STATE)
        if self._job.test and self._finished:
            artifacts.write(
                Path(checkpoint_dir), self.run.best_state(), self.run.gradient_vectors()
            )
        self._saved_at = time.monotonic()

    def restore(self, checkpoint_path: Any) -> None:
        """Ray's hook: go on from the last checkpoint or, where it is damaged, from the one before."""
        self._begin()
        if self.run is not None:
            last: Any = getattr(checkpoint_path, "checkpoint", checkpoint_path)
            self._notes += newest_whole(
                Checkpoint(last) if isinstance(last, str) else last, self._load
            )

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Go on from a state written by save_checkpoint (checkpoint: its folder). Raises OSError,
        ValueError.
        """
        self._begin()
        if self.run is not None:
            self._load(Path(checkpoint))

    def _load(self, folder: Path) -> None:
        assert self.run is not None
        saved = checkpoint.load(folder / STATE)
        self.run.load_state_dict(saved["run"])
        own = saved["own"]
        self._best_metrics = own["best_metrics"]
        self._seconds = own["seconds"]
        self._finished = own["finished"]
        self._spent = list(own["spent"])


def _keep_to(job: TrialJob) -> None:
    """Use no more of the GPU than was booked, for which Ray itself does nothing."""
    os.environ.update(job.environment)
    if job.gpus == 0:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif job.gpus is not None and job.gpus < 1 and torch.cuda.is_available():
        torch.cuda.set_per_process_memory_fraction(job.gpus)


def explain(error: BaseException) -> str:
    """One line: kind, message, and the innermost line of this program that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    if frames:
        where = f" ({os.path.basename(frames[-1].filename)} line {frames[-1].lineno})"
    else:
        where = ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:500]}{where}"
