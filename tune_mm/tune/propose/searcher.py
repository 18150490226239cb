"""Ray's `Searcher` over a ledger: it hands out the ledger's trials and tells it what became of
them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, cast

from ray.tune.search import Searcher

from tune_mm.tune.propose.ledger import Assignment, Ledger
from tune_mm.tune.propose.result_keys import (
    DIVERGED_KEY,
    FAILURE_KEY,
    FINISHED_KEY,
    OBJECTIVE_KEY,
    SPENT_KEY,
)


class Unkept:
    """Has no state of its own in the file that Ray writes for Tuner.restore, which is not used here."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class AskTell(Unkept, Searcher):
    """Ray's view of a ledger: unfinished trials first, from their checkpoints, then new ones.

    Why not Ray's OptunaSearch: it tells Optuna that a trial stopped by ASHA is complete, with the
    value of its partial budget. Here every epoch's running best is reported, and a stopped trial is
    told PRUNED.
    """

    def __init__(self, ledger: Ledger, target: int, capacity: Callable[[], int]) -> None:
        """
        target: how many trials the stage has.
        capacity: how many may be alive at once.
        """
        super().__init__(metric=OBJECTIVE_KEY, mode=ledger.mode)
        self.ledger = ledger
        self.target = target
        self._capacity = capacity
        self._unfinished = ledger.unfinished()
        self._asked = ledger.handed_out()
        self.numbers: dict[str, int] = {}  # of live trials: Ray's id -> the ledger's number
        self.lost: set[str] = set()  # Ray's ids of trials whose worker died for good
        self.resumed: dict[int, Assignment] = {}  # trials that go on from a checkpoint

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """The next trial's config, None for "not now", Ray's FINISHED when all were handed out."""
        if not self._unfinished and self._asked >= self.target:
            # A str, which Ray's own annotation leaves out.
            return cast("dict[str, Any]", Searcher.FINISHED)
        if len(self.numbers) >= self._capacity():
            return None
        if self._unfinished:
            assignment = self.ledger.again(self._unfinished.pop(0))
        else:
            assignment = self.ledger.ask()
            self._asked += 1
        if assignment.reported:
            self.resumed[assignment.number] = assignment
        self.numbers[trial_id] = assignment.number
        return {
            "number": assignment.number,
            "values": assignment.values,
            "checkpoint": assignment.checkpoint,
        }

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Report the objective so far."""
        if OBJECTIVE_KEY in result:
            epoch = result["training_iteration"]
            self.ledger.report(self.numbers[trial_id], epoch, result[OBJECTIVE_KEY])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell COMPLETE, PRUNED or FAIL.

        A trial whose worker died for good is only noted: the driver's callback knows why, and tells
        it (`tell_lost`).
        """
        if error:
            self.lost.add(trial_id)
            return
        if not result:  # stopped while it waited: it stays unfinished
            self.numbers.pop(trial_id)
            return
        self.on_trial_result(trial_id, result)
        number = self.numbers.pop(trial_id)
        facts = facts_of(result)
        if FAILURE_KEY in result:
            self.ledger.fail(number, result[FAILURE_KEY], **facts)
        elif result.get(DIVERGED_KEY):
            epoch = result["training_iteration"]
            reason = f"diverged: the loss was not finite in epoch {epoch}"
            self.ledger.fail(number, reason, diverged=True, **facts)
        elif not result.get(FINISHED_KEY):
            self.ledger.prune(number, **facts)
        elif math.isfinite(result[OBJECTIVE_KEY]):
            self.ledger.complete(number, result[OBJECTIVE_KEY], **facts)
        else:
            self.ledger.fail(number, "no epoch had a finite objective", diverged=True, **facts)

    def tell_lost(self, trial_id: str, reason: str) -> None:
        """The trial's worker died more often than is allowed."""
        self.lost.discard(trial_id)
        if trial_id in self.numbers:
            self.ledger.fail(self.numbers.pop(trial_id), reason)

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is on disk already."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the ledger is on disk already."""


def facts_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """What the ledger keeps of a trial's last result (flattened by Ray: a/b/c)."""
    facts: dict[str, Any] = {
        "epochs": result.get("training_iteration", 0),
        "best_epoch": result.get("best_epoch", 0),
        "seconds": round(float(result.get("seconds", 0.0)), 3),
    }
    if SPENT_KEY in result:
        facts["passes"] = result[SPENT_KEY]
    for group in ("best_metrics", "test"):
        prefix = f"{group}/"
        found = {}
        for k, v in result.items():
            if k.startswith(prefix):
                found[k.removeprefix(prefix)] = v
        if found:
            facts[group] = found
    return facts
