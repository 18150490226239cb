"""What this package uses of Ray's schedulers that Ray does not document.

Why: a resumed search starts a fresh scheduler, and Ray offers no way to tell ASHA what happened
before. Held by tests/tune/stop/test_ray_internals.py, which an upgrade of Ray breaks first.
"""

from __future__ import annotations

from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler


def brackets(scheduler: AsyncHyperBandScheduler) -> list[Any]:
    """Each has `on_result(trial, time, value)`, which looks at the trial's `trial_id` only."""
    found: list[Any] = scheduler._brackets
    return found


def rung_count(bracket: Any) -> int:
    """How many rungs a bracket has."""
    return len(bracket._rungs)


def put_in_bracket(scheduler: AsyncHyperBandScheduler, trial_id: str, bracket: Any) -> None:
    """Decide a trial's bracket, which Ray draws when the trial is added."""
    scheduler._trial_info[trial_id] = bracket
