"""What reports read: the runs of a tracking store as plain values, and their metrics by epoch.

Nothing but the store is read: neither Ray's files nor Optuna's journal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class StoredRun:
    """One run. space: its experiment; search: the unique id of the search that it belongs to (""
    for a single run).

    stage: search, baseline, final or train; status: completed, pruned, failed, stopped or running.
    tags, params: as stored (text). metrics: the last value of each.
    """

    id: str
    name: str
    space: str
    search: str
    parent: str | None
    stage: str
    status: str
    started: datetime
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]

    @property
    def seed(self) -> int:
        """Its seed."""
        return int(self.tags.get("seed", self.params.get("seed", "0")))

    def value(self, key: str) -> str | None:
        """A tag or a parameter by name (tags first); None if there is none."""
        return self.tags.get(key, self.params.get(key))


Curve = Sequence[tuple[int, float]]  # (epoch from 1, value), by epoch
