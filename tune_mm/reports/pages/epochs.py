"""Plotly figures over epochs: what each modality learned, and the settings that population-based
training changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from tune_mm.reports.pages.blocks import label
from tune_mm.reports.pages.plots import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    YELLOW,
    dressed,
    ticks,
)
from tune_mm.reports.pages.search import Search, Trial
from tune_mm.reports.runs.stored_run import Curve

MODALITY = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY)
SCALE = "Viridis_r"  # dark is best, as in the parallel coordinates
CHANGED = "hp/"  # metrics of the settings, by epoch
PANELS = 3  # settings beside each other

Curves = Mapping[str, Curve]


def modalities(names: Sequence[str], objective: str) -> list[str]:
    """The modalities that a run's metrics tell apart: of the objective, and of gradient norms."""
    heads = (f"{objective}/", "grad/norm_multi/", "grad/norm_uni/")
    return sorted({n.removeprefix(h) for n in names for h in heads if n.startswith(h)})


def curves(objective: str, rows: Mapping[str, Sequence[Curves]]) -> go.Figure:
    """One row per group of runs, mean and standard deviation over them: the objective of each
    modality and of all together; the gradient that the multimodal loss (solid) and the unimodal
    losses (dashed) send to each encoder.
    """
    names = [n for runs in rows.values() for run in runs for n in run]
    found = modalities(names, objective)
    gradients = any(n.startswith("grad/norm_") for n in names)
    height = 270
    top = 60
    figure = make_subplots(
        len(rows),
        2 if gradients else 1,
        horizontal_spacing=0.08,
        vertical_spacing=min(0.3, 75 / (height * len(rows))),
    )
    shown: set[str] = set()
    for at, (title, runs) in enumerate(rows.items(), start=1):
        lines = [(objective, "all together", BLACK, "solid", 1)]
        for modality, color in zip(found, MODALITY * len(found), strict=False):
            lines.append((f"{objective}/{modality}", modality, color, "solid", 1))
            lines.append((f"grad/norm_multi/{modality}", modality, color, "solid", 2))
            lines.append((f"grad/norm_uni/{modality}", modality, color, "dash", 2))
        for metric, name, color, dash, column in lines:
            values = averaged([run.get(metric, ()) for run in runs], positive=column == 2)
            if values[0]:
                line = {"color": color, "dash": dash}
                _line(figure, (at, column), values, label(name), line, name not in shown)
                shown.add(name)
        domain = next(figure.select_yaxes(row=at, col=1)).domain
        figure.add_annotation(
            text=label(title),
            x=0,
            y=domain[1],
            xref="paper",
            yref="paper",
            xanchor="left",
            yanchor="bottom",
            yshift=4,
            showarrow=False,
            font={"size": 14},
        )
        figure.update_yaxes(title=label(objective), row=at, col=1)
        if gradients:
            figure.update_yaxes(
                title="gradient norm", type="log", exponentformat="power", row=at, col=2
            )
            norms = []
            for r in runs:
                for n, c in r.items():
                    if n.startswith("grad/"):
                        for _, v in c:
                            if 0 < v < math.inf:
                                norms.append(v)
            ticks(next(figure.select_yaxes(row=at, col=2)), norms or [1.0])
    longest = max(
        (e for runs in rows.values() for r in runs for c in r.values() for e, _ in c), default=1
    )
    figure.update_xaxes(dtick=1 if longest <= 10 else None)
    figure.update_xaxes(title="epoch", row=len(rows))
    whole = height * len(rows) + top + 60
    legend = {"orientation": "h", "x": 0, "y": 1 + 30 / (whole - top - 60), "yanchor": "bottom"}
    return dressed(figure, whole, legend=legend, margin={"l": 70, "r": 30, "t": top, "b": 60})


