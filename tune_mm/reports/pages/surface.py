"""The objective over two settings: of the trials of a tuned search, and of the points of an
exhaustive grid.

Optuna's own contour fills the whole rectangle between few trials, and beyond them. Here a surface
is drawn only between completed trials, linearly over Delaunay's triangles of them (log settings by
their logarithm).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from matplotlib.tri import LinearTriInterpolator, Triangulation
from optuna.study import Study

from tune_mm.reports.pages.blocks import label
from tune_mm.reports.pages.cells import finite
from tune_mm.reports.pages.plots import (
    BLACK,
    FEW,
    FEWEST,
    GREY,
    LEGEND,
    dressed,
    pruned,
    ticks,
    weights,
)
from tune_mm.reports.pages.search import Search, SearchedDomain, Trial

FIRST = ("method.rho", "method.lam")  # CGGM's pair, which its paper studies
NUMERIC = ("uniform", "loguniform", "quniform", "randint")
CELLS = 90  # of the surface, along each axis
LOOK: Mapping[str, Any] = {
    "colorscale": "Viridis_r"
}  # dark is best, as in the parallel coordinates

Point = tuple[float, float]


def pair(search: Search, one: Study) -> tuple[str, str] | None:
    """The two numeric settings to draw: rho and lam where both were tuned, else the two most
    important ones (in the space's order while there are no importances). None where fewer than two
    were tuned.
    """
    keys = [k for k, d in search.domains["search"].items() if d.kind in NUMERIC]
    found = weights(one)
    if set(FIRST) <= set(keys):
        return FIRST
    if not isinstance(found, str):
        keys.sort(key=lambda k: -found.get(k, 0.0))
    if len(keys) > 1:
        return keys[0], keys[1]
    return None


def contour(search: Search, keys: tuple[str, str]) -> go.Figure | str:
    """The objective of completed trials over two settings; crosses: pruned ones. A sentence where
    they are too few.
    """
    done = _placed(
        search, keys, [t for t in search.trials["search"] if t.record.status == "completed"]
    )
    if len(done) < FEWEST:
        if len(done) == 1:
            trials = "1 completed trial is"
        else:
            trials = f"{len(done)} completed trials are"
        return f"{trials} too few for a surface of {keys[0]} and {keys[1]} (at least {FEWEST})."
    values = [t.value or 0.0 for t, _ in done]
    if len(set(values)) == 1:
        return "All completed trials have the same objective: a surface would be flat."
    scale = {**LOOK, "reversescale": search.mode == "min"}
    figure = go.Figure()
    logs = tuple(
        _log(search.domains["search"][k], [p[i] for _, p in done]) for i, k in enumerate(keys)
    )
    surface = _surface([p for _, p in done], values, logs)
    if surface is not None:
        x, y, z = surface
        # No colour axis shared with the dots: plotly.js 3 never ends over the levels of a surface
        # that has one.
        figure.add_contour(
            x=x,
            y=y,
            z=z,
            **scale,
            zmin=min(values),
            zmax=max(values),
            line={"width": 0.5},
            contours={"coloring": "heatmap"},
            hoverinfo="skip",
            showscale=False,
        )
    marker = {
        **scale,
        "color": values,
        "size": 11,
        "line": {"width": 1.5, "color": BLACK},
        "showscale": True,
        "colorbar": {"title": label(search.objective), "thickness": 14},
    }
    figure.add_scatter(
        **_marks(done), mode="markers", marker=marker, name="completed", showlegend=True
    )
    stopped = _placed(search, keys, pruned(search))
    if stopped:
        marker = {"symbol": "x-thin", "size": 8, "line": {"width": 1.6, "color": GREY}}
        figure.add_scatter(
            **_marks(stopped), mode="markers", marker=marker, name="pruned", showlegend=True
        )
    for i, axis in enumerate((figure.layout.xaxis, figure.layout.yaxis)):
        seen = [p[i] for _, p in (*done, *stopped)]
        axis.update(title=label(keys[i]), zeroline=False, **({"type": "log"} if logs[i] else {}))
        ticks(axis, seen)
    return dressed(figure, 470, legend=LEGEND, margin={"l": 70, "r": 30, "t": 60, "b": 60})


def told(search: Search, figure: go.Figure) -> str:
    """What a contour shows, in words."""
    done = []
    for t in search.trials["search"]:
        if t.record.status == "completed" and t.value is not None:
            done.append(t)
    words = "Dots: completed trials, coloured by their own value; "
    drawn = any(trace.type == "contour" for trace in figure.data)
    words += (
        "between them the surface is interpolated linearly. "
        if drawn
        else "on a line, so without a surface. "
    )
    words += "The other settings differ from trial to trial too. "
    if pruned(search):
        words += "Crosses: pruned trials, which do not count for the surface (nor for Optuna's own contour). "
    return words + (
        f"From {len(done)} completed trials a hint, no more." if len(done) < FEW else ""
    )


def _placed(
    search: Search, keys: tuple[str, str], trials: Sequence[Trial]
) -> list[tuple[Trial, Point]]:
    """The trials that have a value and a number for both settings."""
    found = []
    for t in trials:
        if t.value is not None:
            found.append((t, [t.settings.get(k) for k in keys]))
    return [(t, (float(a), float(b))) for t, (a, b) in found if _number(a) and _number(b)]  # type: ignore[arg-type]


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _marks(found: Sequence[tuple[Trial, Point]]) -> dict[str, Any]:
    text = []
    for t, _ in found:
        text.append(f"trial {t.number}: {t.value:.4f}")
    return {"x": [p[0] for _, p in found], "y": [p[1] for _, p in found], "text": text}


def _log(domain: SearchedDomain, seen: Sequence[float]) -> bool:
    return domain.kind == "loguniform" and min(seen) > 0


def _surface(
    points: Sequence[Point], values: Sequence[float], logs: Sequence[bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """x [CELLS], y [CELLS], z [CELLS, CELLS] (NaN outside the points' hull); None where the points
    lie on a line.
    """
    at: dict[Point, list[float]] = {}
    for point, value in zip(points, values, strict=True):
        at.setdefault(point, []).append(value)
    flat = np.array(
        [[math.log(v) if log else v for v, log in zip(p, logs, strict=True)] for p in at]
    )
    low = flat.min(axis=0)
    size = np.ptp(flat, axis=0)
    if not size.all():
        return None
    unit = (flat - low) / size  # triangles depend on the units otherwise
    if len(unit) < 3 or np.linalg.matrix_rank(unit - unit[0], tol=1e-6) < 2:
        return None
    mean = [statistics.fmean(v) for v in at.values()]
    steps = np.linspace(1e-9, 1 - 1e-9, CELLS)  # the edges themselves may round to outside
    z = LinearTriInterpolator(Triangulation(unit[:, 0], unit[:, 1]), mean)(
        *np.meshgrid(steps, steps)
    )
    x, y = (
        np.exp(low[i] + steps * size[i]) if logs[i] else low[i] + steps * size[i] for i in (0, 1)
    )
    return x, y, z.filled(math.nan)


# ---- grids


def plane(settings: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """The two numeric settings in which the points of a grid differ; None where it is no grid of
    two.
    """
    keys = list(dict.fromkeys(k for point in settings for k in point))
    numeric = []
    for k in keys:
        if all(_number(p[k]) for p in settings if k in p):
            numeric.append(k)
    varied = [k for k in numeric if len({p[k] for p in settings if k in p}) > 1]
    if len(varied) != 2:
        return None
    x, y = varied
    places = []
    for p in settings:
        if x in p and y in p:
            places.append((p[x], p[y]))
    square = len({a for a, _ in places}) > 1 and len({b for _, b in places}) > 1
    if square and len(set(places)) == len(places):
        return x, y
    return None


def heat(
    settings: Sequence[Mapping[str, Any]],
    values: Sequence[Sequence[float]],
    metric: str,
    lower: bool,
    best: int | None,
) -> go.Figure | None:
    """Mean of a metric over seeds at the points of a grid of two settings; None where it is no such
    grid.

    values: by point, of each seed; lower: less is better; best: the point to mark.
    """
    keys = plane(settings)
    if keys is None:
        return None
    axes = []
    for k in keys:
        axes.append(sorted({p[k] for p in settings if set(keys) <= set(p)}))
    z: list[list[float | None]] = []
    for _ in axes[1]:
        z.append([None] * len(axes[0]))
    text = [["no run"] * len(axes[0]) for _ in axes[1]]
    for point, found in zip(settings, values, strict=True):
        if set(keys) <= set(point) and (kept := finite(found)):
            column, row = (axis.index(point[k]) for axis, k in zip(axes, keys, strict=True))
            z[row][column] = mean = statistics.fmean(kept)
            if len(kept) > 1:
                std = f"<br>± {statistics.stdev(kept):.4f}"
            else:
                std = ""
            text[row][column] = f"{mean:.4f}{std}<br>n = {len(kept)}"
    names = []
    for axis in axes:
        names.append([f"{v:g}" for v in axis])
    figure = go.Figure(
        go.Heatmap(
            x=names[0],
            y=names[1],
            z=z,
            text=text,
            texttemplate="%{text}",
            hoverinfo="skip",
            xgap=2,
            ygap=2,
            **LOOK,
            reversescale=lower,
            colorbar={"title": label(metric), "thickness": 14},
        )
    )
    if best is not None and set(keys) <= set(settings[best]):
        column, row = (axis.index(settings[best][k]) for axis, k in zip(axes, keys, strict=True))
        frame = {"x0": column - 0.5, "x1": column + 0.5, "y0": row - 0.5, "y1": row + 0.5}
        figure.add_shape(type="rect", **frame, line={"width": 4, "color": "#D55E00"})
    figure.update_xaxes(title=label(keys[0]), type="category", showgrid=False)
    figure.update_yaxes(title=label(keys[1]), type="category", showgrid=False)
    return dressed(figure, 140 + 75 * len(axes[1]))
