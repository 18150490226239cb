"""What this package uses of Ray and Tune that they do not document.

Held by tests/tune/execute/test_ray_internals.py, which an upgrade of Ray breaks first.
"""

from __future__ import annotations

import functools
from typing import Any

from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray.tune.execution.tune_controller import TuneController


def silence_workers() -> None:
    """Keep what workers and the raylet print off the terminal.

    Why: what the raylet prints about a dead worker does not pass through `logging`, and
    `log_to_driver=False` does not stop it. The search says it in a line of its own.
    """
    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")


def keep_starting_actors() -> None:
    """Keep Tune from killing actors that are starting.

    Why: with `reuse_actors` Tune hands an actor that falls free to any trial that waits, also to
    one whose own actor is on its way, and kills that actor; the next trial then starts another,
    and so on. Where trials are shorter than the start of a worker (seconds: it imports torch),
    slots stay empty for good. Here such a trial keeps its actor, and the free one goes to the
    next trial.
    """
    reuse: Any = TuneController._maybe_reuse_cached_actor
    if hasattr(reuse, "original"):
        return

    @functools.wraps(reuse)
    def reuse_unless_starting(self: Any, trial: Any) -> Any:
        if _is_starting(self, trial):
            return False
        return reuse(self, trial)

    reuse_unless_starting.original = reuse  # type: ignore[attr-defined]
    TuneController._maybe_reuse_cached_actor = reuse_unless_starting  # type: ignore[method-assign]


def _is_starting(controller: Any, trial: Any) -> bool:
    """Whether a trial's own actor has its resources and has not answered yet."""
    actor = controller._trial_to_actor.get(trial)
    if actor is None or actor in controller._started_actors:
        return False
    return actor in controller._actor_manager._live_actors_to_ray_actors_resources
