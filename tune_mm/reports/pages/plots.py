"""Plotly figures of the trials of one search: Optuna's own where it has one.

Optuna draws completed trials only; pruned ones are added as crosses, at the best value that they
reached.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from optuna import visualization
from optuna.importance import get_param_importances
from optuna.study import Study
from optuna.trial import TrialState
from plotly.colors import sample_colorscale
from plotly.subplots import make_subplots

from tune_mm.reports.pages.blocks import label
from tune_mm.reports.pages.search import Search, Trial
from tune_mm.reports.pages.study import study

BLUE, ORANGE, GREEN, PINK, YELLOW, SKY, BLACK, GREY = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#8a949e",
)
STATUS = {"completed": BLUE, "pruned": ORANGE, "failed": BLACK, "stopped": PINK, "running": GREEN}
LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom"}  # above the plot
PER_ROW = 4  # slices beside each other
FEWEST = 5  # completed trials for importances
FEW = 20  # below that importances are a hint at best


def dressed(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """The common look. Optuna's titles go: the page has headings."""
    look = {
        "template": "plotly_white",
        "title": None,
        "height": height,
        "font": {"size": 13, "color": "#1d2733"},
    }
    figure.update_layout(**{**look, "margin": {"l": 70, "r": 30, "t": 30, "b": 60}, **layout})
    return figure


# ---- trials


def history(search: Search) -> go.Figure:
    """Objective by trial, and the best so far, of the search and of its baseline."""
    names = {stage: f"{stage} ({_method(trials)})" for stage, trials in search.trials.items()}
    figure = visualization.plot_optimization_history(
        [study(search, stage, name) for stage, name in names.items()],
        target_name=label(search.objective),
    )
    # Optuna ends names with "of <study>" where there are several, and has an empty trace for
    # infeasible trials.
    figure.data = [t for t in figure.data if len(t.x or ())]
    for stage, color in zip(names, (BLUE, GREY), strict=False):
        name = label(names[stage])
        for trace in (
            figure.data
            if len(names) == 1
            else [t for t in figure.data if t.name.endswith(f" of {name}")]
        ):
            best = trace.name.startswith("Best Value")
            trace.name = f"{'best so far' if best else 'completed'}, {name}"
            trace.marker.color = trace.line.color = color
        _crosses(figure, pruned(search, stage), f"pruned, {name}", color)
    last = max((t.number for trials in search.trials.values() for t in trials), default=0)
    figure.update_xaxes(title="trial", dtick=1 if last < 25 else None, range=[-0.5, last + 0.5])
    figure.update_yaxes(title=label(search.objective))
    return dressed(figure, 430, legend=LEGEND, margin={"l": 70, "r": 30, "t": 75, "b": 60})


def pruned(search: Search, stage: str = "search") -> list[Trial]:
    """Trials that were stopped early and had a value by then."""
    found = []
    for t in search.trials.get(stage, ()):
        if t.record.status == "pruned" and t.value is not None:
            found.append(t)
    return found


def _method(trials: Sequence[Trial]) -> str:
    return next((t.record.value("method") or "?" for t in trials), "?")


def _crosses(figure: go.Figure, trials: Sequence[Trial], name: str, color: str) -> None:
    marker = {"symbol": "x-thin", "size": 8, "line": {"width": 1.6, "color": color}}
    x = [t.number for t in trials]
    y = [t.value for t in trials]
    if trials:
        figure.add_scatter(x=x, y=y, mode="markers", name=name, marker=marker)


def parallel(search: Search, one: Study) -> go.Figure:
    """Parallel coordinates of the completed trials."""
    figure = visualization.plot_parallel_coordinate(one, target_name=label(search.objective))
    # Optuna's palest lines vanish on white; the height on the first axis is the objective.
    for trace in figure.data:
        if trace.mode == "lines":
            if search.mode == "min":
                share = 1 - trace.y[0]
            else:
                share = trace.y[0]
            color = sample_colorscale("Viridis_r", [min(max(share, 0.0), 1.0)])[0]
            trace.update(opacity=0.8, line={"color": color, "width": 1.8})
        else:
            trace.marker.update(colorscale="Viridis_r", reversescale=search.mode == "min")
    figure.update_annotations(font={"size": 12, "color": "#1d2733"})
    return dressed(figure, 430, margin={"l": 90, "r": 60, "t": 60, "b": 30})


