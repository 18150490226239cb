"""Parts of a queue, and what is left of one when it is closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(eq=False)
class Segment:
    """A part of the queue, older than those with a larger number. lines: None when they are on
    disk.
    """

    number: int
    lines: list[bytes] | None = None
    synced: bool = False


@dataclass(frozen=True)
class Rest:
    """What a closed queue still has: lines that wait for the store, lines kept aside by file, lines
    that are lost.
    """

    waiting: int
    aside: Mapping[str, int]
    lost: int

    @property
    def any(self) -> bool:
        """Whether something is not in the store."""
        return bool(self.waiting or self.aside or self.lost)


def count(path: Path) -> int:
    """Lines of a file; 0 when there is none."""
    try:
        return path.read_bytes().count(b"\n")
    except OSError:
        return 0
