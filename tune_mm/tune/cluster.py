"""Ray: started quietly on this machine, or joined. Importing this module sets what Ray reads from the environment."""

from __future__ import annotations

import logging
import math
import os
import secrets
import sys
from typing import Any

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths keep their meaning in a trial
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # the search has its own
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000")  # Ray's own experiment state is not used
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from tune_mm.errors import UserError

STORE = 128 * 2**20  # bytes of shared memory: data sets are loaded by each worker, nothing large goes through it


def quiet() -> None:
    """Ray and Tune say nothing: what a search has to say it says itself."""
    for name in ("ray", "ray.tune", "ray.train", "ray._private"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def processors() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def connect(address: str | None, cpus: float, gpus: float, concurrency: int | None) -> int:
    """Start Ray here, or join the cluster at `address` (or RAY_ADDRESS); returns how many trials fit at once.

    Raises UserError when not even one does, or when no cluster answers.
    """
    quiet()
    if ray.is_initialized():
        return slots(cpus, gpus, concurrency)
    if address or os.environ.get("RAY_ADDRESS"):
        try:
            ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.CRITICAL)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise UserError(f"--address: no Ray cluster at '{address or 'RAY_ADDRESS'}': {error}") from None
        return slots(cpus, gpus, concurrency)
    if "RAY_AUTH_MODE" not in os.environ:
        # Ray's own default writes a token to the home directory; this one lives as long as the search.
        os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(32)
    wanted = max(processors(), math.ceil(cpus)) if concurrency is None else math.ceil(concurrency * cpus)
    ray.init(address="local", num_cpus=wanted, object_store_memory=STORE, _node_ip_address="127.0.0.1",
             include_dashboard=False, log_to_driver=False, logging_level=logging.CRITICAL)  # fmt: skip
    quiet()
    return slots(cpus, gpus, concurrency)


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


def leave() -> None:
    """Stop Ray here, or leave the cluster."""
    ray.shutdown()
