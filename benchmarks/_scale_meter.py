"""Where a process spends its CPU time, and what it writes to a database."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, event


class Meter:
    """CPU seconds of the calling thread by (occasion, part); what is nested counts for the inner
    part alone.
    """

    def __init__(self) -> None:
        self.seconds: dict[tuple[str, str], float] = defaultdict(float)
        self.occasion = ""
        self._parts: list[str] = []
        self._mark = 0.0

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what is done within as `name`."""
        self._settle()
        self._parts.append(name)
        try:
            yield
        finally:
            self._settle()
            self._parts.pop()

    def watch(self, name: str, target: Any, *methods: str) -> None:
        """Count these methods of an object as `name` from now on."""
        for method in methods:
            setattr(target, method, self._counted(name, getattr(target, method)))

    def _counted(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return call(*args, **kwargs)

        return counted

    def _settle(self) -> None:
        now = time.thread_time()
        if self._parts:
            self.seconds[self.occasion, self._parts[-1]] += now - self._mark
        self._mark = now


class Writes:
    """Statements that change a database, and the transactions that had any, of all engines of this
    process.
    """

    def __init__(self) -> None:
        self.statements = self.transactions = 0
        event.listen(Engine, "after_cursor_execute", self._executed)
        event.listen(Engine, "commit", self._committed)

    def _executed(self, connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.lstrip()[:6].upper() in ("INSERT", "UPDATE", "DELETE"):
            self.statements += 1
            connection.info["wrote"] = True

    def _committed(self, connection: Any) -> None:
        self.transactions += bool(connection.info.pop("wrote", False))

    def close(self) -> None:
        """Count no more."""
        event.remove(Engine, "after_cursor_execute", self._executed)
        event.remove(Engine, "commit", self._committed)
