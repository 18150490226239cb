"""The cache: what can be made anew, kept on this machine for all processes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

ENV_CACHE = "TUNE_MM_CACHE"


def cache_folder() -> Path:
    """TUNE_MM_CACHE, else ~/.cache/tune_mm."""
    named = os.environ.get(ENV_CACHE)
    return (Path(named).expanduser() if named else Path.home() / ".cache" / "tune_mm").absolute()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Within it no other process is in a block for the same `path`; a lock ends with its process. Raises OSError."""
    with FileLock(path):
        yield
