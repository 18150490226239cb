"""Parts of a queue, and what is left of one when it is closed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(eq=False)
class Segment:
    """A part of the queue, older than those with a larger number."""

    number: int
    # None when they are on disk.
    lines: list[bytes] | None = None
    # Whether the disk is known to have them.
    synced: bool = False


@dataclass(frozen=True)
class Rest:
    """What a closed queue still has."""

    # Lines that wait for the store.
    waiting: int
    # Lines kept aside, by file.
    aside: Mapping[str, int]
    # Lines that are lost.
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
