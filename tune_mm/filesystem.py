"""Files that outlive a process: the cache folder, locks between processes, and writes that are
whole or not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

ENV_CACHE = "TUNE_MM_CACHE"


def cache_folder() -> Path:
    """TUNE_MM_CACHE, else ~/.cache/tune_mm."""
    named = os.environ.get(ENV_CACHE)
    if named:
        return Path(named).expanduser().absolute()
    return Path.home().absolute() / ".cache" / "tune_mm"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`. The system releases it when the process ends. Raises OSError."""
    with FileLock(path):
        yield


def fsync(path: Path) -> None:
    """Wait until the disk has a file, or the names in a folder. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, value: Any, indent: int | None = 1) -> None:
    """Write `value` as JSON, durably: a reader sees the old file or the whole new one. Raises
    OSError.
    """
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(json.dumps(value, indent=indent) + "\n")
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    fsync(path.parent)


@contextmanager
def try_locked(path: Path) -> Iterator[bool]:
    """Hold the lock file `path` unless another process does; yields whether it is held. Raises
    OSError.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()
