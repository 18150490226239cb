"""Contours of two settings and heat maps of grids: values follow from a plane or are means stated
in the test.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reports.pages.pages import RHO, Page, make, space
from tune_mm.reports.pages import search as searches
from tune_mm.reports.pages import surface as surfaces
from tune_mm.reports.pages.search_page import search_page
from tune_mm.reports.pages.study import study

LAM = {"kind": "loguniform", "args": [0.01, 1.0]}
LR = {"kind": "uniform", "args": [0.0, 1.0]}
# rho, lam on two squares, so that no three of the inner ones lie on the hull
PLACES = [(1.0, 0.01), (1.5, 0.01), (1.0, 1.0), (1.5, 1.0), (1.2, 0.1), (1.3, 0.05), (1.4, 0.3)]


def plane(rho: float, lam: float) -> float:
    """Linear in rho and in the logarithm of lam: linear interpolation on a log axis gives it back."""
    return 0.3 + 0.4 * (rho - 1) + 0.05 * math.log10(lam / 0.01)


def trial(rho: float, lam: float, **more: Any) -> dict[str, Any]:
    return {"params": {"method.rho": rho, "method.lam": lam}, "curve": [plane(rho, lam)], **more}


def searched(root: Path, trials: list[dict[str, Any]], **domains: Any) -> searches.Search:
    stated = domains or {"method_lam": LAM, "method_rho": RHO}
    return searches.load(make(root, trials, space=space(**stated)), "toy-1")


def test_a_contour_gives_a_plane_back_between_completed_trials_and_nothing_beyond_them(
    tmp_path: Path,
) -> None:
    inner = (
        PLACES[:3] + PLACES[4:]
    )  # without (1.5, 1.0): the hull is a triangle and what the others add
    stopped = trial(1.5, 0.9, status="pruned")
    search = searched(tmp_path, [*(trial(*p) for p in inner), stopped])
    assert surfaces.pair(search, study(search)) == (
        "method.rho",
        "method.lam",
    )  # rho is named first, though lam is stated so
    figure = surfaces.contour(search, ("method.rho", "method.lam"))
    assert not isinstance(figure, str)
    surface, dots, crosses = figure.data
    x, y, z = (np.asarray(surface[k], dtype=float) for k in "xyz")
    expected = np.array([[plane(rho, lam) for rho in x] for lam in y])
    inside = np.isfinite(z)
    assert np.allclose(z[inside], expected[inside])
    assert inside[0].all() and inside[:, 0].all() and not inside[-1, -1]
    assert list(zip(dots.x, dots.y, strict=True)) == inner
    assert list(dots.marker.color) == pytest.approx([plane(*p) for p in inner])
    assert (list(crosses.x), list(crosses.y)) == (
        [1.5],
        [0.9],
    )  # drawn, though no part of the surface
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == (None, "log")


def test_a_surface_has_no_colour_axis_in_common_with_the_dots(tmp_path: Path) -> None:
    # plotly.js 3.7 does not come to an end over such a surface, and the page stays empty
    figure = surfaces.contour(
        searched(tmp_path, [trial(*p) for p in PLACES]), ("method.rho", "method.lam")
    )
    assert not isinstance(figure, str)
    assert [t.type for t in figure.data] == ["contour", "scatter"]
    assert figure.data[0].coloraxis is None and figure.data[0].contours.coloring == "heatmap"


def test_trials_on_a_line_are_dots_without_a_surface(tmp_path: Path) -> None:
    places = [(1 + 0.1 * i, 0.01 * 2**i) for i in range(5)]  # lam's logarithm is linear in rho
    search = searched(tmp_path, [trial(*p) for p in places])
    figure = surfaces.contour(search, ("method.rho", "method.lam"))
    assert not isinstance(figure, str)
    assert [t.type for t in figure.data] == ["scatter"]
    assert "without a surface" in surfaces.told(search, figure)


def test_too_few_or_equal_trials_are_said(tmp_path: Path) -> None:
    four = [
        *(trial(*p) for p in PLACES[:4]),
        trial(*PLACES[4], status="pruned"),
        trial(*PLACES[5], curve=[math.nan]),
    ]
    page = Page(
        search_page(
            make(tmp_path / "a", four, space=space(method_lam=LAM, method_rho=RHO)), "toy-1"
        )
    )
    assert (
        "Contour of method.rho and method.lam 4 completed trials are too few for a surface"
        in page.text
    )
    equal = searched(tmp_path / "b", [trial(*p, curve=[0.5]) for p in PLACES[:5]])
    assert surfaces.contour(equal, ("method.rho", "method.lam")) == (
        "All completed trials have the same objective: a surface would be flat."
    )


def test_without_rho_and_lam_the_two_most_important_numbers_are_drawn(tmp_path: Path) -> None:
    # the objective is alpha's square and some of lr; clip is drawn in another order, and the choice
    # is no number
    trials = [
        {
            "params": {
                "optim.clip": 0.08 * (i * 7 % 12),
                "optim.lr": 0.08 * (i * 5 % 12),
                "method.alpha": 0.08 * i,
                "model.fusion.name": "ab"[i % 2],
            },
            "curve": [(0.08 * i) ** 2 + 0.1 * (0.08 * (i * 5 % 12))],
        }
        for i in range(12)
    ]
    fusion = {"kind": "choice", "args": ["a", "b"]}
    search = searched(
        tmp_path, trials, optim_clip=LR, optim_lr=LR, method_alpha=LR, model_fusion=fusion
    )
    pair = surfaces.pair(search, study(search))
    assert pair is not None and pair[0] == "method.alpha"
    numbers = {
        "optim.lr": search.domains["search"]["optim.lr"],
        "model.fusion": search.domains["search"]["model.fusion"],
    }
    assert surfaces.pair(replace(search, domains={"search": numbers}), study(search)) is None


def test_a_grid_of_two_settings_is_a_heat_map_of_means_over_seeds() -> None:
    settings = [{"rho": r, "lam": v, "name": "same"} for r in (1.2, 0.9) for v in (0.1, 0.2)]
    values = [[0.5, 0.7], [0.6, math.nan], [math.nan], [0.1, 0.2, 0.6]]
    figure = surfaces.heat(settings, values, "test/accuracy", lower=False, best=0)
    assert figure is not None
    cells = figure.data[0]
    assert (list(cells.x), list(cells.y)) == (["0.9", "1.2"], ["0.1", "0.2"])
    assert list(cells.z[0]) == [None, pytest.approx(0.6)] and list(cells.z[1]) == pytest.approx(
        [0.3, 0.6]
    )
    std = statistics.stdev([0.1, 0.2, 0.6])
    assert list(cells.text[0]) == ["no run", "0.6000<br>± 0.1414<br>n = 2"]
    assert list(cells.text[1]) == [f"0.3000<br>± {std:.4f}<br>n = 3", "0.6000<br>n = 1"]
    frame = figure.layout.shapes[0]
    assert (frame.x0, frame.x1, frame.y0, frame.y1) == (0.5, 1.5, -0.5, 0.5)  # rho 1.2, lam 0.1


@pytest.mark.parametrize(
    "settings",
    [
        [{"rho": r} for r in (1, 2, 3)],
        [{"a": a, "b": b, "c": c} for a in (1, 2) for b in (1, 2) for c in (1, 2)],
        [{"a": a, "b": a > 1} for a in (1, 2)],
        [{"a": a, "b": b, "c": str(a)} for a, b in ((1, 1), (1, 1), (2, 2))],
        [],
    ],
)
def test_other_grids_are_no_heat_maps(settings: list[dict[str, Any]]) -> None:
    assert (
        surfaces.heat(settings, [[0.5]] * len(settings), "test/accuracy", lower=False, best=None)
        is None
    )


def test_the_page_of_a_two_dimensional_grid_shows_the_heat_map(tmp_path: Path) -> None:
    final = {"stage": "final", "curve": [0.5]}
    trials = [
        {
            **final,
            "params": {"method.rho": r, "method.lam": v},
            "tags": {"source": f"grid/{i}", "role": "grid", "seed": s},
            "metrics": {"best/val/accuracy": r + v, "test/accuracy": r * v + 0.01 * s},
        }
        for i, (r, v) in enumerate([(r, v) for r in (0.9, 1.2) for v in (0.1, 0.2)])
        for s in (1, 2)
    ]
    grid = {
        k: {"kind": "grid", "args": list(a)}
        for k, a in (("method_rho", (0.9, 1.2)), ("method_lam", (0.1, 0.2)))
    }
    text = search_page(make(tmp_path, trials, space=space(**grid)), "toy-1")
    assert "framed: best by validation" in Page(text).text
    for r, v in ((0.9, 0.1), (0.9, 0.2), (1.2, 0.1), (1.2, 0.2)):
        assert f"{r * v + 0.015:.4f}\\u003cbr" in text  # the mean over seeds 1 and 2
