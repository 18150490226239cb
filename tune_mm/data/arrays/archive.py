"""Archives of arrays (.npz) from anywhere: nothing in them is run, and nothing is written or read
outside of them.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_mm.data.arrays.checks import DataError

GIB = 2**30


def read(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a file, by name. Object arrays are refused, as they are pickles. Raises
    DataError.
    """
    try:
        _check(path)
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    except DataError:
        raise
    except Exception as error:  # damaged archives and headers raise nearly anything
        raise DataError(f"{path}: is not a readable .npz file without pickles: {error}") from error


def _check(path: Path) -> None:
    """Raises DataError for a single array, for names that lead elsewhere and for more than memory
    can hold.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            single = file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX
        if single:
            raise DataError(f"{path}: must be an .npz archive, got a single array")
        raise ValueError("it is no zip archive")
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    for name in (m.filename for m in members):
        if (
            name.startswith(("/", "\\"))
            or ":" in name
            or ".." in PurePosixPath(name.replace("\\", "/")).parts
        ):
            raise DataError(f"{path}: must hold names of arrays, got the path '{name}'")
    size = sum(m.file_size for m in members)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise DataError(
            f"{path}: unpacks to {size / GIB:.1f} GiB, and this machine has {memory / GIB:.1f} of memory"
        )