def slices(search: Search, one: Study) -> Iterator[go.Figure]:
    """Objective against each setting, PER_ROW settings to a figure."""
    done = [t for t in one.trials if t.state is TrialState.COMPLETE]
    keys = []
    for k in search.domains["search"]:
        if any(k in t.params for t in done):
            keys.append(k)
    rows = math.ceil(len(keys) / PER_ROW)
    size = math.ceil(len(keys) / rows) if rows else 1
    for start in range(0, len(keys), size):
        part = sorted(keys[start : start + size])
        figure = visualization.plot_slice(one, params=part, target_name=label(search.objective))
        stopped = []
        for t in one.trials:
            if t.number in {p.number for p in pruned(search)}:
                stopped.append(t)
        values = {p.number: p.value for p in pruned(search)}
        for column, key in enumerate(part, start=1):
            shown = [t for t in stopped if key in t.params]
            # Optuna names categories by repr.
            x = [repr(t.params[key]) if one_of_few(one, key) else t.params[key] for t in shown]
            marker = {"symbol": "x-thin", "size": 7, "line": {"width": 1.4, "color": GREY}}
            text = [f"trial {t.number}, pruned" for t in shown]
            y = [values[t.number] for t in shown]
            at = "" if column == 1 else str(column)  # one slice alone has no grid to address it by
            if shown:
                figure.add_scatter(
                    x=x,
                    y=y,
                    mode="markers",
                    marker=marker,
                    text=text,
                    showlegend=False,
                    xaxis=f"x{at}",
                    yaxis=f"y{at}",
                )
            ticks(
                figure.layout[f"xaxis{at}"],
                [t.params[key] for t in (*done, *shown) if key in t.params],
            )
        if len(done) == 1:  # a scale of trial numbers is of no use then
            figure.update_traces(marker_showscale=False)
        yield dressed(figure, 360, width=None)


def ticks(axis: Any, values: Sequence[Any]) -> None:
    """Readable ticks: categories without quotes; a log axis names its decades, or a few numbers
    where it has no two.
    """
    if axis.type == "category":
        texts = list(axis.categoryarray or ())
        axis.update(tickvals=texts, ticktext=[t.strip("'") for t in texts])
    if axis.type == "log":
        low = min(values)
        high = max(values)
        texts = []
        for v in np.geomspace(low, high, 4):
            texts.append(f"{float(f'{v:.1g}'):g}")
        few = {"tickvals": [float(t) for t in texts], "ticktext": texts}
        axis.update(exponentformat="power", **({"dtick": 1} if high / low >= 100 else few))


def one_of_few(one: Study, key: str) -> bool:
    """Whether Optuna draws a setting as categories."""
    found = []
    for t in one.trials:
        if key in t.distributions:
            found.append(t.distributions[key])
    return bool(found) and hasattr(found[0], "choices")


def weights(one: Study) -> dict[str, float] | str:
    """Optuna's importances by setting, or why there are none."""
    done = []
    for t in one.trials:
        if t.state is TrialState.COMPLETE:
            done.append(t)
    values = {t.value for t in done}
    if len(done) < FEWEST:
        return f"{len(done)} completed trials are too few for importances (at least {FEWEST})."
    if len(values) < 2:
        return "All completed trials have the same objective: nothing matters, or nothing was measured."
    return get_param_importances(one) or "No setting differs between the completed trials."


def importances(search: Search, one: Study) -> go.Figure | str:
    """A bar for each of the importances, or why there are none."""
    found = weights(one)
    if isinstance(found, str):
        return found
    keys = sorted(found, key=lambda k: found[k])
    text = [f"{found[k]:.2f}" for k in keys]
    bars = go.Bar(
        x=[found[k] for k in keys],
        y=keys,
        orientation="h",
        text=text,
        marker_color=BLUE,
        cliponaxis=False,
    )
    figure = go.Figure(bars)
    figure.update_xaxes(title=f"importance for {label(search.objective)}", rangemode="tozero")
    figure.update_yaxes(automargin=True)
    return dressed(figure, 110 + 34 * len(keys))


def lives(search: Search) -> go.Figure:
    """Which trial lived how long, and the best so far by epoch that decided it."""
    figure = make_subplots(1, 2, column_widths=[0.5, 0.5], horizontal_spacing=0.09)
    trials = search.trials["search"]
    best = search.best()
    for status, color in STATUS.items():
        some = [t for t in trials if t.record.status == status]
        if not some:
            continue
        x = [t.number for t in some]
        y = [t.epochs for t in some]
        figure.add_bar(
            x=x, y=y, width=0.8, name=status, marker_color=color, legendgroup=status, row=1, col=1
        )
        for trial in some:
            epochs = []
            for e, v in trial.progress:
                if math.isfinite(v):
                    epochs.append(e)
            values = [v for _, v in trial.progress if math.isfinite(v)]
            line = {"color": color, "width": 3.5 if trial is best else 1.3}
            mode = "lines" if len(epochs) > 1 else "markers"
            figure.add_scatter(
                x=epochs,
                y=values,
                mode=mode,
                line=line,
                marker={"color": color},
                row=1,
                col=2,
                name=f"trial {trial.number}",
                legendgroup=status,
                showlegend=False,
            )
    few = 1 if len(trials) <= 20 else None
    last = max((t.number for t in trials), default=0)
    figure.update_xaxes(title="trial", dtick=few, range=[-0.5, last + 0.5], row=1, col=1)
    longest = max((t.epochs for t in trials), default=1)
    figure.update_yaxes(
        title="epochs", rangemode="tozero", dtick=1 if longest <= 10 else None, row=1, col=1
    )
    figure.update_xaxes(title="epoch", dtick=1 if longest <= 10 else None, row=1, col=2)
    figure.update_yaxes(title=f"best {label(search.objective)} so far", row=1, col=2)
    return dressed(figure, 380, legend=LEGEND, barmode="overlay", showlegend=True)
