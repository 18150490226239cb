"""A driver in virtual time: recorded epochs go through the searcher, scheduler, callback and
tracking of a search.

What is real: `AskTell` over a `Ledger` on a journal file, the scheduler that `schedulers.make`
builds, `TrialCallback`, and a `Tracker` on a sqlite store, called in the order in which Ray's controller
calls them. What is left out: Ray's own controller and its actors, which a real search measures, and
the training, which takes its recorded time on a virtual clock. The tracking thread's rounds are
made on that clock too: a round, its CPU time, a pause of a second, the next.
"""

from __future__ import annotations

import heapq
import io
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from _scale_curves import OBJECTIVE, Curve, Curves
from _scale_meter import Meter
from optuna.trial import FrozenTrial, TrialState
from ray.tune import Checkpoint
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.utils import flatten_dict
from rich.console import Console

from tune_mm.config import Config, flatten, with_overrides
from tune_mm.track.tags import Stage
from tune_mm.track.writer import INTERVAL
from tune_mm.tune import stages
from tune_mm.tune.execute.callback import StopSwitch, TrialCallback
from tune_mm.tune.output.display import Board
from tune_mm.tune.plan import plan
from tune_mm.tune.plan.plan import Options
from tune_mm.tune.propose.journal import open_storage
from tune_mm.tune.propose.ledger import Ledger
from tune_mm.tune.propose.result_keys import (
    DIVERGED_KEY,
    FINISHED_KEY,
    NOTES_KEY,
    OBJECTIVE_KEY,
    PASSES_KEY,
)
from tune_mm.tune.propose.samplers import make_sampler
from tune_mm.tune.propose.searcher import AskTell
from tune_mm.tune.space.domains import Values
from tune_mm.tune.space.drawing import draw
from tune_mm.tune.stages import StagePlan
from tune_mm.tune.stop import schedulers
from tune_mm.tune.tracking import Tracker

EPOCHS = 27
SAVE_EVERY = 10.0  # seconds of training between checkpoints, as by default
NOBODY: Any = None  # for Ray's controller, which its ASHA does not ask
SPACE = """config: utd_mhad
method: cggm
objective: val/accuracy
set: {{method.variant: stable}}
domains:
  method.rho: {{uniform: [0.8, 2.0]}}
  method.lam: {{loguniform: [0.01, 0.3]}}
  method.classifier_lr: {{loguniform: [1e-4, 1e-2]}}
  optim.lr: {{loguniform: [1e-4, 3e-3]}}
  optim.weight_decay: {{choice: [0.0, 1e-5, 1e-4, 1e-3, 1e-2]}}
  optim.clip: {{loguniform: [0.2, 5.0]}}
trials: {trials}
searcher: tpe
scheduler: {{name: asha, epochs: {epochs}, grace: 1, reduction: 3}}
finals: {{top: 0}}
"""


@dataclass(frozen=True)
class Case:
    """trials in all, slots at once, full budget of a trial.

    every: only one trial in so many is tracked, and what that costs counts so many times, on the
    virtual clock too: with every trial tracked the store takes most of a run's time. metrics: of an
    epoch; None: all that were recorded. store: URI of an MLflow server; None: a sqlite file.
    """

    trials: int
    slots: int
    epochs: int = EPOCHS
    every: int = 1
    metrics: int | None = None
    store: str | None = None


@dataclass
class Running:
    """A trial on a slot. epoch: how many it has done; saved: when it wrote its last checkpoint
    (virtual s).
    """

    trial: Trial
    curve: Curve
    began: float
    saved: float
    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = 0

    def step(self, now: float, epochs: int) -> dict[str, Any]:
        """The result of the next epoch, as `RunTrainable.step` gives it."""
        metrics = dict(self.curve.metrics[self.epoch])
        self.epoch += 1
        if metrics[OBJECTIVE] > self.best:
            self.best, self.best_epoch = metrics[OBJECTIVE], self.epoch
        done = self.epoch >= epochs
        best = self.curve.metrics[self.best_epoch - 1]
        return {
            "training_iteration": self.epoch,
            PASSES_KEY: float(self.epoch),
            OBJECTIVE_KEY: self.best,
            "best_epoch": self.best_epoch,
            FINISHED_KEY: done,
            DIVERGED_KEY: False,
            "done": done,
            "metrics": metrics,
            "best_metrics": {k: v for k, v in best.items() if k.startswith("val/")},
            "seconds": now - self.began,
            NOTES_KEY: [],
        }


