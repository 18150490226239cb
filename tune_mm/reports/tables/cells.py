"""A table as data: what `tables.build` makes and what is written as Markdown, CSV, LaTeX or HTML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from tune_mm.reports.tables.layout import Head
from tune_mm.stats import Comparison, Spread


@dataclass(frozen=True)
class TableCell:
    """A cell: our value beside the published one."""

    # None where no run has measured it.
    ours: Spread | None = None
    # The paper's value.
    published: float | None = None
    # Whether it is the best of its column.
    best: bool = False
    # Whether it is the second best of its column.
    second: bool = False
    # With the reference row.
    comparison: Comparison | None = None
    # Why ours is missing.
    why: str = ""
    # The commands that make the runs.
    fill: tuple[str, ...] = ()
    # False where the paper has a dash.
    applies: bool = True


@dataclass(frozen=True)
class TableLine:
    """A row: a cell per column."""

    label: str
    cells: tuple[TableCell, ...]


@dataclass(frozen=True)
class Table:
    """A table of cells, with what to say below it."""

    name: str
    paper: str
    source: str
    title: str
    caption: str
    columns: tuple[Head, ...]
    rows: tuple[TableLine, ...]
    # The row that others are compared with.
    reference: str | None
    # The commands that fill what is missing.
    missing: tuple[str, ...]
    # Ids of the runs of the searches that were used.
    parents: tuple[str, ...]

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Headings over neighbouring columns ("": none), with how many columns each spans."""
        spans: list[tuple[str, int]] = []
        for name, columns in groupby(self.columns, key=lambda head: head.group):
            spans.append((name, len(list(columns))))
        return spans

    @property
    def counts(self) -> set[int]:
        """How many seeds lie behind the cells' means."""
        found = set()
        for row in self.rows:
            for cell in row.cells:
                if cell.ours is not None:
                    found.add(cell.ours.n)
        return found

    @property
    def compared(self) -> tuple[TableLine, ...]:
        """The rows with a cell that is compared with the reference row."""
        return tuple(
            row for row in self.rows if any(cell.comparison is not None for cell in row.cells)
        )

    def absent(self) -> Iterator[tuple[str, str, tuple[str, ...]]]:
        """What is missing: rows with their columns, the reason, and the commands; alike ones
        together.
        """
        found: dict[tuple[str, tuple[str, ...]], dict[str, list[str]]] = {}
        for row in self.rows:
            for head, cell in zip(self.columns, row.cells, strict=True):
                if cell.applies and cell.ours is None:
                    found.setdefault((cell.why, cell.fill), {}).setdefault(row.label, []).append(
                        head.title
                    )
        for (why, fill), rows in found.items():
            yield (
                "; ".join(self._where(label, columns) for label, columns in rows.items()),
                why,
                fill,
            )

    def _where(self, label: str, columns: list[str]) -> str:
        cells = next(row.cells for row in self.rows if row.label == label)
        whole = len(columns) == sum(cell.applies for cell in cells)
        if whole:
            return label
        return f"{label} ({', '.join(columns)})"
