"""A run as its writer sees it: a handle that exists at once, and what is still to be written for
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from mlflow.entities import Metric

from tune_mm.track import limits

Status = Literal["completed", "pruned", "failed", "stopped"]
MLFLOW_STATUS: dict[Status, str] = {
    "completed": "FINISHED",
    "pruned": "FINISHED",  # MLflow has no such status: the tag `status` tells the two apart
    "failed": "FAILED",
    "stopped": "KILLED",
}
REASON = "reason"  # the tag that says why a run ended
OBJECTIVE = "objective"  # the metric that every epoch of a search has


@dataclass(eq=False)
class RunHandle:
    """A run that was started. Callers read `name`, `key` and `run_id` only."""

    name: str
    # With the key, what identifies the run across restarts.
    search: str
    key: str
    parent: RunHandle | None = None
    # None until the writer has created the run in the store, or found it there.
    run_id: str | None = None
    # Whether the store does not want it (a deleted experiment, say): nothing more is written.
    refused: bool = False
    # Whether the store has a reason why it ended.
    reason: bool = False
    # Whether the store was asked to create it, and may have done so without saying so.
    attempted: bool = False
    # Params that the store has.
    known_params: dict[str, str] = field(default_factory=dict)
    # Steps that the store has, by the metric that stands for a record; None: still to be read from
    # the store.
    steps: dict[str, set[int] | None] = field(default_factory=dict)


@dataclass(frozen=True)
class MetricPoint:
    """The metrics of one step."""

    values: Mapping[str, float]
    step: int
    # Milliseconds since the epoch, taken when logged so that a retry changes nothing.
    timestamp: int

    @property
    def representative(self) -> str:
        """The metric that stands for the record when steps are compared: the objective, else a loss
        where there is one.

        A search that catches up after a kill knows the objective alone, and must find it again in
        whole records.
        """
        return min(self.values, key=lambda k: (k != OBJECTIVE, not k.endswith("/loss"), k))


@dataclass(frozen=True)
class Artifact:
    """A text, or a file that the writer owns until it is written."""

    # The path inside the run's artifacts.
    name: str
    text: str | None = None
    file: Path | None = None


@dataclass
class Buffer:
    """What is still to be written for one run, in this order."""

    # Milliseconds since the epoch; None where the run is not started here.
    start: int | None = None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    points: list[MetricPoint] = field(default_factory=list)
    # Points that passed the check against the steps known.
    metrics: list[Metric] = field(default_factory=list)
    artifacts: list[Artifact] = field(default_factory=list)
    status: Status | None = None
    # Milliseconds since the epoch; None where the run is not ended here.
    ended: int | None = None

    def __len__(self) -> int:
        """Number of values: one per param, tag, metric value, artifact and status."""
        values = sum(len(p.values) for p in self.points)
        small = len(self.params) + len(self.tags) + len(self.metrics) + len(self.artifacts)
        return values + small + (self.status is not None)

    def absorb(self, later: Buffer) -> None:
        """Append what came later, so that the result does not depend on where one round ends and
        the next begins.

        A run that was started again is no longer ended, and has no reason to have ended.
        """
        if later.start is not None:
            if self.start is None:
                self.start = later.start
            self.status = self.ended = None
            self.tags.pop(REASON, None)
        for key, value in later.params.items():
            if self.params.setdefault(key, value) != value:
                self.tags.update(changed(key, value))
        self.tags.update(later.tags)
        self.points.extend(later.points)
        self.artifacts.extend(later.artifacts)
        if later.status is not None:
            self.status = later.status
            self.ended = later.ended


def changed(param: str, value: str) -> dict[str, str]:
    """The tag that tells a param's new value: MLflow's params never change."""
    return {limits.name(f"changed.{param}"): limits.text(value, limits.TAG)}
