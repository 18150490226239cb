"""Where trials run: Ray started or joined, every node looked at, and how many trials go on at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console
from rich.text import Text

from tune_mm.config import Config
from tune_mm.data.base import Source
from tune_mm.errors import UserError
from tune_mm.tune.execute import footprint, gpu_share, mps, nodes, ray_session
from tune_mm.tune.plan.plan import Plan


@dataclass(frozen=True)
class Resources:
    """What trials run on."""

    slots: int  # trials at once
    gpus: float = 0  # of each
    joined: bool = False  # a cluster that was there, not one started here
    environment: Mapping[str, str] = field(default_factory=dict)  # what the workers need in theirs


@contextlib.contextmanager
def prepared(plan: Plan, source: Source | None, console: Console) -> Iterator[Resources]:
    """What trials of `plan` can start on, given back at the end.

    source: the data set that every node must have (None: trials read none). Raises UserError, with
    the node's name where one is to blame: before anything has started or is written.
    """
    options = plan.options
    joined = bool(options.address or os.environ.get("RAY_ADDRESS"))
    with contextlib.ExitStack() as undo:
        undo.callback(ray_session.connect(options.address, plan.cpus, options.concurrency).close)
        nodes.check_storage(plan.storage)
        if source is not None:
            nodes.check_data(plan.space.base, source.kind, _root(plan))
        gpus = _gpus(plan, source, console)
        slots = ray_session.slots(plan.cpus, gpus, options.concurrency)
        environment: Mapping[str, str] = {}
        if options.mps:
            folder = mps.folder()
            undo.callback(mps.stop, mps.start(folder), folder)
            environment = mps.environment(folder)
        yield Resources(slots, gpus, joined, environment)


def _root(plan: Plan) -> str | None:
    if plan.options.data_root is None:
        return None
    return str(plan.options.data_root)


def _gpus(plan: Plan, source: Source | None, console: Console) -> float:
    """GPUs of a trial; measured when it was left to us. Raises UserError."""
    gpus = plan.gpus
    if gpus == "auto":
        peak = None
        if source is not None:
            peak = partial(footprint.peak, _candidates(plan), source, _root(plan))
        gpus, why = gpu_share.share(plan.cpus, peak)
        if gpus:
            console.print(Text(f"--gpus-per-trial auto: {why}"))
    device = plan.space.base.train.device
    if gpus == 0 and device.startswith("cuda"):
        raise UserError(
            f"train.device: is {device}, and trials get no GPU; take auto, or give --gpus-per-trial"
        )
    return gpus


def _candidates(plan: Plan) -> list[Config]:
    """The configs among which the largest trial is, of the search and of its baseline."""
    found: list[Config] = []
    for space in (plan.space, plan.baseline):
        if space is not None:
            found += footprint.candidates(space, plan.config(space, 1))
    return found
