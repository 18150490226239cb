"""Where trials run: Ray started or joined, every node looked at, and how many trials go on at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console
from rich.text import Text

from tune_mm.data.base import Source
from tune_mm.errors import UserError
from tune_mm.tune.execute import footprint, gpu_share, mps, nodes, ray_session
from tune_mm.tune.plan.plan import Plan


@dataclass(frozen=True)
class Site:
    """slots: trials at once; gpus: of each; joined: a cluster that was there, not one started here;
    environment: what the workers need in theirs.
    """

    slots: int
    gpus: float = 0
    joined: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


@contextlib.contextmanager
def prepared(plan: Plan, source: Source | None, console: Console) -> Iterator[Site]:
    """A site on which trials of `plan` can start, given back at the end.

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
        yield Site(slots, gpus, joined, environment)


def _root(plan: Plan) -> str | None:
    return None if plan.options.data_root is None else str(plan.options.data_root)


def _gpus(plan: Plan, source: Source | None, console: Console) -> float:
    """GPUs of a trial; measured when it was left to us. Raises UserError."""
    gpus = plan.gpus
    if gpus == "auto":
        peak = None
        if source is not None:
            found = [
                c
                for s in (plan.space, plan.baseline)
                if s
                for c in footprint.candidates(s, plan.config(s, 1))
            ]
            peak = partial(footprint.peak, found, source, _root(plan))
        gpus, why = gpu_share.share(plan.cpus, peak)
        if gpus:
            console.print(Text(f"--gpus-per-trial auto: {why}"))
    device = plan.space.base.train.device
    if gpus == 0 and device.startswith("cuda"):
        raise UserError(
            f"train.device: is {device}, and trials get no GPU; take auto, or give --gpus-per-trial"
        )
    return gpus
