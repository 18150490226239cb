"""Tensors and plain containers in a file: written whole or not at all, read without executing anything."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch


def save(state: Any, path: Path) -> None:
    """Write `state` to `path`; whoever reads it sees the old file or the new one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(state, new)
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


def load(path: Path) -> Any:
    """What `save` wrote, on the CPU. Raises OSError, or ValueError for a file that is no such state."""
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
