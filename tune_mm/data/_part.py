"""A folder of .npy files in the making that outlives the process: filled in stages, batch by batch, gone on with later.

`progress.json` says how many rows of which stage are on disk. It is written after them, so it never says too much.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from tune_mm._disk import fsync
from tune_mm.data._cache import META

PROGRESS = "progress.json"

# Dtype and shape of each file.
Arrays = Mapping[str, tuple[Any, tuple[int, ...]]]


class Part:
    """The folder `folder` with the files of `arrays`: begun anew unless an earlier process left it with such files.

    bad: what could not be read, by name, with the reason; kept with the progress. Raises OSError, also when the disk
    has too little room for all that is missing.
    """

    def __init__(self, folder: Path, arrays: Arrays, bad: Mapping[str, str]) -> None:
        self.folder, self._arrays = folder, arrays
        self._rows: dict[str, int] = {}
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
            self._rows, bad = dict(found["rows"]), dict(found["bad"])
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return False
        self.bad = {**bad, **self.bad}
        return True

    def _begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        sizes = {n: np.dtype(d).itemsize * int(np.prod(s, dtype=np.int64)) for n, (d, s) in self._arrays.items()}
        free = shutil.disk_usage(self.folder).free
        if sum(sizes.values()) > free:
            needed = f"{sum(sizes.values()) / 2**30:.1f} GiB are needed, {free / 2**30:.1f} GiB are free"
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
        self._write()

    def done(self, stage: int) -> int:
        """Rows of a stage that are on disk."""
        return self._rows.get(str(stage), 0)

    def put(self, name: str, row: int, values: NDArray[Any]) -> None:
        """`values` [B, ...] from row `row` on, rows counted over all axes but those of one sample. Raises OSError."""
        data = np.ascontiguousarray(values, self._arrays[name][0])
        file, start = self._files[name]
        place = start + row * data[:1].nbytes
        left = data.reshape(-1).view(np.uint8).data
        while left:
            written = os.pwrite(file.fileno(), left, place)
            left, place = left[written:], place + written

    def commit(self, stage: int, rows: int) -> None:
        """Puts on disk all that was written, then that `rows` rows of `stage` are done. Raises OSError."""
        for file, _place in self._files.values():
            os.fsync(file.fileno())
        self._rows[str(stage)] = rows
        self._write()

    def finish(self, final: Path, meta: Mapping[str, Any]) -> None:
        """Writes meta.json and gives the folder its name. Raises OSError."""
        self.__exit__()
        _write(self.folder / META, meta)
        (self.folder / PROGRESS).unlink()
        fsync(self.folder)
        self.folder.rename(final)
        fsync(final.parent)

    def _write(self) -> None:
        _write(self.folder / PROGRESS, {"rows": self._rows, "bad": self.bad})


def _write(path: Path, value: Any) -> None:
    """JSON, on disk under its name as a whole or not at all."""
    part = path.with_name(f".{path.name}")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
