"""The files of samples whose features are extracted: digests of their content, and what is in them.

A file that is not there, or holds no image, is bad until someone changes it, and its reason is given back. One that
cannot be read now (no memory, too many open files, a failing disk) says nothing of the sample: that is a DataError.
"""

from __future__ import annotations

import errno
import hashlib
import io
import tokenize
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tune_mm.data._arrays import DataError
from tune_mm.data._features import Sample, text_digest
from tune_mm.data._frames import UNREADABLE
from tune_mm.data._threads import each

GOES_ON = "what is done is kept, and the same command goes on"
# Of a file that is as good as not there.
GONE = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG}


def digests(name: str, samples: Sequence[Sample]) -> tuple[list[str], dict[str, str]]:
    """Digest of each sample's content, and the samples whose files are not there, with the reason.

    name: of the data set, for the bar. Raises DataError for a file that is there and cannot be read now.
    """

    def digest(number: int) -> tuple[str, str]:
        sample, total = samples[number], hashlib.blake2b(digest_size=16)
        total.update(text_digest(sample).to_bytes(8, "big"))
        for path in (sample.image, *([sample.text] if isinstance(sample.text, Path) else [])):
            try:
                total.update(hashlib.blake2b(path.read_bytes(), digest_size=16).digest())
            except (OSError, MemoryError) as error:
                if isinstance(error, OSError) and error.errno in GONE:
                    return "unreadable", f"{path}: {error.strerror}"
                raise _stopped(path, error) from error
        return total.hexdigest(), ""

    found = each(digest, len(samples), f"{name}: reading files")
    return [d for d, _ in found], {s.id: why for s, (_, why) in zip(samples, found, strict=True) if why}


def _stopped(path: Path, error: OSError | MemoryError) -> DataError:
    """The error for a file that cannot be read now."""
    reason = "too little memory" if isinstance(error, MemoryError) else error.strerror or error
    return DataError(f"{path}: cannot be read now: {reason}; {GOES_ON}")


def _bytes(path: Path) -> io.BytesIO:
    """A file read as a whole: what a decoder then raises is about its bytes, not about the disk. Raises DataError."""
    try:
        return io.BytesIO(path.read_bytes())
    except (OSError, MemoryError) as error:
        raise _stopped(path, error) from error


def picture(path: Path) -> Image.Image | str:
    """The RGB image in a file, or why it holds none. Raises DataError when it cannot be read now."""
    content = _bytes(path)
    try:
        with Image.open(content) as image:
            return image.convert("RGB")
    except UNREADABLE as error:
        # Pillow's own errors have no number: one that has is the system's, as when a decoder cannot be loaded.
        if isinstance(error, OSError) and error.errno is not None:
            raise _stopped(path, error) from error
        reason = "of no known kind" if isinstance(error, UnidentifiedImageError) else error
        return f"{path}: is not a readable image: {reason}"
    except MemoryError as error:
        raise _stopped(path, error) from error


def token_numbers(path: Path) -> NDArray[np.int64] | str:
    """The token numbers [n] in a .npy file, or why it holds none. Raises DataError when it cannot be read now."""
    content = _bytes(path)
    try:
        raw = np.lib.format.read_array(content, allow_pickle=False)
        if raw.dtype.kind not in "iu":
            raise ValueError(f"must hold integers, got {raw.dtype}")
        numbers: NDArray[np.int64] = raw.reshape(-1).astype(np.int64)
    except (ValueError, tokenize.TokenError) as error:
        return str(error)
    except MemoryError as error:
        raise _stopped(path, error) from error
    return numbers
