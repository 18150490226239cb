"""What is said of records that are not in the store."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

from tune_mm.track.outbox.queue import REFUSED
from tune_mm.track.outbox.segment import Rest


def shown(path: Path) -> Path:
    """`path` as it may be printed: relative to the working directory where it is below it."""
    here = Path.cwd()
    if path.is_relative_to(here):
        return path.relative_to(here)
    return path


def way(folder: Path) -> str:
    """What to do with a queue."""
    return f"once the store is back: python -m tune_mm.track replay --queue {shlex.quote(str(shown(folder)))}"


def left(rest: Rest, folder: Path, experiment: str) -> Iterator[str]:
    """One line per reason why something of `experiment` is not in the store; `folder` is its queue."""
    if rest.waiting:
        yield f"{rest.waiting} records of '{experiment}' wait; {way(folder)}"
    for name, count in rest.aside.items():
        if name == REFUSED:
            what = "refused by the store"
        else:
            what = "damaged"
        yield f"{count} records of '{experiment}' are {what} and kept in {shown(folder / name)}"
    if rest.lost:
        yield f"{rest.lost} records of '{experiment}' were lost"
