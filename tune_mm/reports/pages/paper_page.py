"""One HTML page about one paper: its tables and figures as our runs give them, beside the published
values.

The page needs no server and no network; figures are SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from tune_mm.errors import ConfigError, nearest
from tune_mm.reports.figures.canvas import Figure, styled
from tune_mm.reports.pages.render import drawing, page
from tune_mm.reports.spec.wording import PAPERS
from tune_mm.reports.tables.cells import Table, TableCell, TableLine
from tune_mm.reports.tables.layout import Head
from tune_mm.reports.tables.render import compared, number, published


@dataclass(frozen=True)
class ShownCell:
    """A cell as it is shown."""

    text: str
    # best, second, missing or "".
    mark: str = ""
    # Why it is missing.
    why: str = ""
    # The paper's value, in brackets.
    published: str = ""


@dataclass(frozen=True)
class ShownTable:
    """A table as it is shown."""

    table: Table
    rows: Sequence[tuple[str, Sequence[ShownCell]]]
    # To the reference, by row; () where nothing is compared.
    differences: Sequence[tuple[str, Sequence[ShownCell]]]
    # What is missing, why, and the commands that make it.
    absent: Sequence[tuple[str, str, Sequence[str]]]

    @property
    def name(self) -> str:
        """Of its file, and of the place on the page."""
        return self.table.name

    @property
    def title(self) -> str:
        """The report's."""
        return self.table.title


@dataclass(frozen=True)
class ShownFigure:
    """A figure as it is shown."""

    name: str
    title: str
    caption: str
    # SVG; None where there are no runs to draw.
    drawing: Markup | None
    # The commands that make what is missing.
    missing: Sequence[str]


def paper_page(
    paper: str, tables: Sequence[Table], figures: Sequence[Figure], store: str = ""
) -> str:
    """The page of a paper ("dgl" or "cggm"). store: where the runs are, as it may be shown.

    What is missing is shown as missing, with the command that makes it. Raises ConfigError for
    another paper.
    """
    if paper not in PAPERS:
        raise ConfigError(
            f"paper: no '{paper}'{nearest(paper, PAPERS)}; available: {', '.join(PAPERS)}"
        )
    made = f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    if store:
        made += f" from {store}"
    heading = f"{PAPERS[paper]}: tables and figures from runs"
    return page(
        heading,
        "paper.html.j2",
        heading=heading,
        made=made,
        tables=[_shown_table(table) for table in tables],
        figures=[_shown_figure(figure) for figure in figures],
    )


# ---- tables


def _shown_table(table: Table) -> ShownTable:
    several_counts = len(table.counts) > 1
    rows = []
    differences = []
    for line in table.rows:
        cells = []
        for cell, head in zip(line.cells, table.columns, strict=True):
            cells.append(_shown_cell(cell, head, several_counts))
        rows.append((line.label, cells))
        if table.compared and line.label != table.reference:
            differences.append((line.label, _differences(line, table.columns)))
    return ShownTable(table, rows, differences, list(table.absent()))


def _shown_cell(cell: TableCell, head: Head, several_counts: bool) -> ShownCell:
    mark = ""
    if cell.ours is None:
        mark = "missing"
    elif cell.best:
        mark = "best"
    elif cell.second:
        mark = "second"
    text = number(cell, head, several_counts)
    return ShownCell(text, mark, cell.why or "", published(cell, head))


def _differences(line: TableLine, heads: Sequence[Head]) -> list[ShownCell]:
    cells = []
    for cell, head in zip(line.cells, heads, strict=True):
        cells.append(ShownCell(compared(cell.comparison, head)))
    return cells


# ---- figures


def _shown_figure(figure: Figure) -> ShownFigure:
    drawn = None
    if any(map(_has_data, figure.figure.axes)):
        with styled():
            drawn = drawing(figure.figure)
    # The first sentence of its caption is the report's title.
    title = figure.caption.partition(". ")[0]
    return ShownFigure(figure.name, title, figure.caption, drawn, figure.missing)


def _has_data(axes: Any) -> bool:
    """Whether runs are drawn in it; a line across the axes at a level is none."""
    if axes.collections:
        return True
    return any(line.get_transform() is axes.transData for line in axes.lines)
