"""A folder that one process has at a time; the system gives it back when the process ends, however
it ends.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import shutil
from pathlib import Path

FILE = "lock"
ATTEMPTS = 100  # at a folder that another process removes while it is being taken


class FolderTaken(Exception):
    """Another process has the folder."""


def take(folder: Path, *, exact: bool) -> tuple[Path, int]:
    """The folder that was taken, made if missing, and the descriptor that holds it until it is
    closed.

    exact: raises FolderTaken where another process has it; else one beside it is taken, `<folder>.2`.
    Raises OSError.
    """
    for number in itertools.count(1):
        if number == 1:
            candidate = folder
        else:
            candidate = folder.with_name(f"{folder.name}.{number}")
        held = _lock(candidate)
        if held is not None:
            return candidate, held
        if exact:
            break
    raise FolderTaken(str(folder))


def remove(folder: Path) -> None:
    """Remove a folder that is held; of the default layout (queue/<store>/<search>) also what is
    empty above it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    if folder.parent.parent.name == "queue":
        for parent in (folder.parent, folder.parent.parent):
            try:
                parent.rmdir()
            except OSError:  # another search's queue is there
                return


def _lock(folder: Path) -> int | None:
    for _ in range(ATTEMPTS):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:  # its owner has just removed it, or the folder above
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(descriptor), os.stat(folder / FILE)):
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:  # removed between the two calls
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise FileNotFoundError(f"{folder} is removed again and again")
