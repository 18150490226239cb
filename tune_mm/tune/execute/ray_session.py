"""Ray: started quietly on this machine, or joined. Importing this module sets what Ray reads from
the environment.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import sys
from dataclasses import dataclass

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths keep their meaning in a trial
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # the search has its own
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # else a banner comes even with verbose=0
os.environ.setdefault("TUNE_PRINT_ALL_TRIAL_ERRORS", "0")
# Ray's own experiment state is not used.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000")
os.environ.setdefault("TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import ray

from tune_mm.errors import UserError
from tune_mm.tune.execute import _ray_internals, nodes
from tune_mm.tune.execute.nodes import Node

EPSILON = 1e-9
# Bytes of shared memory. Each worker loads the data set itself: nothing large goes through it.
STORE = 128 * 2**20
# Variables by which a user decides how Ray authenticates.
AUTHENTICATION = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}


def quiet() -> None:
    """Ray and Tune say nothing: what a search has to say it says itself."""
    for name in ("ray", "ray.tune", "ray.train", "ray._private"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    _ray_internals.silence_workers()


def processors() -> int:
    """CPUs this process may use."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Connection:
    """A Ray that answers. started: by this process, on this machine or as its link to a cluster."""

    started: bool

    def close(self) -> None:
        """Stop Ray if we started it."""
        if self.started:
            ray.shutdown()


def connect(address: str | None, cpus: float, concurrency: int | None) -> Connection:
    """Start Ray here, or join the cluster at `address` (or RAY_ADDRESS); one that runs in this
    process is kept.

    Raises UserError when no cluster answers.
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
    _ray_internals.keep_starting_actors()
    return Connection(started)


def _join(address: str) -> None:
    host, sign, port = address.rpartition(":")
    try:
        if sign and port.isdecimal() and "://" not in address:  # Ray itself would try for minutes
            socket.create_connection((host, int(port)), timeout=10).close()
        ray.init(address=address, log_to_driver=False, logging_level=logging.CRITICAL)
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--address: no Ray cluster at '{address}': {error}") from None


def _start(cpus: float, concurrency: int | None) -> None:
    if not AUTHENTICATION & set(os.environ):
        # A Ray of one's own asks for a token by default, and would write one to the home directory.
        # (The mode itself is left to Ray: it has read that variable when it was imported.)
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    if concurrency is None:
        wanted = max(processors(), math.ceil(cpus))
    else:
        wanted = math.ceil(concurrency * cpus)
    ray.init(
        address="local",
        num_cpus=wanted,
        object_store_memory=STORE,
        _node_ip_address="127.0.0.1",
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.CRITICAL,
    )


def slots(cpus: float, gpus: float, concurrency: int | None) -> int:
    """Trials that fit into what the cluster has now, node by node, at most `concurrency`; Tune may
    start as many.

    Raises UserError when none fits.
    """
    there = nodes.alive()
    fit = sum(room(node, cpus, gpus) for node in there)
    if fit < 1:
        if gpus > 0 and not any(node.gpus for node in there):
            raise UserError(
                f"--gpus-per-trial {gpus:g}: Ray sees no GPU here; leave it at 0 to train on the CPU"
            )
        offers = " and ".join(f"{n.cpus:g} and {n.gpus:g} on {n.name}" for n in there)
        raise UserError(
            f"a trial needs {cpus:g} CPUs and {gpus:g} GPUs on one node, and there are {offers}"
        )
    if concurrency is None:
        count = fit
    else:
        count = min(fit, concurrency)
    # Tune starts actors one after another unless told how many may be on their way.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = str(count)
    return count


def room(node: Node, cpus: float, gpus: float) -> int:
    """Trials that fit on a node: a fraction of a GPU lies on one GPU."""
    by_cpu = math.floor(node.cpus / cpus + EPSILON)
    if gpus <= 0:
        return by_cpu
    if gpus < 1:
        per_gpu = math.floor(1 / gpus + EPSILON)
        by_gpu = int(node.gpus) * per_gpu
    else:
        by_gpu = math.floor(node.gpus / gpus + EPSILON)
    return min(by_cpu, by_gpu)
