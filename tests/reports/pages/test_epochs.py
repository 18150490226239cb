"""Figures over epochs and of groups of final runs, and what a page says of settings that change in
training.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.reports.pages.pages import EVIL, RHO, Page, make, space
from tune_mm.reports.pages import epochs
from tune_mm.reports.pages import search as searches
from tune_mm.reports.pages.points import axis, points
from tune_mm.reports.pages.search_page import search_page
from tune_mm.reports.runs.store import Reader
from tune_mm.track import Store, Writer

LR = {"kind": "loguniform", "args": [0.001, 0.1]}
FUSION = {"kind": "choice", "args": ["a", "b"]}


def population(root: Path) -> Reader:
    """Trial n of 3 has rho 1 + 0.1 n until epoch 2 and 1.05 + 0.1 n from epoch 3 on; lr 0.01 (n +
    1) and then a tenth; its objective at epoch e is 0.1 n + 0.05 e.
    """
    store = Store.open(f"sqlite:///{root}/mlruns/mlflow.db", root)
    with Writer(store, "toy", search="toy-1-0000") as writer:
        tags = {
            "stage": "search",
            "search": "toy-1",
            "objective": "val/accuracy",
            "data_kind": "real",
            "seed": 0,
            "dataset": EVIL,
        }
        parent = writer.start("toy-1", {"scheduler": "pbt"}, tags, key="search")
        writer.artifact(
            parent, space(method_rho=RHO, optim_lr=LR, model_fusion=FUSION), "space.json"
        )
        for n in range(3):
            params = {
                "method.rho": 1 + 0.1 * n,
                "optim.lr": 0.01 * (n + 1),
                "model.fusion.name": "ab"[n % 2],
            }
            run = writer.start(
                f"search {n}", params, {**tags, "trial": n}, parent=parent, key=f"search/{n}"
            )
            for e in range(1, 5):
                rho, lr = 1 + 0.1 * n + 0.05 * (e > 2), 0.01 * (n + 1) / (10 if e > 2 else 1)
                value = 0.1 * n + 0.05 * e
                writer.log(run, {"objective": value, "hp/method.rho": rho, "hp/optim.lr": lr}, e)
            writer.finish(run, "completed")
        writer.finish(parent, "completed")
    return Reader.open(store.uri, root)


def test_settings_that_change_are_a_panel_each_and_a_line_per_trial(tmp_path: Path) -> None:
    reader = population(tmp_path)
    search = searches.load(reader, "toy-1")
    assert epochs.changed(search) == [
        "method.rho",
        "optim.lr",
    ]  # as the space has them; the fusion is not logged
    names = ["hp/method.rho", "hp/optim.lr"]
    found = [(t, reader.curves(t.record, names)) for t in search.trials["search"]]
    figure = epochs.schedules(search, found)
    assert [a.text for a in figure.layout.annotations] == ["method.rho", "optim.lr"]
    lines = {(t.name, t.yaxis): t for t in figure.data if t.mode == "lines"}
    assert len(lines) == 6
    for n in range(3):
        rho, lr = lines[f"trial {n}", "y"], lines[f"trial {n}", "y2"]
        # what an epoch was trained with holds from the end of the one before it
        assert list(rho.x) == [0, 1, 2, 3, 4] and rho.line.shape == "vh"
        assert list(rho.y) == pytest.approx([1 + 0.1 * n + 0.05 * (e > 2) for e in (1, 1, 2, 3, 4)])
        assert list(lr.y)[-1] == pytest.approx(0.001 * (n + 1))
    assert (figure.layout.yaxis.type, figure.layout.yaxis2.type) == (None, "log")
    widths = [lines[f"trial {n}", "y"].line.width for n in range(3)]
    assert max(widths) == widths[2] > widths[1] == widths[0]  # trial 2 is the best


def test_a_page_says_which_of_the_changing_settings_it_shows(tmp_path: Path) -> None:
    page = Page(search_page(population(tmp_path), "toy-1"))
    assert "Settings over time" in page.text and "Population-based training stops none" in page.text
    assert "shown as drawn at the start everywhere: model.fusion" in page.text
    assert (
        page.text.count("shown are those that a trial ended with") == 3
    )  # parallel coordinates, slices, table
    assert [float(v) for v in page.column("rho", "status")] == pytest.approx([1.05, 1.15, 1.25])
    assert f"Data: {EVIL}, real." in page.text


def test_a_page_of_fixed_settings_says_nothing_of_population_based_training(tmp_path: Path) -> None:
    trials = [{"params": {"method.rho": 1.0 + 0.1 * i}, "curve": [0.1 * i]} for i in range(3)]
    text = Page(search_page(make(tmp_path, trials, space=space(method_rho=RHO)), "toy-1")).text
    assert (
        "Settings over time" not in text
        and "opulation-based" not in text
        and "ended with" not in text
    )


def test_groups_that_differ_in_one_number_are_drawn_over_it_in_order() -> None:
    settings = [{"alpha": 2.0, "on": True}, {"alpha": 1.0, "on": True}, {"alpha": 4.0, "on": True}]
    figure = points(settings, {"all": [[0.5, 0.7], [0.4], [math.nan]]}, "test/accuracy")
    (line,) = figure.data
    assert list(line.x) == [1.0, 2.0, 4.0] and line.mode == "lines+markers"
    assert list(line.y)[:2] == pytest.approx([0.4, 0.6]) and line.y[2] is None
    assert list(line.error_y.array) == pytest.approx([0.0, math.sqrt(0.02), 0.0])  # of 0.5 and 0.7


def test_other_groups_are_listed_and_not_joined() -> None:
    settings: list[dict[str, Any]] = [{"a": True, "name": EVIL}, {"a": False, "name": "x"}]
    assert axis(settings) is None and axis([{"a": 1}, {"a": 1}]) is None
    figure = points(settings, {"all": [[0.5], [0.4]], "audio": [[0.1], [0.2]]}, "test/accuracy")
    assert [t.mode for t in figure.data] == ["markers", "markers"]
    assert [list(t.x) for t in figure.data] == [[0.5, 0.4], [0.1, 0.2]]
    # side by side within half of a group's place, and named by it
    assert [round(y) for t in figure.data for y in t.y] == [0, 1, 0, 1] and figure.data[
        0
    ].y != figure.data[1].y
    assert "<script>" not in str(figure.layout.yaxis.ticktext)
