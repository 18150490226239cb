"""The page of a search: what it says follows from the formulas of `tests/reports/sample_runs.py`; it is
whole, and escapes.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.reports import sample_runs
from tests.reports.pages.pages import EVIL, RHO, Page, make, objective, space
from tune_mm.errors import UserError
from tune_mm.reports.pages import search
from tune_mm.reports.pages.search_page import search_page
from tune_mm.reports.pages.study import study
from tune_mm.reports.runs.store import Reader


@pytest.fixture(scope="module")
def reader(store_root: Path) -> Reader:
    return Reader.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root)


# ---- a finished grid


def test_the_finals_of_a_grid_are_means_over_seeds_and_the_best_by_validation_is_marked(
    reader: Reader,
) -> None:
    page = Page(search_page(reader, sample_runs.ALPHAS.name))
    # test/accuracy has the mean b + 0.022 and, s and (s + i) mod 3 running together or not, one of
    # three deviations
    means = [float(cell.split(" ± ")[0]) for cell in page.column("test/accuracy", "settings")]
    assert means == pytest.approx([c.base + 0.022 for c in sample_runs.ALPHA], abs=5e-5)
    audio = [float(cell.split(" ± ")[0]) for cell in page.column("audio", "settings")]
    assert audio == pytest.approx([c.base + 0.022 - 0.1 for c in sample_runs.ALPHA], abs=5e-5)
    assert page.column("settings", "settings") == [f"alpha={a}" for a in range(1, 6)]
    assert [row[2] for row in page.marked] == ["alpha=4"]  # the base is highest at 4
    assert "Every point of the grid was run" in page.text
    assert "Nothing was tuned" in page.text


def test_the_head_says_what_was_run_on_which_data(reader: Reader) -> None:
    text = Page(search_page(reader, sample_runs.LAMBDAS.name)).text
    for words in (
        "space ablation_lambda",
        "method cggm",
        "val/accuracy (higher is better)",
        "data mosi",
        sample_runs.LAMBDAS.uid,
    ):
        assert words in text
    assert "synthetic data" in text and "say nothing about the real data" in text
    assert (
        "say nothing about the real data"
        not in Page(search_page(reader, sample_runs.ALPHAS.name)).text
    )


def test_a_value_that_is_not_finite_is_left_out_of_the_mean_and_said(reader: Reader) -> None:
    page = Page(search_page(reader, sample_runs.LAMBDAS.name))
    # the second cell's run with seed 3 is NaN: 0.62 + 0.01 s + 0.002 ((s + 1) mod 3) for s = 1, 2
    kept = [sample_runs.final(sample_runs.LAMBDA[1], 1, s) for s in (1, 2)]
    cell = page.column("test/accuracy", "settings")[1]
    assert cell.startswith(f"{sum(kept) / 2:.4f} ± ") and cell.endswith("(1 not finite)")


def test_a_page_is_whole_and_forbids_the_browser_to_fetch_anything(reader: Reader) -> None:
    text = search_page(reader, sample_runs.ALPHAS.name)
    page = Page(text)
    assert page.loads == []
    (policy,) = [content for content in page.policies if content]
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert sum(len(script) > 1e6 for script in page.scripts) == 1  # plotly.js, once
    assert len(text) < 6e6


# ---- a search that goes on


def test_a_search_that_goes_on_shows_every_trial_and_says_that_it_has_not_ended(
    reader: Reader,
) -> None:
    page = Page(search_page(reader, sample_runs.UNFINISHED.name))
    assert "The search has not ended" in page.text
    assert page.column("status", "epochs") == [t[3] for t in sample_runs.TRIALS]
    assert page.column("epochs", "status") == [str(t[2]) for t in sample_runs.TRIALS]
    values = [float(v) for v in page.column("val/accuracy", "status")]
    assert values == pytest.approx([objective(i) for i in range(8)], abs=5e-5)
    assert [float(v) for v in page.column("alpha", "status")] == [t[0] for t in sample_runs.TRIALS]
    assert "1 final run is not completed and left out" in page.text
    assert page.column("runs", "settings") == ["1"]
    assert "3 completed trials are too few for importances" in page.text
    assert (
        f"{sum(t[2] for t in sample_runs.TRIALS)} epochs were trained, of {8 * sample_runs.EPOCHS}"
        in page.text
    )


# ---- which search


def test_an_unknown_search_is_refused_with_the_nearest_name(reader: Reader) -> None:
    with pytest.raises(
        UserError,
        match=r"no 'ablation_alfa-1' in .*nearest 'ablation_alpha-1'; available: .*ablation_rho-1",
    ):
        search_page(reader, "ablation_alfa-1")


def test_of_two_searches_with_one_name_the_latest_is_shown_and_the_id_picks_the_other(
    tmp_path: Path, store_root: Path
) -> None:
    shutil.copytree(store_root, tmp_path, dirs_exist_ok=True)
    for value, uid in ((0.3, "toy-1-old"), (0.6, "toy-1-new")):
        reader = make(tmp_path, [{"params": {"optim.lr": 0.1}, "curve": [value]}], uid=uid)
    page = Page(search_page(reader, "toy-1"))
    assert "2 searches are named toy-1; this is the latest (toy-1-new)" in page.text
    assert page.column("val/accuracy", "status") == ["0.6000"]
    assert Page(search_page(reader, "toy-1-old")).column("val/accuracy", "status") == ["0.3000"]


# ---- odd searches


def test_one_trial_makes_a_page(tmp_path: Path) -> None:
    trial = {"params": {"method.rho": 1.2}, "curve": [0.4, 0.5]}
    page = Page(search_page(make(tmp_path, [trial], space=space(method_rho=RHO)), "toy-1"))
    assert page.column("val/accuracy", "status") == ["0.5000"]
    assert page.column("rho", "status") == ["1.2"]
    assert "1 completed trials are too few for importances" in page.text
    assert "No final runs." in page.text


def test_trials_without_a_finite_objective_make_a_page(tmp_path: Path) -> None:
    trials: list[dict[str, Any]] = [
        {
            "params": {"method.rho": 1.2},
            "curve": [math.nan, math.nan],
            "metrics": {"best/val/accuracy": math.nan},
        },
        {"params": {"method.rho": 1.3}, "status": "failed", "reason": "out of memory"},
    ]
    page = Page(search_page(make(tmp_path, trials, space=space(method_rho=RHO)), "toy-1"))
    assert "No trial has completed with a finite objective yet." in page.text
    assert page.column("val/accuracy", "status") == ["", ""]
    assert page.column("epochs", "status") == ["2", "0"]
    assert page.column("reason", "status") == ["", "out of memory"]


def test_settings_that_changed_on_the_way_are_shown_as_they_ended(tmp_path: Path) -> None:
    trials = [
        {"params": {"method.rho": 1.2}, "curve": [0.4], "epoch": {"hp/method.rho": 1.7}},
        {"params": {"method.rho": 1.3}, "curve": [0.5], "epoch": {"hp/method.rho": 1.1}},
    ]
    reader = make(tmp_path, trials, space=space(method_rho=RHO))
    page = Page(search_page(reader, "toy-1"))
    assert page.column("rho", "status") == ["1.7", "1.1"]
    assert "shown are those that a trial ended with" in page.text
    # 1.7 lies outside of the domain: Optuna's picture has it nevertheless
    assert [t.params["method.rho"] for t in study(search.load(reader, "toy-1")).trials] == [
        1.7,
        1.1,
    ]


def test_conditional_settings_and_choices_are_read_as_the_space_states_them(tmp_path: Path) -> None:
    domains: dict[str, Mapping[str, Any]] = {
        "optim_name": {"kind": "choice", "args": ["adam", "sgd"]},
        "optim_momentum": {
            "kind": "quniform",
            "args": [0.5, 0.9, 0.1],
            "when": {"optim.name": ["sgd"]},
        },
        "method_magnitude": {"kind": "choice", "args": [True, False]},
        "model_fusion": {"kind": "choice", "args": ["sum", None]},
        "train_batch_size": {"kind": "randint", "args": [8, 64]},
    }
    base = {"method.magnitude": False, "model.fusion.name": None, "train.batch_size": 16}
    trials = [
        {"params": {**base, "optim.name": "adam"}, "curve": [0.2]},
        {
            "params": {**base, "optim.name": "sgd", "optim.momentum": 0.7},
            "curve": [0.9],
            "status": "pruned",
        },
        {"params": {**base, "optim.name": "sgd", "optim.momentum": 0.6}, "curve": [0.3]},
    ]
    reader = make(tmp_path, trials, space=space(**domains))
    drawn = [t.params for t in study(search.load(reader, "toy-1")).trials]
    common = {"method.magnitude": False, "model.fusion": None, "train.batch_size": 16}
    assert drawn[0] == {**common, "optim.name": "adam"}
    assert drawn[1] == {**common, "optim.name": "sgd", "optim.momentum": 0.7}
    page = Page(search_page(reader, "toy-1"))
    assert page.column("momentum", "status") == ["", "0.7", "0.6"]
    assert [row[1] for row in page.marked] == [
        "2"
    ]  # the pruned trial's 0.9 does not count as the best


def test_the_gain_and_groups_are_those_of_the_summary(tmp_path: Path) -> None:
    def group(source: str, role: str, value: float, **settings: float) -> dict[str, Any]:
        test = {
            str(s): {"test/accuracy": value + 0.01 * s, "test/accuracy/audio": 0.1}
            for s in (1, 2, 3)
        }
        return {
            "source": source,
            "role": role,
            "settings": settings,
            "val": {"1": value, "2": value},
            "test": test,
        }

    gain = {
        "metric": "test/accuracy",
        "mean": 0.125,
        "std": 0.01,
        "n": 3,
        "interval95": [-0.01, 0.26],
    }
    groups = [
        group("search/0", "tuned", 0.7, rho=1.25),
        group("baseline/2", "baseline", 0.9, lr=0.1),
    ]
    summary = json.dumps({"finals": {"groups": groups, "gain": gain}, "seconds": 3725})
    trial = {"params": {"method.rho": 1.25}, "curve": [0.4]}
    page = Page(
        search_page(make(tmp_path, [trial], space=space(method_rho=RHO), summary=summary), "toy-1")
    )
    assert (
        "Gain over the tuned baseline: +0.1250 ± 0.0100 test/accuracy, 3 paired seeds" in page.text
    )
    assert "zero lies within: no difference is shown" in page.text
    assert page.column("test/accuracy", "settings") == ["0.7200 ± 0.0100", "0.9200 ± 0.0100"]
    assert page.column("settings", "from") == ["rho=1.25", "lr=0.1"]
    assert page.marked[0][0] == "search 0"  # the baseline never wins
    assert "took 1 h 2 min 5 s" in page.text


def test_broken_files_of_a_search_are_said_and_its_runs_shown_nevertheless(tmp_path: Path) -> None:
    trial = {"params": {"method.rho": 1.25}, "curve": [0.4]}
    final = {
        "stage": "final",
        "params": {},
        "tags": {"source": "search/0", "role": "tuned"},
        "metrics": {"best/val/accuracy": 0.5, "test/accuracy": 0.25},
    }
    reader = make(
        tmp_path,
        [trial, final],
        summary='{"finals": {"groups": [{"source": 1}]}}',
        space="{",
        data="[1]",
    )
    page = Page(search_page(reader, "toy-1"))
    assert "space.json of the search cannot be read" in page.text
    assert page.column("test/accuracy", "settings") == ["0.2500"]


def test_what_comes_from_runs_is_escaped_everywhere(tmp_path: Path) -> None:
    domain = {"kind": "choice", "args": [EVIL, "b"]}
    trials = [
        {
            "params": {"model.fusion.name": EVIL},
            "curve": [0.5],
            "reason": EVIL,
            "tags": {"method": EVIL},
        },
        {"params": {"model.fusion.name": "b"}, "curve": [0.6]},
        {"params": {"model.fusion.name": EVIL}, "curve": [0.4], "status": "pruned"},
        {
            "params": {},
            "stage": "final",
            "tags": {"source": EVIL, "role": EVIL},
            "curve": [0.5],
            "metrics": {"best/val/accuracy": 0.5, "test/accuracy": 0.5},
        },
    ]
    reader = make(
        tmp_path,
        trials,
        name=EVIL,
        space=space(model_fusion=domain),
        data=json.dumps({"samples": {EVIL: 1}}),
    )
    text = search_page(reader, EVIL)
    assert "<script>alert" not in text
    page = Page(text)
    assert page.text.startswith(f"{EVIL} · tune_mm {EVIL}")  # title and heading
    assert EVIL in page.column("fusion", "status") and EVIL in page.column("reason", "status")
    assert not [s for s in page.scripts if re.match(r"\s*alert", s)]
