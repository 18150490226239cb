"""Self-contained HTML pages from jinja2 templates, which escape what they are given.

A page refers to nothing outside itself, and its Content-Security-Policy forbids the browser to
fetch anything.
"""

from __future__ import annotations

import io
from functools import cache
from typing import Any

import matplotlib as mpl
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure as Canvas
from plotly.offline import get_plotlyjs

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
)


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("tune_mm.reports.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def page(title: str, template: str, *, interactive: bool = False, **context: Any) -> str:
    """A whole page around a template.

    interactive: it has plotly figures, so plotly.js goes in once (its size is said at the bottom).
    """
    body = _templates().get_template(template).render(context)
    library = str(get_plotlyjs()) if interactive else ""
    size = f"{(len(body) + len(library)) / 1e6:.1f} MB"
    if interactive:
        size += f", {len(library) / 1e6:.1f} MB of it plotly.js"
    return (
        _templates()
        .get_template("page.html.j2")
        .render(title=title, policy=POLICY, body=Markup(body), library=Markup(library), size=size)
    )


def drawing(canvas: Canvas) -> Markup:
    """A matplotlib figure as SVG. Its glyphs are paths, so that it looks the same everywhere."""
    out = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "tune_mm"}):
        canvas.savefig(out, format="svg", metadata={"Date": None})
    text = out.getvalue()
    svg = text[text.index("<svg") :]
    return Markup(svg.replace("<svg", '<svg class="drawn"', 1))
