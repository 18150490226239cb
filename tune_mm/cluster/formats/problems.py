"""What is wrong with a cluster file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from tune_mm.cluster.formats.files import ClusterFile
from tune_mm.config.yaml import shown

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Problem:
    """What goes wrong with a cluster file."""

    check: str
    # error: the search would fail, or lose money or data; warning: it may; note: the user has yet
    # to fill it in.
    severity: Severity
    what: str
    # From 1; 0 where the file has none for it.
    line: int
    why: str
    mend: str

    def text(self, file: ClusterFile) -> str:
        """Three lines: what and where, why, the mend."""
        where = shown(file.path) + (f" line {self.line}" if self.line else "")
        return f"{self.severity} {self.check} ({where}): {self.what}\n  why: {self.why}\n  mend: {self.mend}"


Check = Callable[[ClusterFile], Iterator[Problem]]
