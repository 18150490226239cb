"""Ray: started quietly on this machine, or joined. Importing this module sets what Ray reads from the environment."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths keep their meaning in a trial
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # the search has its own
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else a banner comes even with verbose=0
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000")  # Ray's own experiment state is not used
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray
from ray.tune.execution.tune_controller import TuneController

from tune_mm.errors import UserError

STORE = 128 * 2**20  # bytes of shared memory: data sets are loaded by each worker, nothing large goes through it


def quiet() -> None:
    """Ray and Tune say nothing: what a search has to say it says itself."""
    for name in ("ray", "ray.tune", "ray.train", "ray._private"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    # What the raylet prints about a dead worker passes by `logging`; the search says it in a line of its own.
    with contextlib.suppress(Exception):
        from ray._private.ray_logging import global_worker_stdstream_dispatcher

        global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")


def processors() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


@dataclass(frozen=True)
class Connection:
    """A Ray that answers. slots: trials that fit at once; started: by us, on this machine."""

    slots: int
    started: bool

    def close(self) -> None:
        """Stop Ray if we started it."""
        if self.started:
            ray.shutdown()


def connect(address: str | None, cpus: float, gpus: float, concurrency: int | None) -> Connection:
    """Start Ray here, or join the cluster at `address` (or RAY_ADDRESS); one that runs in this process is kept.

    Raises UserError when not even one trial fits, or when no cluster answers.
    """
    quiet()
    started = False
    if not ray.is_initialized():
        address = address or os.environ.get("RAY_ADDRESS")
        if address:
            _join(address)
        else:
            _start(cpus, concurrency)
        started = True
    quiet()
    try:
        count = slots(cpus, gpus, concurrency)
    except UserError:
        if started:
            ray.shutdown()
        raise
    # Tune starts actors one after another unless told how many may be on their way.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(count)
    _let_actors_start()
    return Connection(count, started)


def _join(address: str) -> None:
    host, sign, port = address.rpartition(":")
    try:
        if sign and port.isdecimal() and "://" not in address:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--address: no Ray cluster at '{address}': {error}") from None


def _start(cpus: float, concurrency: int | None) -> None:
    if not {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        # A Ray of one's own asks for a token by default, and would write one to the home directory. (The mode itself
        # is left to Ray: it has read that variable when it was imported.)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    wanted = max(processors(), math.ceil(cpus)) if concurrency is None else math.ceil(concurrency * cpus)
    ray.init(address="local", num_cpus=wanted, object_store_memory=STORE, _node_ip_address="127.0.0.1",
             include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)  # fmt: skip


def _let_actors_start() -> None:
    """Keep Tune from killing actors that are starting.

    With `reuse_actors` it hands an actor that falls free to any trial that waits, also to one whose own actor is on its
    way, and kills that actor; the next trial then starts another, and so on. Where trials are shorter than the start of
    a worker (seconds: it imports torch), slots stay empty for good. Here such a trial keeps its actor, and the free
    one goes to the next trial.
    """
    reuse: Any = TuneController._maybe_reuse_cached_actor
    if hasattr(reuse, "original"):
        return

    @functools.wraps(reuse)
    def reuse_unless_starting(self: Any, trial: Any) -> Any:
        actor = self._trial_to_actor.get(trial)
        has_resources = actor in self._actor_manager._live_actors_to_ray_actors_resources
        if actor is not None and has_resources and actor not in self._started_actors:
            return False
        return reuse(self, trial)

    reuse_unless_starting.original = reuse  # type: ignore[attr-defined]
    TuneController._maybe_reuse_cached_actor = reuse_unless_starting  # type: ignore[method-assign]


def slots(cpus: float, gpus: float, concurrency: int | None) -> int:
    """Trials that fit into what the cluster has now, at most `concurrency`. Raises UserError when none does."""
    resources: Any = ray.cluster_resources  # which has no type hints
    there: dict[str, float] = resources()
    fit = math.floor(there.get("CPU", 0) / cpus + 1e-9)
    if gpus > 0:
        if there.get("GPU", 0) <= 0:
            raise UserError(f"--gpus-per-trial {gpus:g}: Ray sees no GPU here; leave it at 0 to train on the CPU")
        fit = min(fit, math.floor(there["GPU"] / gpus + 1e-9))
    if fit < 1:
        raise UserError(f"a trial needs {cpus:g} CPUs and {gpus:g} GPUs, and there are {there.get('CPU', 0):g} and "
                        f"{there.get('GPU', 0):g}")  # fmt: skip
    return fit if concurrency is None else min(fit, concurrency)
