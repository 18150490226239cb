"""The study and the figures of a search's page: what is drawn follows from the formulas of
`tests/reports/sample_runs.py`.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.reports import sample_runs
from tests.reports.pages.pages import RHO, make, objective, space
from tune_mm.reports.pages import epochs as epochss
from tune_mm.reports.pages import plots
from tune_mm.reports.pages import search as searches
from tune_mm.reports.pages.study import distribution, study
from tune_mm.reports.runs.store import Reader


@pytest.fixture(scope="module")
def reader(store_root: Path) -> Reader:
    return Reader.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root)


def test_the_study_has_the_trials_states_values_and_settings(reader: Reader) -> None:
    search = searches.load(reader, sample_runs.UNFINISHED.name)
    one = study(search)
    states = {
        "completed": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
    }
    assert [t.state for t in one.trials] == [
        states.get(t[3], TrialState.RUNNING) for t in sample_runs.TRIALS
    ]
    assert [t.params for t in one.trials] == [
        {"method.alpha": t[0], "optim.lr": t[1]} for t in sample_runs.TRIALS
    ]
    assert one.best_trial.number == 4 and one.best_value == pytest.approx(objective(4))
    best = search.best()
    assert best is not None and best.number == 4
    learned = one.trials[0].intermediate_values
    assert list(learned) == [1, 2, 3, 4, 5] and learned[2] == pytest.approx(objective(0) * 2 / 5)


def test_the_history_draws_the_best_so_far_of_completed_trials_and_crosses_for_pruned_ones(
    reader: Reader,
) -> None:
    figure = plots.history(searches.load(reader, sample_runs.UNFINISHED.name))
    traces = {t.name: t for t in figure.data}
    line = traces["best so far, search (dgl)"]
    assert line.y[0] == pytest.approx(objective(0))
    assert line.y[-1] == pytest.approx(objective(4))
    crosses = traces["pruned, search (dgl)"]
    assert list(crosses.x) == [1, 3, 5]
    assert list(crosses.y) == pytest.approx([objective(i) for i in (1, 3, 5)])


def test_early_stopping_shows_how_long_each_trial_lived(reader: Reader) -> None:
    bars = {
        t.name: t
        for t in plots.lives(searches.load(reader, sample_runs.UNFINISHED.name)).data
        if t.type == "bar"
    }
    assert {t.width for t in bars.values()} == {
        0.8
    }  # plotly's own width grows with the gaps: bars would overlap
    assert {name: (list(t.x), list(t.y)) for name, t in bars.items()} == {
        "completed": ([0, 2, 4], [5, 5, 5]),
        "pruned": ([1, 3, 5], [1, 1, 3]),
        "failed": ([6], [2]),
        "running": ([7], [2]),
    }


def test_curves_are_means_over_seeds_by_modality_and_loss(reader: Reader) -> None:
    search = searches.load(reader, sample_runs.ALPHAS.name)
    records = [r for r in search.finals if r.tags["source"] == "grid/0"]
    names = [
        "val/accuracy",
        "val/accuracy/visual",
        "grad/norm_multi/visual",
        "grad/norm_uni/visual",
    ]
    figure = epochss.curves("val/accuracy", {"one": [reader.curves(r, names) for r in records]})
    lines = {(t.name, t.line.dash, t.yaxis): list(t.y) for t in figure.data if t.mode == "lines"}
    mean = sample_runs.ALPHA[0].base + 0.022
    epochs = range(1, sample_runs.EPOCHS + 1)
    assert lines["all together", "solid", "y"] == pytest.approx([mean * e / 5 for e in epochs])
    assert lines["visual", "solid", "y"] == pytest.approx([(mean - 0.2) * e / 5 for e in epochs])
    assert lines["visual", "solid", "y2"] == pytest.approx(
        [1 / e for e in epochs]
    )  # (m + 1) / 2e, visual: m = 1
    assert lines["visual", "dash", "y2"] == pytest.approx([4 / e for e in epochs])


def test_importances_of_enough_trials_name_what_matters(tmp_path: Path) -> None:
    # the objective is rho alone; lr is noise
    rhos = [1.0 + 0.02 * i for i in range(24)]
    trials = [
        {"params": {"method.rho": r, "optim.lr": 0.1 + 0.01 * (i * 7 % 24)}, "curve": [r - 1]}
        for i, r in enumerate(rhos)
    ]
    lr = {"kind": "uniform", "args": [0.1, 0.4]}
    search = searches.load(
        make(tmp_path, trials, space=space(method_rho=RHO, optim_lr=lr)), "toy-1"
    )
    figure = plots.importances(search, study(search))
    assert not isinstance(figure, str)
    weights = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
    assert (
        set(weights) == {"method.rho", "optim.lr"}
        and weights["method.rho"] > 2 * weights["optim.lr"]
    )


def test_a_domain_is_widened_to_what_was_seen() -> None:
    wide = distribution(searches.SearchedDomain("loguniform", (0.01, 1.0)), [0.005, 2.0])
    assert (wide.low, wide.high, wide.log) == (0.005, 2.0, True)  # type: ignore[attr-defined]
    more = distribution(searches.SearchedDomain("choice", ("a", "b")), ["c"])
    assert more.choices == ("a", "b", "c")  # type: ignore[attr-defined]


def test_averages_leave_out_what_is_not_finite() -> None:
    one, two = [(1, 1.0), (2, math.nan), (3, 0.0)], [(1, 3.0), (2, 5.0)]
    epochs, mean, std = epochss.averaged([one, two])
    assert (epochs, list(mean)) == ([1, 2, 3], [2.0, 5.0, 0.0])
    assert list(std) == pytest.approx([math.sqrt(2), 0.0, 0.0])
    assert epochss.averaged([one, two], positive=True)[0] == [1, 2]
