"""Files of one array (.npy) that are written in any order, not mapped: a full disk is then an error
that can be told, where a mapped page would end the process.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import DTypeLike, NDArray

GIB = 2**30


def size_of(dtype: DTypeLike, shape: tuple[int, ...]) -> int:
    """Bytes of the values of an array."""
    count = int(np.prod(shape, dtype=np.int64))
    return count * np.dtype(dtype).itemsize


def require_room(folder: Path, size: int) -> None:
    """Raises OSError when the disk of `folder` has too little room for `size` bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        message = f"{size / GIB:.1f} GiB are needed, {free / GIB:.1f} GiB are free"
        raise OSError(errno.ENOSPC, message)


def create(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> BinaryIO:
    """A new file of zeros, open where its values start. Raises OSError."""
    file = path.open("wb")
    header = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    os.ftruncate(file.fileno(), file.tell() + size_of(dtype, shape))
    return file


def reopen(path: Path) -> BinaryIO:
    """A file that is there, open for writing where its values start. Raises OSError."""
    file = path.open("r+b")
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    return file


def write_at(file: BinaryIO, place: int, values: NDArray[Any]) -> None:
    """The bytes of a contiguous array at byte `place` of the file. Raises OSError."""
    data = values.reshape(-1).view(np.uint8).data
    while data:
        written = os.pwrite(file.fileno(), data, place)
        data = data[written:]
        place += written
