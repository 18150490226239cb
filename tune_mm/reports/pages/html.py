"""Self-contained HTML pages: elements that escape what they are given, tables that sort, plotly and
matplotlib figures.

A page refers to nothing outside itself, and its Content-Security-Policy forbids the browser to
fetch anything.
"""

from __future__ import annotations

import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import matplotlib as mpl
from matplotlib.figure import Figure as Canvas
from plotly.graph_objects import Figure
from plotly.offline import get_plotlyjs

VOID = {"meta", "br", "img"}
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)

CSS = """
:root { --ink: #1d2733; --soft: #5b6875; --line: #d8dee5; --blue: #0072b2; --warn: #9a3b00; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1320px; padding: 24px 28px 48px; color: var(--ink); background: #fff;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "Liberation Sans", sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 36px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 20px 0 4px; }
p { margin: 6px 0; max-width: 100ch; overflow-wrap: anywhere; }
.soft, figcaption { color: var(--soft); font-size: 13.5px; }
.warn { color: var(--warn); font-weight: 600; }
.badge { display: inline-block; padding: 0 9px; border-radius: 10px; background: #e3eef6; font-size: 13px; }
.badge.synthetic, .badge.failed, .badge.stopped { background: #fde3d2; color: var(--warn); }
.badge.completed, .badge.real { background: #dcf2e8; }
dl { display: grid; grid-template-columns: max-content 1fr max-content 1fr; gap: 2px 18px; margin: 14px 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 8px 0 18px; }
/* drawn for a printed column: larger on a screen */
figure svg.drawn { zoom: 1.35; max-width: 100%; height: auto; }
a { color: var(--blue); }
/* a shadow at an edge says that there is more beyond it */
.scroll { overflow-x: auto; margin: 8px 0; background: linear-gradient(90deg, #fff 30%, #fff0) local,
  linear-gradient(270deg, #fff 30%, #fff0) right local, radial-gradient(farthest-side at 0 50%, #0004, #0000),
  radial-gradient(farthest-side at 100% 50%, #0004, #0000) right; background-repeat: no-repeat;
  background-size: 40px 100%, 40px 100%, 12px 100%, 12px 100%; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); padding: 4px 0; }
th, td { padding: 4px 11px; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap; }
td.wide { white-space: normal; min-width: 20em; max-width: 46em; overflow-wrap: break-word; }
td.number, th.number { text-align: right; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--blue); }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
thead tr:not(:last-child) th { border-bottom: none; text-align: center; }
thead tr:not(:last-child) th.group:not(:empty) { border-bottom: 1px solid var(--soft); }
summary { cursor: pointer; color: var(--blue); font-size: 14px; margin: 6px 0; }
tr.best td { font-weight: 600; background: #f1f7fb; }
code, pre { font: 13px/1.45 ui-monospace, "Liberation Mono", monospace; background: #f4f6f8; border-radius: 4px; }
code { padding: 1px 4px; } pre { padding: 8px 12px; overflow-x: auto; }
u { text-decoration-thickness: 1px; text-underline-offset: 3px; }
@media (max-width: 800px) {
  body { padding: 16px 16px 40px; }
  dl { grid-template-columns: max-content 1fr; }
  figure svg.drawn { zoom: 1; min-width: 560px; }
  figcaption.beyond::before { content: "Scroll the figure sideways for the rest of it. "; }
}
@media print { body { max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""

# Numbers sort as numbers (data-value), text as text; empty cells stay last either way.
SORTING = """
document.querySelectorAll("table.sortable").forEach(table => {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = row => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const numbers = !isNaN(x) && !isNaN(y);
      return (down ? -1 : 1) * (numbers ? x - y : x.localeCompare(y));
    };
    const body = table.tBodies[0];
    [...body.rows].sort(compare).forEach(row => body.append(row));
  }));
});
"""


class Html(str):
    """Markup. Whatever else goes into an element is text, and is escaped."""

    __slots__ = ()


def tag(name: str, /, *children: str, **attributes: str | None) -> Html:
    """An element; `class_` stands for class, `data_value` for data-value, None leaves an attribute
    out.
    """
    given = {}
    for k, v in attributes.items():
        if v is not None:
            given[k.rstrip("_").replace("_", "-")] = v
    inner = "".join(f' {k}="{html.escape(v)}"' for k, v in given.items())
    return Html(
        f"<{name}{inner}>" if name in VOID else f"<{name}{inner}>{join(*children)}</{name}>"
    )


def join(*children: str) -> Html:
    """Elements and texts one after another."""
    return Html("".join(c if isinstance(c, Html) else html.escape(c) for c in children))


def section(title: str, *body: str) -> Html:
    """A part of a page under a heading."""
    return tag("section", tag("h2", title), *body)


def facts(pairs: Iterable[tuple[str, str]]) -> Html:
    """A list of names and values; empty values are left out."""
    return tag(
        "dl",
        *(part for name, value in pairs if value for part in (tag("dt", name), tag("dd", value))),
    )


@dataclass(frozen=True)
class PageCell:
    """A cell of a table. value: what to sort by, where it is a number; wide: a text that may take
    several lines.
    """

    text: str
    value: float | None = None
    wide: bool = False


@dataclass(frozen=True)
class Grid:
    """A table. best: numbers of the rows to mark."""

    columns: Sequence[str]
    rows: Sequence[Sequence[PageCell]]
    best: frozenset[int] = field(default_factory=frozenset)
    sortable: bool = False

    def html(self) -> Html:
        numeric = []
        for i in range(len(self.columns)):
            numeric.append(any(row[i].value is not None for row in self.rows))
        heads = []
        for name, right in zip(self.columns, numeric, strict=True):
            heads.append(
                tag(
                    "th",
                    tag("button", name, type="button") if self.sortable else name,
                    class_="number" if right else None,
                )
            )
        rows = [
            tag("tr", *map(_cell, row, numeric), class_="best" if i in self.best else None)
            for i, row in enumerate(self.rows)
        ]
        table = tag(
            "table", tag("thead", tag("tr", *heads)), tag("tbody", *rows), class_=self._class()
        )
        return tag("div", table, class_="scroll")

    def _class(self) -> str | None:
        if self.sortable:
            return "sortable"
        return None


def _cell(cell: PageCell, right: bool) -> Html:
    kind = "wide" if cell.wide else "number" if right else None
    return tag(
        "td", cell.text, class_=kind, data_value=None if cell.value is None else repr(cell.value)
    )


def plot(figure: Figure, caption: str = "", least: int = 0) -> Html:
    """A plotly figure; the page has plotly.js. Labels made of text from runs must have gone through
    `label`.

    least: its width in pixels at least; on a narrower screen it scrolls.
    """
    config = {
        "displaylogo": False,
        "responsive": True,
        "modeBarButtonsToRemove": ["select2d", "lasso2d"],
    }
    drawn = Html(figure.to_html(full_html=False, include_plotlyjs=False, config=config))
    if least:
        drawn = tag("div", tag("div", drawn, style=f"min-width: {least}px"), class_="scroll")
    if caption:
        below = [tag("figcaption", caption, class_="beyond" if least else None)]
    else:
        below = []
    return tag("figure", drawn, *below)


def label(text: str) -> str:
    """Text for a plotly label: plotly reads <b>, <a href> and entities in labels as HTML does."""
    return html.escape(text, quote=False)


def drawing(canvas: Canvas) -> Html:
    """A matplotlib figure as SVG. Its glyphs are paths, so that it looks the same everywhere."""
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "tune_mm"}):
        canvas.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    return Html(text[text.index("<svg") :].replace("<svg", '<svg class="drawn"', 1))


def page(title: str, *body: str, interactive: bool = False) -> str:
    """A whole page. interactive: it has plotly figures, so plotly.js goes in once (its size is said
    at the bottom).
    """
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Html(CSS)),
    ]
    library = str(get_plotlyjs()) if interactive else ""
    if interactive:
        head.append(tag("script", Html(library)))
    content = join(*body)
    size = f"{(len(content) + len(library)) / 1e6:.1f} MB"
    if interactive:
        within = f", {len(library) / 1e6:.1f} MB of it plotly.js"
    else:
        within = ""
    foot = tag(
        "p", f"This page is complete in itself ({size}{within}) and fetches nothing.", class_="soft"
    )
    end = tag("script", Html(SORTING))
    return f"<!doctype html>\n{tag('html', tag('head', *head), tag('body', content, foot, end), lang='en')}\n"
