"""Where a trial goes on from: its newest checkpoint that is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.fs
from ray.tune import Checkpoint

PREFIX = "checkpoint_"  # of Ray's names, which end in a number


def newest_whole(checkpoint: Checkpoint, load: Callable[[Path], None]) -> list[str]:
    """`load` the files of `checkpoint` or, where it raises ValueError or OSError, those of the one
    before, and so on.

    Returns what is to be told of damaged ones. The last note says that the trial starts anew when
    none is whole; `load` must leave nothing behind when it raises.
    """
    notes: list[str] = []
    for one in (checkpoint, *before(checkpoint)):
        try:
            with one.as_directory() as folder:
                load(Path(folder))
            return notes
        except (OSError, ValueError) as error:
            notes.append(f"its checkpoint {PurePosixPath(one.path).name} cannot be used: {error}")
    return [*notes, "it has no checkpoint that is whole: it starts anew"]


def before(checkpoint: Checkpoint) -> Iterator[Checkpoint]:
    """The trial's earlier checkpoints that are still there, the newest first."""
    system: Any = checkpoint.filesystem
    place = PurePosixPath(checkpoint.path)
    try:
        found = system.get_file_info(pyarrow.fs.FileSelector(str(place.parent)))
    except OSError:
        return
    names = sorted((f.base_name for f in found if f.base_name.startswith(PREFIX)), reverse=True)
    for name in names:
        if name < place.name:
            yield Checkpoint(str(place.parent / name), system)
