"""A toy that leaves a trace of every epoch it begins, and waits in one of them for a test to do its
worst.

Ray's workers import this module.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from tests.tune.toy import Toy, ToyResult

TRACE, HELD, GO = "trace", "held", "go"
HELD_AGAIN, GO_AGAIN = "held_again", "go_again"


@dataclass
class Traced(Toy):
    """Writes a line to `<marks>/trace` when an epoch begins; `marks` must be an existing folder.

    hold: the line (from 1) at which it waits, or a later one, if its epoch is `since` or a later
    one; once per folder: the file `held` then has that line. It goes on when `go` is there, or
    after `patience` seconds. again: a later line, with `held_again` and `go_again`. ballast:
    characters by which its state is larger. Metrics are those of the toy but the worker's, which
    differ from run to run.
    """

    hold: int = 0
    again: int = 0
    since: int = 1
    patience: float = 600.0
    ballast: int = 0

    def epoch(self) -> ToyResult:
        marks = Path(self.marks)
        line = self._trace(marks)
        for number, held, go in ((self.hold, HELD, GO), (self.again, HELD_AGAIN, GO_AGAIN)):
            due = number and len(trace(marks)) >= number and self.epochs_done + 1 >= self.since
            if due and _first(marks / held, line):
                self._wait(marks / go)
        found = super().epoch()
        return replace(found, metrics={k: v for k, v in found.metrics.items() if k != "val/worker"})

    def _wait(self, go: Path) -> None:
        end = time.monotonic() + self.patience
        while not go.exists() and time.monotonic() < end:
            threading.Event().wait(0.05)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "ballast": "x" * self.ballast}

    def _trace(self, marks: Path) -> str:
        node = ray.get_runtime_context().get_node_id()
        what = {"lr": self.config.optim.lr, "seed": self.config.seed, "epoch": self.epochs_done + 1}
        with (marks / TRACE).open(
            "a"
        ) as file:  # one write of less than a block: lines of several workers do not mix
            file.write(line := json.dumps({**what, "pid": os.getpid(), "node": node}) + "\n")
        return line


def trace(marks: Path, name: str = TRACE) -> list[dict[str, Any]]:
    """lr, seed, epoch, pid and node of every epoch that has begun, in order; with HELD, of the one
    that waits.
    """
    try:
        return [json.loads(line) for line in (marks / name).read_text().splitlines()]
    except FileNotFoundError:
        return []


def objective(lr: float, epoch: int) -> float:
    """What the toy reaches: (1 - |log10(lr) + 3| / 4) * epoch / (epoch + 1)."""
    return (1 - abs(math.log10(lr) + 3) / 4) * epoch / (epoch + 1)


def _first(mark: Path, text: str) -> bool:
    """Make a file, at once with its text; whether it was not there yet."""
    scratch = mark.with_name(f"{mark.name}.{os.getpid()}")
    scratch.write_text(text)
    try:
        os.link(scratch, mark)
    except FileExistsError:
        return False
    finally:
        scratch.unlink()
    return True
