"""What reports read: the runs of a tracking store as plain values, and their metrics by epoch.

Nothing but the store is read: neither Ray's files nor Optuna's journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class StoredRun:
    """One run."""

    id: str
    name: str
    # Its experiment.
    space: str
    # The unique id of the search that it belongs to; "" for a single run.
    search: str
    # The id of its search's run.
    parent: str | None
    # search, baseline, final or train.
    stage: str
    # completed, pruned, failed, stopped or running.
    status: str
    started: datetime
    # As stored.
    tags: Mapping[str, str]
    # As stored.
    params: Mapping[str, str]
    # The last value of each.
    metrics: Mapping[str, float]

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.tags.get("seed", self.params.get("seed", "0")))

    def value(self, key: str) -> str | None:
        """A tag or a parameter by name (tags first); None if there is none."""
        return self.tags.get(key, self.params.get(key))


Curve = Sequence[tuple[int, float]]  # (epoch from 1, value), by epoch
