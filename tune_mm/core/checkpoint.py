"""Tensors and plain containers in a file: written whole or not at all, and read without executing
anything.
"""

from __future__ import annotations

import os
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch


def save(state: Any, path: Path) -> None:
    """Write `state` to `path`; whoever reads it sees the old file or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the new name with nothing in it
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def load(path: Path) -> Any:
    """What `save` wrote, on the CPU. Raises OSError, or ValueError for a file that is damaged or no
    such state.

    The file is a zip archive with a checksum (CRC-32) of each part. torch does not compare them, so
    that a flipped bit would pass as a weight.
    """
    damaged = _damaged(path)
    if damaged:
        raise ValueError(f"{path}: damaged: {damaged}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        LookupError,
        ValueError,
        AttributeError,
        TypeError,
    ) as error:
        raise ValueError(f"{path}: no checkpoint of tensors and plain values") from error


def size(state: Any) -> int:
    """Bytes of the tensors in nested containers: about what `save` writes."""
    if isinstance(state, torch.Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(size, state.values()))
    if isinstance(state, (list, tuple)):
        return sum(map(size, state))
    return 0


def _damaged(path: Path) -> str:
    """What is wrong with the archive; "" for a whole one, and for a file that is none."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                return "it is truncated"
            return ""
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        return str(error)
    if part:
        return f"'{part}' does not have its checksum"
    return ""
