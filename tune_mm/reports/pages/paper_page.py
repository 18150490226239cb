"""One HTML page about one paper: its tables and figures as our runs give them, beside the published
values.

The page needs no server and no network; figures are SVG.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from tune_mm.errors import ConfigError, nearest
from tune_mm.reports.figures.canvas import Figure, styled
from tune_mm.reports.pages.html import Html, drawing, join, page, tag
from tune_mm.reports.spec.wording import PAPERS
from tune_mm.reports.tables.cells import Table, TableCell
from tune_mm.reports.tables.layout import Head
from tune_mm.reports.tables.render import compared, number, published


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
    parts = [(t.name, t.title, _table(t)) for t in tables] + [
        (f.name, _title(f), _figure(f)) for f in figures
    ]
    made = f"Made {datetime.now(UTC):%Y-%m-%d %H:%M} UTC" + (f" from {store}" if store else "")
    listed = [
        tag("li", tag("a", title, href=f"#{name}"), Html(" "), tag("code", name))
        for name, title, _ in parts
    ]
    if listed:
        contents = tag("ul", *listed)
    else:
        contents = tag("p", "No tables and no figures.")
    sections = []
    for name, title, body in parts:
        sections.append(tag("section", tag("h2", title), body, id=name))
    heading = f"{PAPERS[paper]}: tables and figures from runs"
    return page(heading, tag("h1", heading), tag("p", made, class_="soft"), contents, *sections)


# ---- tables


def _table(table: Table) -> Html:
    several = len(table.counts) > 1
    rows = [
        tag(
            "tr",
            tag("td", line.label),
            *(_cell(c, h, several) for c, h in zip(line.cells, table.columns, strict=True)),
        )
        for line in table.rows
    ]
    parts = [_grid(table, rows), tag("p", table.caption, class_="soft")]
    if table.compared:
        others = [line for line in table.rows if line.label != table.reference]
        rows = []
        for line in others:
            rows.append(
                tag(
                    "tr",
                    tag("td", line.label),
                    *(
                        tag("td", compared(c.comparison, h), class_="number")
                        for c, h in zip(line.cells, table.columns, strict=True)
                    ),
                )
            )
        parts.append(_folded(f"Differences to {table.reference}", [_grid(table, rows)]))
    absent = [
        tag("div", tag("p", f"{what}: {why}"), _commands(fill))
        for what, why, fill in table.absent()
    ]
    if absent:
        parts.append(_folded("What is missing, and what makes it", absent))
    return join(*parts)


def _grid(table: Table, rows: Iterable[Html]) -> Html:
    """A table with its headings; neighbouring columns of one group share one above theirs."""
    heads = []
    if any(name for name, _ in table.groups):
        spans = []
        for name, width in table.groups:
            spans.append(tag("th", name, colspan=str(width), class_="group"))
        heads.append(tag("tr", tag("th"), *spans))
    heads.append(
        tag("tr", tag("th"), *(tag("th", head.label, class_="number") for head in table.columns))
    )
    return tag("div", tag("table", tag("thead", *heads), tag("tbody", *rows)), class_="scroll")


def _cell(cell: TableCell, head: Head, several: bool) -> Html:
    """Ours, marked, and the paper's value in brackets."""
    text: str = number(cell, head, several)
    if cell.ours is None:
        text = tag("span", text, class_="soft", title=cell.why or None)
    elif cell.best or cell.second:
        text = tag("strong" if cell.best else "u", text)
    beside = published(cell, head)
    if beside:
        rest = [Html(" "), tag("span", beside, class_="soft")]
    else:
        rest = []
    return tag("td", text, *rest, class_="number")


# ---- figures


def _figure(figure: Figure) -> Html:
    if figure.missing:
        missing = [_folded("What is missing, and what makes it", [_commands(figure.missing)])]
    else:
        missing = []
    if not any(map(_has_data, figure.figure.axes)):
        return join(tag("p", "No runs to draw."), tag("p", figure.caption, class_="soft"), *missing)
    with styled():
        drawn = tag("div", drawing(figure.figure), class_="scroll")
    return join(tag("figure", drawn, tag("figcaption", figure.caption, class_="beyond")), *missing)


def _has_data(axes: Any) -> bool:
    """Whether runs are drawn in it; a line across the axes at a level is none."""
    return bool(axes.collections) or any(
        line.get_transform() is axes.transData for line in axes.lines
    )


def _title(figure: Figure) -> str:
    """The first sentence of its caption, which is the report's title."""
    return figure.caption.partition(". ")[0]


# ---- both


def _folded(title: str, body: Iterable[str]) -> Html:
    return tag("details", tag("summary", title), *body)


def _commands(lines: Sequence[str]) -> Html:
    if lines:
        return tag("pre", "\n".join(lines))
    return Html("")
