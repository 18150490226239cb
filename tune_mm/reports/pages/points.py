"""Plotly figures of groups of final runs: mean and standard deviation over seeds by setting."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from tune_mm.reports.pages.blocks import label
from tune_mm.reports.pages.cells import finite, words
from tune_mm.reports.pages.epochs import MODALITY
from tune_mm.reports.pages.plots import BLACK, LEGEND, dressed
from tune_mm.stats import spread

WIDTH = 36  # characters in a line of a label
APART = 0.16  # of the lines of one group
MOST_TICKS = 12  # with more values, plotly chooses the ticks

Settings = Sequence[Mapping[str, Any]]
Lines = Mapping[str, Sequence[Sequence[float]]]  # by line, for each group the values of its seeds


def points(settings: Settings, lines: Lines, metric: str) -> go.Figure:
    """Mean and standard deviation of a metric by group: over the one number in which the groups
    differ, if there is one, else group below group (nothing joins them then, for they have no
    order).
    """
    key = axis(settings)
    if key:
        return _over(key, settings, lines, metric)
    return _listed(settings, lines, metric)


def axis(settings: Settings) -> str | None:
    """The numeric setting that alone tells the groups apart."""
    keys = {key for point in settings for key in point}
    varied = [key for key in keys if _differs(key, settings)]
    if len(varied) != 1:
        return None
    values = [point.get(varied[0]) for point in settings]
    if not all(_numeric(value) for value in values):
        return None
    if len(set(values)) < len(settings):
        return None
    return varied[0]


def _differs(key: str, settings: Settings) -> bool:
    seen = {repr(point.get(key)) for point in settings}
    return len(seen) > 1


def _numeric(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _colors(lines: Lines) -> Sequence[str]:
    """A color for each line; they repeat where there are more lines than colors."""
    palette = (BLACK, *MODALITY)
    found = []
    for at in range(len(lines)):
        found.append(palette[at % len(palette)])
    return found


def _over(key: str, settings: Settings, lines: Lines, metric: str) -> go.Figure:
    figure = go.Figure()
    x = [float(point[key]) for point in settings]
    order = sorted(range(len(x)), key=lambda at: x[at])
    ordered = [x[at] for at in order]
    for (name, groups), color in zip(lines.items(), _colors(lines), strict=True):
        mean, std = _moments([groups[at] for at in order])
        figure.add_scatter(
            x=ordered,
            y=mean,
            error_y={"array": std, "thickness": 1.2},
            line={"color": color, "width": 1.2},
            marker={"size": 8},
            mode="lines+markers",
            name=label(name),
        )
    figure.update_xaxes(title=label(key), type="linear")
    if min(x) > 0 and max(x) / min(x) >= 10:
        figure.update_xaxes(type="log")
    if len(x) <= MOST_TICKS:
        figure.update_xaxes(tickvals=x, ticktext=[f"{value:g}" for value in x])
    figure.update_yaxes(title=label(metric))
    return dressed(figure, 380, legend=LEGEND)


def _listed(settings: Settings, lines: Lines, metric: str) -> go.Figure:
    figure = go.Figure()
    middle = (len(lines) - 1) / 2
    for at, (name, groups) in enumerate(lines.items()):
        mean, std = _moments(groups)
        shift = APART * (at - middle)
        figure.add_scatter(
            x=mean,
            y=[group + shift for group in range(len(groups))],
            mode="markers",
            error_x={"array": std, "thickness": 1.2},
            marker={"size": 8, "color": _colors(lines)[at]},
            name=label(name),
        )
    names = []
    for point in settings:
        names.append(textwrap.wrap(words(point), WIDTH, break_on_hyphens=False))
    figure.update_yaxes(
        tickvals=list(range(len(names))),
        ticktext=["<br>".join(map(label, parts)) for parts in names],
        range=[len(names) - 0.5, -0.5],
        automargin=True,
        zeroline=False,
    )
    figure.update_xaxes(title=label(metric))
    tallest = max(map(len, names))
    each = max(18 * tallest + 12, 44)
    return dressed(figure, 130 + len(names) * each, legend=LEGEND)


def _moments(groups: Sequence[Sequence[float]]) -> tuple[list[float | None], list[float]]:
    """Mean (None: nothing finite) and sample standard deviation (0 for one run) of each."""
    means: list[float | None] = []
    stds: list[float] = []
    for group in groups:
        found = spread(finite(group))
        if found is None:
            means.append(None)
            stds.append(0.0)
        else:
            means.append(found.mean)
            stds.append(found.std or 0.0)
    return means, stds