class Some:
    """Tracking of every so-many-th trial."""

    def __init__(self, tracker: Tracker, every: int) -> None:
        self._tracker, self._every = tracker, every

    def start(self, stage: Stage, number: int, config: Config, facts: Mapping[str, Any]) -> None:
        if number % self._every == 0:
            self._tracker.start(stage, number, config, facts)

    def log(self, stage: Stage, number: int, metrics: Mapping[str, float], epoch: int) -> None:
        if number % self._every == 0:
            self._tracker.log(stage, number, metrics, epoch)

    def tag(self, stage: Stage, number: int, tags: Mapping[str, str]) -> None:
        if number % self._every == 0:
            self._tracker.tag(stage, number, tags)

    def file(self, stage: Stage, number: int, path: Path, name: str) -> None:
        """Nothing: only final runs leave files."""

    def finish(self, stage: Stage, trial: FrozenTrial) -> None:
        if trial.number % self._every == 0:
            self._tracker.finish(stage, trial)

    def stopped(self, stage: Stage, number: int, reason: str) -> None:
        """Nothing: no trial is cut off."""

    def flush(self) -> None:
        self._tracker.flush()


class Driver:
    """One stage of a search on virtual slots. Everything lies under `root`."""

    def __init__(self, case: Case, curves: Curves, root: Path) -> None:
        self.case, self.curves, self.meter = case, curves, Meter()
        (root / "scale.yaml").write_text(SPACE.format(**vars(case)))
        self.plan = plan.resolve(
            Options(
                root=root, space=str(root / "scale.yaml"), name="scale", tracking_uri=case.store
            )
        )
        self.journal = root / "journal"
        self.stage = stages.tuning(self.plan, "search")
        self.tracker = Tracker(self.plan, "synthetic", {})
        self.ledger, self.searcher, self.scheduler = self.open()
        board = Board(Console(file=io.StringIO()), OBJECTIVE, "max", case.epochs)
        board.begin("search", 0, case.trials)
        config_of = partial(with_overrides, self.stage.base)
        self.watch = TrialCallback(
            "search", self.searcher, config_of, Some(self.tracker, case.every), board, StopSwitch()
        )
        self._measure()
        self.now = self.trained = 0.0
        self.reports = self.rounds = 0
        self.ask_ms: list[float] = []
        self._free = case.slots
        self._events: list[tuple[float, int, Running | None]] = []
        self._pushed = 0
        self._busy = 0.0  # CPU seconds of tracking up to the last round
        self._round_ends = self.behind = (
            0.0  # when (virtual s); how long the store takes after the last trial
        )

    def open(self) -> tuple[Ledger, AskTell, TrialScheduler]:
        """Ledger, searcher and scheduler as `stages.run` makes them, from what the journal has."""
        book = ledger(self.plan, self.stage, self.journal)
        searcher = AskTell(book, self.case.trials, lambda: self.case.slots)
        past = book.past(TrialState.COMPLETE, TrialState.PRUNED)
        spec = self.plan.space.spec.scheduler
        scheduler = schedulers.make(
            spec.name,
            "max",
            self.case.epochs,
            spec.grace,
            spec.reduction,
            self.plan.space.domains,
            past,
            searcher.resumed,
        )
        return book, searcher, scheduler

    def _measure(self) -> None:
        hooks = ("on_trial_start", "on_trial_result", "on_trial_complete", "on_checkpoint")
        told = ("report", "note", "complete", "prune", "fail")
        self.meter.watch("ledger", self.ledger, "frozen", *told)
        self.meter.watch(
            "searcher", self.searcher, "suggest", "on_trial_result", "on_trial_complete"
        )
        self.meter.watch(
            "scheduler", self.scheduler, "on_trial_add", "on_trial_result", "on_trial_complete"
        )
        self.meter.watch("tracking", self.tracker, "start", "log", "finish")
        self.meter.watch("callback", self.watch, *hooks)
        self.meter.watch("store", self.tracker, "flush", "close")

    # ---- the loop

    def run(self) -> None:
        """All trials to their ends."""
        self._busy = time.process_time() - time.thread_time()
        self._push(INTERVAL, None)
        self._fill()
        ended = 0
        while ended < self.case.trials:
            self.now, _, running = heapq.heappop(self._events)
            if running is None:
                self._flush()
                continue
            ended += self._epoch(running)
        self.meter.occasion = "store"
        self.tracker.flush()
        self.tracker.close()  # waits for the tracking thread too, which may have a long round under way
        self.behind = max(0.0, self._round_ends - self.now) + self._written()

    def _push(self, when: float, what: Running | None) -> None:
        self._pushed += 1  # what comes at the same moment comes in this order
        heapq.heappush(self._events, (when, self._pushed, what))

    def _fill(self) -> None:
        """Give every free slot a trial."""
        self.meter.occasion = "trial"
        while self._free:
            trial_id = Trial.generate_id()
            began = time.thread_time()
            found = self.searcher.suggest(trial_id)
            if found is None or str(found) == "FINISHED":
                return
            self.ask_ms.append(1000 * (time.thread_time() - began))
            trial = Trial("tune_mm", stub=True, trial_id=trial_id, config=found)
            self.scheduler.on_trial_add(NOBODY, trial)
            self.watch.on_trial_start(0, [], trial)
            curve = self.curves.of(found["number"], found["values"])
            self._free -= 1
            self._push(self.now + curve.seconds[0], Running(trial, curve, self.now, self.now))

    def _epoch(self, running: Running) -> bool:
        """An epoch has ended: what Ray's controller does with its result. Whether the trial has
        ended with it.
        """
        self.meter.occasion = "report"
        trial, result = running.trial, running.step(self.now, self.case.epochs)
        flat = flatten_dict(result)
        self.reports, self.trained = (
            self.reports + 1,
            self.trained + running.curve.seconds[running.epoch - 1],
        )
        stop = (
            result["done"]
            or self.scheduler.on_trial_result(NOBODY, trial, flat) == TrialScheduler.STOP
        )
        if not stop:
            self.searcher.on_trial_result(trial.trial_id, flat)
        self.watch.on_trial_result(0, [], trial, result)
        trial.update_last_result(result)
        if not stop:
            if self.now - running.saved >= SAVE_EVERY:
                running.saved = self.now
                path = f"{self.plan.folder}/{trial.trial_id}/checkpoint_{running.epoch:06d}"
                self.watch.on_checkpoint(0, [], trial, Checkpoint(path))
            self._push(self.now + running.curve.seconds[running.epoch], running)
            return False
        self.meter.occasion = "trial"
        if result["done"]:
            self.scheduler.on_trial_complete(NOBODY, trial, flat)
        self.searcher.on_trial_complete(trial.trial_id, flat)
        self.watch.on_trial_complete(0, [], trial)
        self._free += 1
        self._fill()
        return True

    def _flush(self) -> None:
        self.meter.occasion = "store"
        self.tracker.flush()
        self.rounds += 1
        self._round_ends = self.now + self._written()
        self._push(self._round_ends + INTERVAL, None)

    def _written(self) -> float:
        """CPU seconds of tracking since the last call, those of its thread too: a thousand values
        start a round.
        """
        busy, before = (
            time.process_time() - time.thread_time() + self.meter.seconds["store", "store"],
            self._busy,
        )
        self._busy = busy
        return self.case.every * (busy - before)


def ledger(plan: plan.Plan, stage: StagePlan, journal: Path) -> Ledger:
    """The ledger of the stage on a journal file."""
    space, flat = stage.space, flatten(stage.base)
    spec = space.spec.searcher

    def suggest(trial: Any) -> Values:
        return draw(space.domains, flat, trial)

    def sampler(number: int) -> Any:
        return make_sampler(spec.name, plan.seed, number, spec.startup, space.conditional)

    return Ledger(
        open_storage(journal), "scale/search", "max", suggest, sampler, lambda number: None
    )
