"""Random streams: a run draws from one of its own and leaves the process's as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from tune_mm.core.types import Tensors


def current(device: torch.device) -> Tensors:
    """The state of the process's generators: the CPU's, and that of a CUDA device."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cuda":
        return state
    return {**state, "cuda": torch.cuda.get_rng_state(device)}


@contextmanager
def isolated(device: torch.device, start: Tensors | None = None) -> Iterator[None]:
    """What is drawn within it goes on from `start` (None: from the process's state), and the
    process's state stays.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if start is not None:
            torch.set_rng_state(start["cpu"])
            if "cuda" in start and devices:
                torch.cuda.set_rng_state(start["cuda"], device)
        yield
