"""What is seen during a search: one live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

# Ended trials in the live table.
RECENT = 6
# Of rows in the live table, by state.
STYLES = {"running": "bold", "failed": "red", "diverged": "yellow"}


@dataclass
class TrialRow:
    """One trial as shown."""

    number: int
    # The searched settings.
    values: Mapping[str, Any]
    state: str = "running"
    epoch: int = 0
    # Its best objective so far.
    value: float | None = None
    # Why it failed, say.
    note: str = ""


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    if value is None or math.isnan(value):
        return "-"
    return f"{value:.4f}"


def setting(value: Any) -> str:
    """A searched value, short, as YAML has it."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.3g}"
    return str(value)


def settings(values: Mapping[str, Any]) -> str:
    """`lr=0.001 rho=1.3`: the last part of each key, in full where two would look the same.

    Whole sections are left out.
    """
    single = {key: value for key, value in values.items() if not isinstance(value, Mapping)}
    last_parts = Counter(map(_last_part, single))
    parts = []
    for key, value in single.items():
        last = _last_part(key)
        name = last if last_parts[last] == 1 else key
        parts.append(f"{name}={setting(value)}")
    return " ".join(parts)


def _last_part(key: str) -> str:
    return key.rpartition(".")[2]


def span(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min"


class Board:
    """The trials of the current stage."""

    def __init__(self, console: Console, objective: str, mode: str, epochs: int) -> None:
        self.console = console
        self.objective = objective
        self.mode = mode
        self.epochs = epochs
        self._live: Live | None = None
        self.begin("search", 0, 0)

    # ---- life

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(
                get_renderable=self._render,
                console=self.console,
                refresh_per_second=4,
                transient=True,
            )
            self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)
            self._live = None

    def begin(
        self,
        stage: str,
        done: int,
        total: int,
        best: TrialRow | None = None,
        epochs: int | None = None,
    ) -> None:
        """A stage starts with `done` of its `total` trials there already."""
        self.stage = stage
        self.done = done
        self.total = total
        self.epochs = epochs or self.epochs
        self.rows: dict[int, TrialRow] = {}
        self._best = best
        self._started = time.monotonic()
        self._began_with = done
        if not total:
            return
        if done:
            self.say(f"{stage}: {total - done} of {total} trials to run")
        else:
            self.say(f"{stage}: {total} trials")

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(Text(text))

    # ---- trials

    def started(self, trial: int, values: Mapping[str, Any], epoch: int) -> None:
        """A trial runs, from `epoch` on."""
        self.rows[trial] = TrialRow(trial, values, epoch=epoch)

    def progress(self, trial: int, epoch: int, value: float) -> None:
        """Its best objective so far."""
        row = self.rows[trial]
        row.epoch = epoch
        row.value = value
        if math.isnan(value):
            return
        best = None if self._best is None else self._best.value
        if best is None or self.better(value, best):
            self._best = row

    def ended(self, trial: int, state: str, note: str = "") -> None:
        """completed, pruned, failed or diverged."""
        row = self.rows[trial]
        row.state = state
        row.note = note
        self.done += 1
        if self._live is None:
            self.say(self._line(row))
        elif note:
            self.say(f"{self.stage} {row.number} {state}: {note}")

    def better(self, a: float, b: float) -> bool:
        if self.mode == "max":
            return a > b
        return a < b

    # ---- what is shown

    def left(self) -> float | None:
        """Seconds to the end of the stage at the pace so far."""
        ended = self.done - self._began_with
        if ended <= 0:
            return None
        half_done = sum(row.epoch for row in self._running()) / self.epochs
        pace = (time.monotonic() - self._started) / (ended + half_done)
        return max(0.0, (self.total - self.done - half_done) * pace)

    def _running(self) -> list[TrialRow]:
        found = []
        for row in self.rows.values():
            if row.state == "running":
                found.append(row)
        return found

    def _head(self) -> str:
        return "   ".join([f"{self.stage} {self.done}/{self.total}", *self._outlook()])

    def _outlook(self) -> Iterator[str]:
        """The best so far, and the time left."""
        if self._best is not None:
            value = number(self._best.value)
            yield f"best {self.objective} {value} (trial {self._best.number})"
        left = self.left()
        if left is not None and self.done < self.total:
            yield f"about {span(left)} left"

    def _line(self, row: TrialRow) -> str:
        parts = [
            f"[{self.done}/{self.total}] {self.stage} {row.number:>3} {row.state:<9} "
            f"epoch {row.epoch:>3}",
            f"{self.objective} {number(row.value)}",
            settings(row.values),
        ]
        if row.note:
            parts.append(row.note)
        return "  ".join(parts) + "   | " + "   ".join(self._outlook())

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        table.add_column("trial", justify="right", overflow="ellipsis")
        table.add_column("state", overflow="ellipsis")
        table.add_column("epoch", justify="right", overflow="ellipsis")
        table.add_column(self.objective, justify="right", overflow="ellipsis")
        table.add_column("settings", overflow="ellipsis")
        ended = [row for row in self.rows.values() if row.state != "running"]
        latest = ended[-RECENT:]
        for row in [*self._running(), *reversed(latest)]:
            table.add_row(
                str(row.number),
                row.state,
                f"{row.epoch}/{self.epochs}",
                number(row.value),
                settings(row.values),
                style="green" if row is self._best else STYLES.get(row.state, "dim"),
            )
        return Group(Text(self._head(), style="bold"), table)
