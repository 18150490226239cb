"""The files of samples whose features are extracted: digests of their content, and what is in them.

A file that is not there, or holds no image, is bad until someone changes it, and its reason is
given back. One that cannot be read now (no memory, too many open files, a failing disk) says
nothing of the sample: that is a MachineError.
"""

from __future__ import annotations

import hashlib
import io
import tokenize
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from tune_mm.data.features.store import Sample, text_digest
from tune_mm.data.store import failures
from tune_mm.data.store.threads import each

GOES_ON = "what is done is kept, and the same command resumes"


def digests(name: str, samples: Sequence[Sample]) -> tuple[list[str], dict[str, str]]:
    """Digest of each sample's content, and the samples whose files are not there, with the reason.

    name: of the data set, for the bar. Raises MachineError for a file that is there and cannot be
    read now.
    """

    def digest(number: int) -> tuple[str, str]:
        sample = samples[number]
        paths = [sample.image]
        if isinstance(sample.text, Path):
            paths.append(sample.text)
        total = hashlib.blake2b(digest_size=16)
        total.update(text_digest(sample).to_bytes(8, "big"))
        for path in paths:
            try:
                content = path.read_bytes()
            except (OSError, MemoryError) as error:
                failures.refuse(path, error, GOES_ON)
                reason = getattr(error, "strerror", None) or error
                return "unreadable", f"{path}: {reason}"
            total.update(hashlib.blake2b(content, digest_size=16).digest())
        return total.hexdigest(), ""

    found = each(digest, len(samples), f"{name}: reading files")
    missing: dict[str, str] = {}
    for sample, (_digest, why) in zip(samples, found, strict=True):
        if why:
            missing[sample.id] = why
    return [own for own, _why in found], missing


def _bytes(path: Path) -> io.BytesIO:
    """A file read as a whole: what a decoder then raises is about its bytes, not the disk. Raises
    MachineError.
    """
    try:
        return io.BytesIO(path.read_bytes())
    except (OSError, MemoryError) as error:
        raise failures.failed(path, error, GOES_ON) from error


def picture(path: Path) -> Image.Image | str:
    """The RGB image in a file, or why it holds none. Raises MachineError when it cannot be read
    now.
    """
    content = _bytes(path)
    try:
        with Image.open(content) as image:
            return image.convert("RGB")
    except failures.OF_IMAGES as error:
        failures.refuse(path, error, GOES_ON)
        reason = str(error)
        if isinstance(error, UnidentifiedImageError):
            reason = "of no known kind"
        return f"{path}: is not a readable image: {reason}"


def token_numbers(path: Path) -> NDArray[np.int64] | str:
    """The token numbers [n] in a .npy file, or why it holds none. Raises MachineError when it
    cannot be read now.
    """
    content = _bytes(path)
    try:
        raw = np.lib.format.read_array(content, allow_pickle=False)
        if raw.dtype.kind not in "iu":
            raise ValueError(f"must hold integers, got {raw.dtype}")
        numbers: NDArray[np.int64] = raw.reshape(-1).astype(np.int64)
    except (ValueError, tokenize.TokenError) as error:
        return str(error)
    except MemoryError as error:
        raise failures.failed(path, error, GOES_ON) from error
    return numbers
