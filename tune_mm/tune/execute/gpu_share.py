"""How many trials share a GPU when the user leaves it to us (`gpus: auto`)."""

from __future__ import annotations

import math
from collections.abc import Callable

import ray
import torch

from tune_mm.errors import UserError
from tune_mm.tune.execute import nodes

Peak = Callable[[], int]  # bytes of GPU memory of one trial; runs on a node, with a GPU of its own

# Of a GPU's memory: the rest is for fragmentation, and what a short measurement does not see.
USABLE = 0.92
# Seconds for a whole GPU to fall free and be measured.
PATIENCE = 900.0
# Of a GPU, booked to look at it.
SEES = 0.01
# Ray counts fractions of GPUs to four digits.
GRAIN = 10_000
GIB = 2**30


def share(cpus: float, peak: Peak | None) -> tuple[float, str]:
    """GPUs per trial, and why: none without a GPU in the cluster.

    peak: None where there is nothing to measure: a trial takes a whole GPU then.
    Raises UserError when no GPU can be had.
    """
    there = [node for node in nodes.alive() if node.gpus > 0]
    if not there:
        return 0.0, "no GPU: trials train on the CPU"
    if peak is None:
        return 1.0, "one trial per GPU"
    memory = min(nodes.ask(there, _memory, gpus=SEES).values())
    with_cpus = min(math.floor(node.cpus / cpus / node.gpus) for node in there)
    taken = _measured(peak)
    count = fitting(taken, memory, max(1, with_cpus))
    why = (
        f"one trial takes up to {taken / GIB:.2f} of {memory / GIB:.0f} GiB: "
        f"{count} at a time on a GPU"
    )
    return math.floor(GRAIN / count) / GRAIN, why


def fitting(taken: int, memory: int, most: int) -> int:
    """Trials of `taken` bytes that share a GPU of `memory` bytes: from 1 to `most`."""
    by_memory = math.floor(USABLE * memory / max(taken, 1))
    return max(1, min(most, by_memory))


def _measured(peak: Peak) -> int:
    # A process of its own, which leaves nothing on the GPU.
    remote = ray.remote(num_cpus=0, num_gpus=1, max_retries=0, max_calls=1)(peak)
    advice = "give --gpus-per-trial a number"
    try:
        taken: int = ray.get(remote.remote(), timeout=PATIENCE)
    except ray.exceptions.RayTaskError as error:
        raise UserError(
            f"the GPU memory of a trial cannot be measured: {error.cause}; {advice}"
        ) from None
    except ray.exceptions.GetTimeoutError:
        raise UserError(
            f"no GPU fell free within {PATIENCE:.0f} s to measure a trial on; {advice}"
        ) from None
    except ray.exceptions.RayError as error:
        raise UserError(
            f"measuring a trial's GPU memory ended with {type(error).__name__}; {advice}"
        ) from None
    return taken


def _memory() -> int:
    """Bytes of the smallest GPU that is seen here."""
    if not torch.cuda.is_available():
        raise RuntimeError(
            "Ray counts a GPU here, but torch cannot use it; give --gpus-per-trial 0"
        )
    devices = range(torch.cuda.device_count())
    return min(torch.cuda.get_device_properties(device).total_memory for device in devices)
