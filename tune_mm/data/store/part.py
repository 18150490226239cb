"""A folder of .npy files in the making that outlives its process: filled in batches, resumable."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tune_mm.data.store import npy
from tune_mm.data.store.cache import META
from tune_mm.filesystem import fsync, try_locked, write_json

PROGRESS = "progress.json"
SAMPLES = "samples.json"
SUFFIX = ".part"

# Dtype and shape of each file.
Arrays = Mapping[str, tuple[Any, tuple[int, ...]]]


@dataclass(frozen=True)
class SourceFiles:
    """What rows are made of."""

    # Digest of all but the samples' content.
    kind: str
    # The sample of each row.
    ids: Sequence[str]
    # Digest of the content of each row's sample.
    digests: Sequence[str]

    def changed(self, folder: Path) -> list[int]:
        """The rows of the partial store in `folder` that are of other content. Raises ValueError
        when it is of another kind.
        """
        try:
            left = json.loads((folder / SAMPLES).read_bytes())
            if left["kind"] == self.kind:
                pairs = zip(left["digests"], self.digests, strict=True)
                found = []
                for row, (old, new) in enumerate(pairs):
                    if old != new:
                        found.append(row)
                return found
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"{folder}: no such list of samples") from error
        raise ValueError(f"{folder}: is of another kind")

    def write(self, folder: Path) -> None:
        """Raises OSError."""
        values = {"kind": self.kind, "digests": list(self.digests)}
        write_json(folder / SAMPLES, values, indent=None)


def place_of(final: Path) -> Path:
    """Where the partial store lies that becomes the folder `final`."""
    return final.with_name(f".{final.name}{SUFFIX}")


def lock_of(final: Path) -> Path:
    """The lock file that is held by the process that makes `final`."""
    return final.with_name(f"{final.name}.lock")


def adopt(final: Path, sources: SourceFiles) -> None:
    """Makes another partial store that of `final`, where there is none: one of the same kind, with
    less than half of its rows of other content, at which nobody works. The lock of `final` is held.
    Raises OSError.
    """
    own = place_of(final)
    if own.exists():
        return
    for other in sorted(final.parent.glob(f".*{SUFFIX}")):
        name = other.name.removeprefix(".").removesuffix(SUFFIX)
        with try_locked(lock_of(other.with_name(name))) as held:
            if held and _mostly_same(other, sources):
                other.rename(own)
                return


def _mostly_same(folder: Path, sources: SourceFiles) -> bool:
    try:
        changed = sources.changed(folder)
    except ValueError:
        return False
    return 2 * len(changed) < len(sources.digests)


class PartialStore:
    """The folder `folder` with the files of `arrays`: begun anew unless an earlier process left it
    with such files.

    bad: what could not be read, by sample, with the reason; kept with the progress. Raises OSError,
    also when the disk has too little room for all that is missing.
    """

    def __init__(
        self, folder: Path, arrays: Arrays, sources: SourceFiles, bad: Mapping[str, str]
    ) -> None:
        self.folder = folder
        self.bad: dict[str, str] = dict(bad)
        self._arrays = arrays
        self._sources = sources
        # By stage: rows from the first on that are done, and rows of them to be made again.
        self._rows: dict[str, int] = {}
        self._again: dict[str, list[int]] = {}
        # Open files, and where their values start.
        self._files: dict[str, tuple[BinaryIO, int]] = {}
        if not self._found():
            self._begin()

    def __enter__(self) -> PartialStore:
        for name in self._arrays:
            file = npy.reopen(self.folder / name)
            self._files[name] = (file, file.tell())
        return self

    def __exit__(self, *_: object) -> None:
        for file, _start in self._files.values():
            file.close()
        self._files = {}

    def _found(self) -> bool:
        """Whether an earlier process left such files; if so, its progress is taken over."""
        try:
            found = json.loads((self.folder / PROGRESS).read_bytes())
            for name, (dtype, shape) in self._arrays.items():
                left = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
                if left.dtype != np.dtype(dtype) or left.shape != shape:
                    return False
            changed = self._sources.changed(self.folder)
            rows = dict(found["rows"])
            again = dict(found["again"])
            bad = dict(found["bad"])
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return False
        for row in changed:
            bad.pop(self._sources.ids[row], None)
        self.bad = {**bad, **self.bad}
        self._rows = rows
        self._again = {}
        for stage, done in rows.items():
            stale = {row for row in changed if row < done}
            self._again[stage] = sorted(stale.union(again.get(stage, [])))
        if changed:
            # In this order: a kill between the two leaves rows to be made again, not rows out of
            # date.
            self._write()
            self._sources.write(self.folder)
        return True

    def _begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        size = sum(npy.size_of(dtype, shape) for dtype, shape in self._arrays.values())
        try:
            npy.require_room(self.folder, size)
        except OSError:
            self.folder.rmdir()
            raise
        for name, (dtype, shape) in self._arrays.items():
            npy.create(self.folder / name, dtype, shape).close()
        self._sources.write(self.folder)
        self._write()

    def left(self, stage: int, size: int, step: int) -> list[list[int]]:
        """The rows of a stage of `size` rows that are to be made, in batches of at most `step`."""
        again = self._again.get(str(stage), [])
        done = self._rows.get(str(stage), 0)
        return [*_batches(again, step), *_batches(range(done, size), step)]

    def put(self, name: str, rows: Sequence[int], values: NDArray[Any]) -> None:
        """`values` [B, ...] at the rows, counted over all axes but those of one sample. Raises
        OSError.
        """
        dtype, _shape = self._arrays[name]
        file, start = self._files[name]
        samples = np.ascontiguousarray(values, dtype).reshape(len(rows), -1)
        for row, own in zip(rows, samples, strict=True):
            npy.write_at(file, start + row * own.nbytes, own)

    def commit(self, stage: int, rows: Sequence[int]) -> None:
        """Puts on disk all that was written, then that a batch of `left` is done. Raises OSError."""
        for file, _start in self._files.values():
            os.fsync(file.fileno())
        name = str(stage)
        again = self._again.get(name, [])
        self._again[name] = [row for row in again if row not in rows]
        self._rows[name] = max(self._rows.get(name, 0), rows[-1] + 1)
        self._write()

    def finish(self, final: Path, meta: Mapping[str, Any]) -> None:
        """Writes meta.json and gives the folder its name. Raises OSError."""
        self.__exit__()
        write_json(self.folder / META, meta, indent=None)
        (self.folder / PROGRESS).unlink()
        (self.folder / SAMPLES).unlink()
        fsync(self.folder)
        self.folder.rename(final)
        fsync(final.parent)

    def _write(self) -> None:
        progress = {"rows": self._rows, "again": self._again, "bad": self.bad}
        write_json(self.folder / PROGRESS, progress, indent=None)


def _batches(rows: Sequence[int], step: int) -> Iterator[list[int]]:
    for start in range(0, len(rows), step):
        yield list(rows[start : start + step])
