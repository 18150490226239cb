"""What pages are made of: texts, facts, tables and charts; templates/blocks.html.j2 lays them out."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from markupsafe import Markup
from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    # "soft" for a remark, "warn" for a warning.
    style: str = ""


@dataclass(frozen=True)
class Heading:
    """A heading within a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Facts:
    """A list of names and values; empty values are left out."""

    kind: ClassVar[str] = "facts"
    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True)
class PageCell:
    """A cell of a table."""

    text: str
    # What to sort by, where it is a number.
    value: float | None = None
    # Whether the text may take several lines.
    wide: bool = False


@dataclass(frozen=True)
class Grid:
    """A table."""

    kind: ClassVar[str] = "grid"
    columns: Sequence[str]
    rows: Sequence[Sequence[PageCell]]
    # Numbers of the rows to mark.
    best: frozenset[int] = field(default_factory=frozenset)
    # Whether a click on a heading sorts it.
    sortable: bool = False

    def is_number(self, column: int) -> bool:
        """Whether a column holds numbers."""
        return any(row[column].value is not None for row in self.rows)


@dataclass(frozen=True)
class Chart:
    """A plotly figure; the page has plotly.js.

    Labels made of text from runs must have gone through `label`.
    """

    kind: ClassVar[str] = "chart"
    figure: Figure
    caption: str = ""
    # Its width in pixels at least; on a narrower screen it scrolls.
    least: int = 0

    @property
    def drawn(self) -> Markup:
        """The figure as markup."""
        config = {
            "displaylogo": False,
            "responsive": True,
            "modeBarButtonsToRemove": ["select2d", "lasso2d"],
        }
        return Markup(self.figure.to_html(full_html=False, include_plotlyjs=False, config=config))


Block = Text | Heading | Facts | Grid | Chart


@dataclass(frozen=True)
class PageSection:
    """A part of a page under a heading."""

    title: str
    blocks: Sequence[Block]


def label(text: str) -> str:
    """Text for a plotly label: plotly reads <b>, <a href> and entities in labels as HTML does."""
    return html.escape(text, quote=False)
