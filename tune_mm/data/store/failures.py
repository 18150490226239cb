"""Failures of the machine while a file is read: no memory, too many open files, a disk that fails.

What is wrong with a file is stored with what is made of it, as long as its content stays. A failure
of the machine says nothing of the file and may be gone next time: it is a `MachineError`, ends the
work and is never stored.
"""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

from PIL import Image

from tune_mm.data.arrays.checks import DataError

AGAIN = "run the same command again"
# Of a file that is as good as not there, until someone changes it.
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}

# What Pillow raises for files that are no images, are cut off or are too large to be honest.
UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    IndexError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)
# Whether the file is bad or the machine failed.
OF_IMAGES = (*UNREADABLE, MemoryError)


class MachineError(DataError):
    """A file that cannot be read now."""


def why(error: BaseException) -> str | None:
    """What failed of the machine; None where the file is bad, or not there.

    Libraries give what they find wrong with a file no error number (Pillow, h5py: tried); one that
    has a number is the system's. Pillow reports a decoder's lack of memory by its text alone.
    """
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return "too little memory"
    if isinstance(error, OSError) and error.errno and error.errno not in GONE:
        return os.strerror(error.errno)
    return None


def failed(path: Path, error: BaseException, advice: str = AGAIN) -> MachineError:
    """The error for a file that was there and cannot be read now."""
    reason = why(error) or getattr(error, "strerror", None) or error
    return MachineError(f"{path}: cannot be read now: {reason}; {advice}")


def refuse(path: Path, error: BaseException, advice: str = AGAIN) -> None:
    """Raises MachineError if the machine failed."""
    if why(error) is not None:
        raise failed(path, error, advice) from error