def averaged(
    runs: Sequence[Curve], positive: bool = False
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Epochs, mean and sample standard deviation (0 for one run) over the runs that have a finite
    value there.

    positive: only of values above zero, which a log axis can show.
    """
    by_epoch: dict[int, list[float]] = {}
    for curve in runs:
        for epoch, value in curve:
            if math.isfinite(value) and (value > 0 or not positive):
                by_epoch.setdefault(epoch, []).append(value)
    epochs = sorted(by_epoch)
    mean = np.array([np.mean(by_epoch[e]) for e in epochs])
    std = np.array([np.std(by_epoch[e], ddof=1) if len(by_epoch[e]) > 1 else 0.0 for e in epochs])
    return epochs, mean, std


def _line(
    figure: go.Figure,
    place: tuple[int, int],
    values: tuple[list[int], np.ndarray, np.ndarray],
    name: str,
    line: dict[str, Any],
    first: bool,
) -> None:
    """A mean with its band. The band of a log axis stays above zero."""
    (row, col), (epochs, mean, std) = place, values
    mode = "lines" if len(epochs) > 1 else "markers"
    marker = {"color": line["color"]}
    figure.add_scatter(
        x=epochs,
        y=mean,
        mode=mode,
        line={**line, "width": 2},
        marker=marker,
        name=name,
        row=row,
        col=col,
        legendgroup=name,
        showlegend=first,
    )
    if std.any():
        if col == 2:
            low = np.maximum(mean - std, mean / 10)
        else:
            low = mean - std
        edge = np.concatenate([mean + std, low[::-1]])
        color = f"rgba{(*(int(line['color'][i : i + 2], 16) for i in (1, 3, 5)), 0.16)}"
        figure.add_scatter(
            x=[*epochs, *epochs[::-1]],
            y=edge,
            fill="toself",
            mode="none",
            fillcolor=color,
            row=row,
            col=col,
            hoverinfo="skip",
            legendgroup=name,
            showlegend=False,
        )


# ---- population-based training


def changed(search: Search) -> list[str]:
    """The settings that runs logged by epoch, which only population-based training does; in the
    space's order.
    """
    logged = set()
    for t in search.trials.get("search", ()):
        for n in t.record.metrics:
            if n.startswith(CHANGED):
                logged.add(n.removeprefix(CHANGED))
    domains = list(search.domains.get("search", {}))
    return sorted(logged, key=lambda k: (domains.index(k) if k in domains else len(domains), k))


def schedules(search: Search, found: Sequence[tuple[Trial, Curves]]) -> go.Figure:
    """Each changed setting by epoch, one line per trial, coloured by the trial's best objective
    (grey: it has none).

    found: the trials and their metrics hp/<key>; at least one of these.
    """
    keys = changed(search)
    columns = min(PANELS, len(keys))
    rows = math.ceil(len(keys) / columns)
    height = 240
    figure = make_subplots(
        rows,
        columns,
        horizontal_spacing=0.085,
        vertical_spacing=min(0.3, 70 / (height * rows)),
        subplot_titles=[label(k) for k in keys],
    )
    values = []
    for t, _ in found:
        if t.value is not None:
            values.append(t.value)
    low = min(values, default=0.0)
    high = max(values, default=1.0)
    best = search.best()
    for at, key in enumerate(keys):
        place = {"row": at // columns + 1, "col": at % columns + 1}
        seen: list[float] = []
        for trial, curves in found:
            curve = []
            for e, v in curves.get(CHANGED + key, ()):
                if math.isfinite(v):
                    curve.append((e, v))
            seen += [v for _, v in curve]
            if curve:
                _schedule(
                    figure, place, trial, curve, _color(search, trial, low, high), trial is best
                )
        domain = search.domains["search"].get(key)
        if domain is not None and domain.kind == "loguniform" and min(seen, default=0.0) > 0:
            figure.update_yaxes(type="log", **place)
            ticks(next(figure.select_yaxes(**place)), seen)
        figure.update_xaxes(title="epoch" if at + columns >= len(keys) else None, **place)
    longest = max((e for _, curves in found for c in curves.values() for e, _ in c), default=1)
    figure.update_xaxes(dtick=1 if longest <= 10 else None, range=[0, longest + 0.5])
    if values:
        bar = {"title": label(search.objective), "thickness": 14}
        marker = {
            "color": [low, high],
            "colorscale": SCALE,
            "reversescale": search.mode == "min",
            "colorbar": bar,
            "showscale": True,
        }
        figure.add_scatter(
            x=[None, None], y=[None, None], mode="markers", marker=marker, row=1, col=1
        )
    return dressed(
        figure, height * rows + 90, showlegend=False, margin={"l": 60, "r": 30, "t": 40, "b": 50}
    )


def _color(search: Search, trial: Trial, low: float, high: float) -> str:
    if trial.value is None:
        return "#8a949e"
    if high > low:
        share = (trial.value - low) / (high - low)
    else:
        share = 1.0
    color: str = sample_colorscale(SCALE, [1 - share if search.mode == "min" else share])[0]
    return color


def _schedule(
    figure: go.Figure, place: Mapping[str, int], trial: Trial, curve: Curve, color: str, best: bool
) -> None:
    """A setting of one trial: what is logged at an epoch is what it was trained with, so the step
    comes before it.
    """
    (first, start), line = curve[0], {"color": color, "width": 3.5 if best else 1.5, "shape": "vh"}
    figure.add_scatter(
        x=[first - 1, *(e for e, _ in curve)],
        y=[start, *(v for _, v in curve)],
        mode="lines",
        line=line,
        name=f"trial {trial.number}",
        showlegend=False,
        **place,
    )
