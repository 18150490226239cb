"""What is seen during a search: one live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

RECENT = 6


@dataclass
class TrialRow:
    """One trial as shown."""

    number: int
    values: Mapping[str, Any]
    state: str = "running"
    epoch: int = 0
    value: float | None = None
    note: str = ""


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"


def setting(value: Any) -> str:
    """A searched value, short."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def settings(values: Mapping[str, Any]) -> str:
    """`lr=0.001 rho=1.3`: the last part of each key, in full where two would look the same; whole
    sections left out.
    """
    values = {k: v for k, v in values.items() if not isinstance(v, Mapping)}
    short = [k.rpartition(".")[2] for k in values]
    shown = {k: s if short.count(s) == 1 else k for k, s in zip(values, short, strict=True)}
    return " ".join(f"{shown[k]}={setting(v)}" for k, v in values.items())


def span(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 05 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


class Board:
    """The trials of the current stage. `slots()` trials run at once (for the time left)."""

    def __init__(self, console: Console, objective: str, mode: str, epochs: int) -> None:
        self.console, self.objective, self.mode, self.epochs = console, objective, mode, epochs
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
        self.stage, self.done, self.total, self._best = stage, done, total, best
        self.epochs = epochs or self.epochs
        self.rows: dict[int, TrialRow] = {}
        self._started, self._began_with, self._slots = time.monotonic(), done, 1
        if total:
            self.say(
                f"{stage}: {total - done} of {total} trials to run"
                if done
                else f"{stage}: {total} trials"
            )

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(Text(text))

    # ---- trials

    def started(self, trial: int, values: Mapping[str, Any], epoch: int) -> None:
        """A trial runs, from `epoch` on."""
        self.rows[trial] = TrialRow(trial, values, epoch=epoch)
        self._slots = max(self._slots, sum(r.state == "running" for r in self.rows.values()))

    def progress(self, trial: int, epoch: int, value: float) -> None:
        """Its best objective so far."""
        row = self.rows[trial]
        row.epoch, row.value = epoch, value
        best = self._best.value if self._best is not None else None
        if not math.isnan(value) and (best is None or self.better(value, best)):
            self._best = row

    def ended(self, trial: int, state: str, note: str = "") -> None:
        """completed, pruned, failed or diverged."""
        row = self.rows[trial]
        row.state, row.note = state, note
        self.done += 1
        if self._live is None:
            self.say(self._line(row))
        elif note:
            self.say(f"{self.stage} {row.number} {state}: {note}")

    def better(self, a: float, b: float) -> bool:
        return a > b if self.mode == "max" else a < b

    # ---- what is shown

    def left(self) -> float | None:
        """Seconds to the end of the stage at the pace so far."""
        ended = self.done - self._began_with
        if ended <= 0:
            return None
        running = sum(r.epoch / self.epochs for r in self.rows.values() if r.state == "running")
        pace = (time.monotonic() - self._started) / (ended + running)
        return max(0.0, (self.total - self.done - running) * pace)

    def _head(self) -> str:
        parts = [f"{self.stage} {self.done}/{self.total}"]
        if self._best is not None:
            parts.append(
                f"best {self.objective} {number(self._best.value)} (trial {self._best.number})"
            )
        left = self.left()
        if left is not None and self.done < self.total:
            parts.append(f"about {span(left)} left")
        return "   ".join(parts)

    def _line(self, row: TrialRow) -> str:
        what = f"{self.stage} {row.number:>3} {row.state:<9} epoch {row.epoch:>3}  {self.objective} {number(row.value)}"
        tail = f"  {row.note}" if row.note else ""
        return f"[{self.done}/{self.total}] {what}  {settings(row.values)}{tail}   | {self._head().partition('   ')[2]}"

    def _render(self) -> Group:
        table = Table(box=None, pad_edge=False)
        for name in ("trial", "state", "epoch", self.objective, "settings"):
            table.add_column(
                name,
                justify="left" if name in ("state", "settings") else "right",
                overflow="ellipsis",
            )
        running = [r for r in self.rows.values() if r.state == "running"]
        ended = [r for r in self.rows.values() if r.state != "running"][-RECENT:]
        for row in [*running, *reversed(ended)]:
            style = {"running": "bold", "failed": "red", "diverged": "yellow"}.get(row.state, "dim")
            cells = (
                str(row.number),
                row.state,
                f"{row.epoch}/{self.epochs}",
                number(row.value),
                settings(row.values),
            )
            table.add_row(*cells, style="green" if row is self._best else style)
        return Group(Text(self._head(), style="bold"), table)
