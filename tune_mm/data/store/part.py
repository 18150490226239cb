"""A folder of .npy files in the making that outlives its process: filled in batches, resumable."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from tune_mm.data.store.cache import META
from tune_mm.filesystem import fsync, write_json

PROGRESS = "progress.json"
SAMPLES = "samples.json"

# Dtype and shape of each file.
Arrays = Mapping[str, tuple[Any, tuple[int, ...]]]


@dataclass(frozen=True)
class Sources:
    """What rows are made of. kind: digest of all but the samples' content; ids and digests: the
    sample of each row, and that of its content.
    """

    kind: str
    ids: Sequence[str]
    digests: Sequence[str]

    def changed(self, folder: Path) -> list[int]:
        """The rows of the part in `folder` that are of other content. Raises ValueError when it is
        of another kind.
        """
        try:
            left = json.loads((folder / SAMPLES).read_bytes())
            if left["kind"] == self.kind:
                pairs = zip(left["digests"], self.digests, strict=True)
                return [row for row, (old, new) in enumerate(pairs) if old != new]
        except (OSError, KeyError, TypeError) as error:
            raise ValueError(f"{folder}: no such list of samples") from error
        raise ValueError(f"{folder}: is of another kind")

    def write(self, folder: Path) -> None:
        """Raises OSError."""
        write_json(
            folder / SAMPLES, {"kind": self.kind, "digests": list(self.digests)}, indent=None
        )


def place_of(final: Path) -> Path:
    """Where the part lies that becomes the folder `final`."""
    return final.with_name(f".{final.name}.part")


def lock_of(final: Path) -> FileLock:
    """Held by who makes `final`; not waited for."""
    return FileLock(final.with_name(f"{final.name}.lock"), blocking=False)


def adopt(final: Path, sources: Sources) -> None:
    """Makes another part that of `final`, where there is none: one of the same kind, with less than
    half of its rows of other content, at which nobody works. The lock of `final` is held. Raises
    OSError.
    """
    others = [] if place_of(final).exists() else sorted(final.parent.glob(".*.part"))
    for part in others:
        with suppress(Timeout, ValueError), lock_of(part.with_name(part.name[1 : -len(".part")])):
            if 2 * len(sources.changed(part)) < len(sources.digests):
                part.rename(place_of(final))
                return


class Part:
    """The folder `folder` with the files of `arrays`: begun anew unless an earlier process left it
    with such files.

    bad: what could not be read, by sample, with the reason; kept with the progress. Raises OSError,
    also when the disk has too little room for all that is missing.
    """

    def __init__(
        self, folder: Path, arrays: Arrays, sources: Sources, bad: Mapping[str, str]
    ) -> None:
        self.folder, self._arrays, self._sources = folder, arrays, sources
        self._rows: dict[str, int] = {}
        self._again: dict[str, list[int]] = {}
        self.bad: dict[str, str] = dict(bad)
        self._files: dict[str, tuple[BinaryIO, int]] = {}
        if not self._found():
            self._begin()

    def __enter__(self) -> Part:
        for name in self._arrays:
            file = (self.folder / name).open("r+b")
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            self._files[name] = (file, file.tell())
        return self

    def __exit__(self, *_: object) -> None:
        for file, _place in self._files.values():
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
            rows, again, bad = dict(found["rows"]), dict(found["again"]), dict(found["bad"])
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return False
        stale = {self._sources.ids[row] for row in changed}
        kept = {name: why for name, why in bad.items() if name not in stale}
        self._rows, self.bad = rows, {**kept, **self.bad}
        self._again = {
            s: sorted({*again.get(s, []), *(r for r in changed if r < n)}) for s, n in rows.items()
        }
        if changed:
            # In this order: a kill between the two leaves rows to be made again, not rows out of
            # date.
            self._write()
            self._sources.write(self.folder)
        return True

    def _begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        sizes = {
            n: np.dtype(d).itemsize * int(np.prod(s, dtype=np.int64))
            for n, (d, s) in self._arrays.items()
        }
        free = shutil.disk_usage(self.folder).free
        if sum(sizes.values()) > free:
            needed = (
                f"{sum(sizes.values()) / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free"
            )
            self.folder.rmdir()
            raise OSError(errno.ENOSPC, needed)
        for name, (dtype, shape) in self._arrays.items():
            with (self.folder / name).open("wb") as file:
                header = {
                    "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                    "fortran_order": False,
                    "shape": shape,
                }
                np.lib.format.write_array_header_1_0(file, header)
                file.flush()
                os.ftruncate(file.fileno(), file.tell() + sizes[name])
        self._sources.write(self.folder)
        self._write()

    def left(self, stage: int, size: int, step: int) -> list[list[int]]:
        """The rows of a stage of `size` rows that are to be made, in batches of at most `step`."""
        again, done = self._again.get(str(stage), []), self._rows.get(str(stage), 0)
        batches = [again[start : start + step] for start in range(0, len(again), step)]
        return batches + [
            list(range(start, min(start + step, size))) for start in range(done, size, step)
        ]

    def put(self, name: str, rows: Sequence[int], values: NDArray[Any]) -> None:
        """`values` [B, ...] at the rows, counted over all axes but those of one sample. Raises
        OSError.
        """
        data = (
            np.ascontiguousarray(values, self._arrays[name][0])
            .reshape(len(rows), -1)
            .view(np.uint8)
        )
        file, start = self._files[name]
        for row, own in zip(rows, data, strict=True):
            left, place = own.data, start + row * own.nbytes
            while left:
                written = os.pwrite(file.fileno(), left, place)
                left, place = left[written:], place + written

    def commit(self, stage: int, rows: Sequence[int]) -> None:
        """Puts on disk all that was written, then that a batch of `left` is done. Raises OSError."""
        for file, _place in self._files.values():
            os.fsync(file.fileno())
        name = str(stage)
        self._again[name] = [row for row in self._again.get(name, []) if row not in rows]
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
        write_json(
            self.folder / PROGRESS,
            {"rows": self._rows, "again": self._again, "bad": self.bad},
            indent=None,
        )
