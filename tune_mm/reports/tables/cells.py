"""A table as data: what `tables.build` makes and what is written as Markdown, CSV, LaTeX or HTML."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from tune_mm.reports.tables.layout import Head
from tune_mm.stats import Comparison, Spread


@dataclass(frozen=True)
class TableCell:
    """ours: None where no run has measured it; why: the reason, and fill: the commands that make
    the runs.

    published: the paper's value. comparison: with the reference row. applies: False where the paper
    has a dash.
    """

    ours: Spread | None = None
    published: float | None = None
    best: bool = False
    second: bool = False
    comparison: Comparison | None = None
    why: str = ""
    fill: tuple[str, ...] = ()
    applies: bool = True


@dataclass(frozen=True)
class TableLine:
    """A row: a cell per column."""

    label: str
    cells: tuple[TableCell, ...]


@dataclass(frozen=True)
class Table:
    """missing: the commands that fill what is missing; parents: ids of the runs of the searches
    that were used; reference: the row that others are compared with.
    """

    name: str
    paper: str
    source: str
    title: str
    caption: str
    columns: tuple[Head, ...]
    rows: tuple[TableLine, ...]
    reference: str | None
    missing: tuple[str, ...]
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
