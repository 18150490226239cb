"""Work on many files at once, on threads: what decodes and transforms them releases the
interpreter's lock.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

T = TypeVar("T")

MOST_THREADS = 32
# Small enough that all threads stay busy to the end, large enough that a million files are no
# million futures.
CHUNK = 16


def each(work: Callable[[int], T], count: int, title: str) -> list[T]:
    """work(0), ..., work(count - 1), in this order. Raises what `work` raises, the rest is not
    begun then.

    title: stands before the bar that is shown on a terminal when it takes more than a second. A
    single piece of work is done here, without a thread or a bar.
    """
    if count == 1:
        return [work(0)]
    threads = min(_processors(), MOST_THREADS)
    step = max(1, min(CHUNK, count // (8 * threads)))

    def chunk(start: int) -> list[T]:
        end = min(start + step, count)
        return [work(number) for number in range(start, end)]

    out: list[T] = []
    bar = _Bar(title, count)
    pool = ThreadPoolExecutor(threads, thread_name_prefix="store")
    try:
        for part in pool.map(chunk, range(0, count, step)):
            out += part
            bar.show(len(out))
    finally:
        bar.close()
        pool.shutdown(cancel_futures=True)
    return out


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Bar:
    """A progress bar on stderr that appears after a second, on a terminal only, and goes away at
    the end.
    """

    def __init__(self, title: str, count: int) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._progress.add_task(title, total=count)
        self._possible = self._progress.console.is_terminal
        self._due = time.monotonic() + 1
        self._shown = False

    def show(self, done: int) -> None:
        self._progress.update(self._task, completed=done)
        if self._possible and not self._shown and time.monotonic() > self._due:
            self._progress.start()
            self._shown = True

    def close(self) -> None:
        if self._shown:
            self._progress.stop()
