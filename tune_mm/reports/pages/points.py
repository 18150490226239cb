"""Plotly figures of groups of final runs: mean and standard deviation over seeds by setting."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from tune_mm.reports.pages.cells import finite, words
from tune_mm.reports.pages.epochs import MODALITY
from tune_mm.reports.pages.html import label
from tune_mm.reports.pages.plots import BLACK, LEGEND, dressed

WIDTH = 36  # characters in a line of a label
APART = 0.16  # of the lines of one group

Settings = Sequence[Mapping[str, Any]]
Lines = Mapping[str, Sequence[Sequence[float]]]  # by line, for each group the values of its seeds


def points(settings: Settings, lines: Lines, metric: str) -> go.Figure:
    """Mean and standard deviation of a metric by group: over the one number in which the groups
    differ, if there is one, else group below group (nothing joins them then, for they have no
    order).
    """
    key = axis(settings)
    return _over(key, settings, lines, metric) if key else _listed(settings, lines, metric)


def axis(settings: Settings) -> str | None:
    """The numeric setting that alone tells the groups apart."""
    keys = {k for point in settings for k in point}
    varied = [k for k in keys if len({repr(point.get(k)) for point in settings}) > 1]
    values = [point.get(varied[0]) for point in settings] if len(varied) == 1 else [None]
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    return varied[0] if numbers and len(set(values)) == len(settings) else None


def _over(key: str, settings: Settings, lines: Lines, metric: str) -> go.Figure:
    figure = go.Figure()
    x = [float(point[key]) for point in settings]
    order = sorted(range(len(x)), key=lambda i: x[i])
    for (name, groups), color in zip(lines.items(), (BLACK, *MODALITY) * len(lines), strict=False):
        mean, std = _moments([groups[i] for i in order])
        figure.add_scatter(x=[x[i] for i in order], y=mean, error_y={"array": std, "thickness": 1.2},
                           line={"color": color, "width": 1.2}, marker={"size": 8}, mode="lines+markers",
                           name=label(name))  # fmt: skip
    wide = min(x) > 0 and max(x) / min(x) >= 10
    ticks = {"tickvals": x, "ticktext": [f"{v:g}" for v in x]} if len(x) <= 12 else {}
    figure.update_xaxes(title=label(key), type="log" if wide else "linear", **ticks)
    figure.update_yaxes(title=label(metric))
    return dressed(figure, 380, legend=LEGEND)


def _listed(settings: Settings, lines: Lines, metric: str) -> go.Figure:
    figure = go.Figure()
    names = [textwrap.wrap(words(point), WIDTH, break_on_hyphens=False) for point in settings]
    middle = (len(lines) - 1) / 2
    for at, ((name, groups), color) in enumerate(
        zip(lines.items(), (BLACK, *MODALITY) * len(lines), strict=False)
    ):
        mean, std = _moments(groups)
        figure.add_scatter(x=mean, y=[i + APART * (at - middle) for i in range(len(groups))], mode="markers",
                           error_x={"array": std, "thickness": 1.2}, marker={"size": 8, "color": color},
                           name=label(name))  # fmt: skip
    texts = ["<br>".join(map(label, parts)) for parts in names]
    figure.update_yaxes(tickvals=list(range(len(names))), ticktext=texts, range=[len(names) - 0.5, -0.5],
                        automargin=True, zeroline=False)  # fmt: skip
    figure.update_xaxes(title=label(metric))
    tallest = max(map(len, names))
    return dressed(figure, 130 + len(names) * max(18 * tallest + 12, 44), legend=LEGEND)


def _moments(groups: Sequence[Sequence[float]]) -> tuple[list[float | None], list[float]]:
    """Mean (None: nothing finite) and sample standard deviation (0 for one run) of each."""
    kept = [finite(group) for group in groups]
    mean = [math.fsum(k) / len(k) if k else None for k in kept]
    return mean, [statistics.stdev(k) if len(k) > 1 else 0.0 for k in kept]
