"""Pages: what they say follows from the formulas of `tests/reports/runs.py`, they are whole, and they escape."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.reports import runs
from tune_mm.errors import ConfigError, UserError
from tune_mm.reports import _plots as P
from tune_mm.reports import _search as S
from tune_mm.reports._study import distribution, study
from tune_mm.reports.figures import Figure, sweep
from tune_mm.reports.paper_page import paper_page
from tune_mm.reports.search_page import search_page
from tune_mm.reports.select import Choice
from tune_mm.reports.spec import Column, Row, Series, SweepReport, TableReport
from tune_mm.reports.store import Reader
from tune_mm.reports.tables import Table, build
from tune_mm.track import Store, Writer

EVIL = "<script>alert('x')</script>"


class Page(HTMLParser):
    """What a reader sees: text, rows of the tables (with the marked ones), and what the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.marked: list[list[str]] = []
        self.loads: list[str] = []
        self.scripts: list[str] = []
        self.policies: list[str | None] = []
        self._inside: list[str] = []
        self._mark = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [f"{k}={v}" for k, v in attrs if k in ("src", "href", "srcset", "action")]
        if ("http-equiv", "Content-Security-Policy") in attrs:
            self.policies.append(dict(attrs)["content"])
        self._inside.append(tag)
        if tag == "tr":
            self.rows.append([])
            self._mark = ("class", "best") in attrs
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass
        if tag == "tr" and self._mark:
            self.marked.append(self.rows[-1])

    def handle_data(self, data: str) -> None:
        if "script" in self._inside:
            self.scripts[-1] += data
        elif "style" not in self._inside:
            self.words.append(data)
            if {"td", "th"} & set(self._inside):
                self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def column(self, heading: str, table: str) -> list[str]:
        """The cells under a heading of the table that has the heading `table`."""
        starts = [i for i, row in enumerate(self.rows) if table in row and heading in row]
        head = self.rows[starts[0]]
        rest = self.rows[starts[0] + 1 :]
        end = next((i for i, row in enumerate(rest) if len(row) != len(head)), len(rest))
        return [row[head.index(heading)] for row in rest[:end]]


@pytest.fixture(scope="module")
def reader(store_root: Path) -> Reader:
    return Reader.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root)


def make(
    root: Path, trials: Sequence[Mapping[str, Any]], *, name: str = "toy-1", uid: str = "toy-1-0000", **files: str
) -> Reader:
    """A store with one search of the space `toy`. A trial: params, curve (the objective), status, tags, metrics.

    files: artifacts of the parent run, by name without `.json`.
    """
    store = Store.open(f"sqlite:///{root}/mlruns/mlflow.db", root)
    with Writer(store, "toy", search=uid) as writer:
        tags = {"stage": "search", "search": name, "objective": "val/accuracy", "data_kind": "synthetic", "seed": 0}
        parent = writer.start(name, {"method": "cggm"}, tags, key="search")
        for file, text in files.items():
            writer.artifact(parent, text, f"{file}.json")
        for number, trial in enumerate(trials):
            stage = trial.get("stage", "search")
            own = {**tags, "method": "cggm", "stage": stage, "trial": number, **trial.get("tags", {})}
            run = writer.start(f"{stage} {number}", trial["params"], own, parent=parent, key=f"{stage}/{number}")
            for epoch, value in enumerate(trial.get("curve", []), start=1):
                values = {"objective": value, "val/accuracy": value, "val/accuracy/audio": value / 2}
                writer.log(run, {**values, **trial.get("epoch", {})}, epoch)
            writer.log(run, trial.get("metrics", {}), len(trial.get("curve", [])))
            writer.finish(run, trial.get("status", "completed"), trial.get("reason", ""))
        writer.finish(parent, "completed")
    return Reader.open(store.uri, root)


def space(**domains: Mapping[str, Any]) -> str:
    """A space.json. Keys: dots as underscores."""
    stated = {k.replace("_", ".", 1): v for k, v in domains.items()}
    return json.dumps({"objective": "val/accuracy", "mode": "max", "domains": {"search": stated}})


# ---- a finished grid


def test_the_finals_of_a_grid_are_means_over_seeds_and_the_best_by_validation_is_marked(reader: Reader) -> None:
    page = Page(search_page(reader, runs.ALPHAS.name))
    # test/accuracy has the mean b + 0.022 and, s and (s + i) mod 3 running together or not, one of three deviations
    means = [float(cell.split(" ± ")[0]) for cell in page.column("test/accuracy", "settings")]
    assert means == pytest.approx([c.base + 0.022 for c in runs.ALPHA], abs=5e-5)
    audio = [float(cell.split(" ± ")[0]) for cell in page.column("audio", "settings")]
    assert audio == pytest.approx([c.base + 0.022 - 0.1 for c in runs.ALPHA], abs=5e-5)
    assert page.column("settings", "settings") == [f"alpha={a}" for a in range(1, 6)]
    assert [row[2] for row in page.marked] == ["alpha=4"]  # the base is highest at 4
    assert "Every point of the grid was run" in page.text
    assert "Nothing was tuned" in page.text


def test_the_head_says_what_was_run_on_which_data(reader: Reader) -> None:
    text = Page(search_page(reader, runs.LAMBDAS.name)).text
    for words in (
        "space ablation_lambda",
        "method cggm",
        "val/accuracy (higher is better)",
        "data mosi",
        runs.LAMBDAS.uid,
    ):
        assert words in text
    assert "synthetic data" in text and "say nothing about the real data" in text
    assert "say nothing about the real data" not in Page(search_page(reader, runs.ALPHAS.name)).text


def test_a_value_that_is_not_finite_is_left_out_of_the_mean_and_said(reader: Reader) -> None:
    page = Page(search_page(reader, runs.LAMBDAS.name))
    # the second cell's run with seed 3 is NaN: 0.62 + 0.01 s + 0.002 ((s + 1) mod 3) for s = 1, 2
    kept = [runs.final(runs.LAMBDA[1], 1, s) for s in (1, 2)]
    cell = page.column("test/accuracy", "settings")[1]
    assert cell.startswith(f"{sum(kept) / 2:.4f} ± ") and cell.endswith("(1 not finite)")


def test_a_page_is_whole_and_forbids_the_browser_to_fetch_anything(reader: Reader) -> None:
    text = search_page(reader, runs.ALPHAS.name)
    page = Page(text)
    assert page.loads == []
    (policy,) = [content for content in page.policies if content]
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert sum(len(script) > 1e6 for script in page.scripts) == 1  # plotly.js, once
    assert len(text) < 6e6


# ---- a search that goes on


def objective(number: int) -> float:
    """The best objective of a trial of the unfinished search: that of its last epoch."""
    alpha, _, epochs, _ = runs.TRIALS[number]
    return (0.77 - 0.02 * abs(alpha - 3)) * epochs / runs.EPOCHS


def test_a_search_that_goes_on_shows_every_trial_and_says_that_it_has_not_ended(reader: Reader) -> None:
    page = Page(search_page(reader, runs.UNFINISHED.name))
    assert "The search has not ended" in page.text
    assert page.column("status", "epochs") == [t[3] for t in runs.TRIALS]
    assert page.column("epochs", "status") == [str(t[2]) for t in runs.TRIALS]
    values = [float(v) for v in page.column("val/accuracy", "status")]
    assert values == pytest.approx([objective(i) for i in range(8)], abs=5e-5)
    assert [float(v) for v in page.column("alpha", "status")] == [t[0] for t in runs.TRIALS]
    assert "1 final runs are not completed and are left out" in page.text
    assert page.column("runs", "settings") == ["1"]
    assert "3 completed trials are too few for importances" in page.text
    assert f"{sum(t[2] for t in runs.TRIALS)} epochs were trained, of {8 * runs.EPOCHS}" in page.text


def test_the_study_has_the_trials_states_values_and_settings(reader: Reader) -> None:
    search = S.load(reader, runs.UNFINISHED.name)
    one = study(search)
    states = {"completed": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    assert [t.state for t in one.trials] == [states.get(t[3], TrialState.RUNNING) for t in runs.TRIALS]
    assert [t.params for t in one.trials] == [{"method.alpha": t[0], "optim.lr": t[1]} for t in runs.TRIALS]
    assert one.best_trial.number == 4 and one.best_value == pytest.approx(objective(4))
    best = search.best()
    assert best is not None and best.number == 4
    learned = one.trials[0].intermediate_values
    assert list(learned) == [1, 2, 3, 4, 5] and learned[2] == pytest.approx(objective(0) * 2 / 5)


def test_the_history_draws_the_best_so_far_of_completed_trials_and_crosses_for_pruned_ones(reader: Reader) -> None:
    figure = P.history(S.load(reader, runs.UNFINISHED.name))
    traces = {t.name: t for t in figure.data}
    line = traces["best so far, search (dgl)"]
    assert line.y[0] == pytest.approx(objective(0))
    assert line.y[-1] == pytest.approx(objective(4))
    crosses = traces["pruned, search (dgl)"]
    assert list(crosses.x) == [1, 3, 5]
    assert list(crosses.y) == pytest.approx([objective(i) for i in (1, 3, 5)])


def test_early_stopping_shows_how_long_each_trial_lived(reader: Reader) -> None:
    bars = {t.name: t for t in P.lives(S.load(reader, runs.UNFINISHED.name)).data if t.type == "bar"}
    assert {name: (list(t.x), list(t.y)) for name, t in bars.items()} == {
        "completed": ([0, 2, 4], [5, 5, 5]),
        "pruned": ([1, 3, 5], [1, 1, 3]),
        "failed": ([6], [2]),
        "running": ([7], [2]),
    }


def test_curves_are_means_over_seeds_by_modality_and_loss(reader: Reader) -> None:
    search = S.load(reader, runs.ALPHAS.name)
    records = [r for r in search.finals if r.tags["source"] == "grid/0"]
    names = ["val/accuracy", "val/accuracy/visual", "grad/norm_multi/visual", "grad/norm_uni/visual"]
    figure = P.curves("val/accuracy", {"one": [reader.curves(r, names) for r in records]})
    lines = {(t.name, t.line.dash, t.yaxis): list(t.y) for t in figure.data if t.mode == "lines"}
    mean = runs.ALPHA[0].base + 0.022
    epochs = range(1, runs.EPOCHS + 1)
    assert lines["all together", "solid", "y"] == pytest.approx([mean * e / 5 for e in epochs])
    assert lines["visual", "solid", "y"] == pytest.approx([(mean - 0.2) * e / 5 for e in epochs])
    assert lines["visual", "solid", "y2"] == pytest.approx([1 / e for e in epochs])  # (m + 1) / 2e, visual: m = 1
    assert lines["visual", "dash", "y2"] == pytest.approx([4 / e for e in epochs])


# ---- which search


def test_an_unknown_search_is_refused_with_the_nearest_name(reader: Reader) -> None:
    with pytest.raises(
        UserError, match=r"no 'ablation_alfa-1' in .*nearest 'ablation_alpha-1'; available: .*ablation_rho-1"
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

RHO = {"kind": "uniform", "args": [1.0, 1.5]}


def test_one_trial_makes_a_page(tmp_path: Path) -> None:
    trial = {"params": {"method.rho": 1.2}, "curve": [0.4, 0.5]}
    page = Page(search_page(make(tmp_path, [trial], space=space(method_rho=RHO)), "toy-1"))
    assert page.column("val/accuracy", "status") == ["0.5000"]
    assert page.column("rho", "status") == ["1.2"]
    assert "1 completed trials are too few for importances" in page.text
    assert "No final runs." in page.text


def test_trials_without_a_finite_objective_make_a_page(tmp_path: Path) -> None:
    trials: list[dict[str, Any]] = [
        {"params": {"method.rho": 1.2}, "curve": [math.nan, math.nan], "metrics": {"best/val/accuracy": math.nan}},
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
    assert "changes settings on the way" in page.text
    # 1.7 lies outside of the domain: Optuna's picture has it nevertheless
    assert [t.params["method.rho"] for t in study(S.load(reader, "toy-1")).trials] == [1.7, 1.1]


def test_conditional_settings_and_choices_are_read_as_the_space_states_them(tmp_path: Path) -> None:
    domains: dict[str, Mapping[str, Any]] = {
        "optim_name": {"kind": "choice", "args": ["adam", "sgd"]},
        "optim_momentum": {"kind": "quniform", "args": [0.5, 0.9, 0.1], "when": {"optim.name": ["sgd"]}},
        "method_magnitude": {"kind": "choice", "args": [True, False]},
        "model_fusion": {"kind": "choice", "args": ["sum", None]},
        "train_batch_size": {"kind": "randint", "args": [8, 64]},
    }
    base = {"method.magnitude": False, "model.fusion.name": None, "train.batch_size": 16}
    trials = [
        {"params": {**base, "optim.name": "adam"}, "curve": [0.2]},
        {"params": {**base, "optim.name": "sgd", "optim.momentum": 0.7}, "curve": [0.9], "status": "pruned"},
        {"params": {**base, "optim.name": "sgd", "optim.momentum": 0.6}, "curve": [0.3]},
    ]
    reader = make(tmp_path, trials, space=space(**domains))
    drawn = [t.params for t in study(S.load(reader, "toy-1")).trials]
    common = {"method.magnitude": False, "model.fusion": None, "train.batch_size": 16}
    assert drawn[0] == {**common, "optim.name": "adam"}
    assert drawn[1] == {**common, "optim.name": "sgd", "optim.momentum": 0.7}
    page = Page(search_page(reader, "toy-1"))
    assert page.column("momentum", "status") == ["", "0.7", "0.6"]
    assert [row[1] for row in page.marked] == ["2"]  # the pruned trial's 0.9 does not count as the best


def test_importances_of_enough_trials_name_what_matters(tmp_path: Path) -> None:
    # the objective is rho alone; lr is noise
    rhos = [1.0 + 0.02 * i for i in range(24)]
    trials = [
        {"params": {"method.rho": r, "optim.lr": 0.1 + 0.01 * (i * 7 % 24)}, "curve": [r - 1]}
        for i, r in enumerate(rhos)
    ]
    lr = {"kind": "uniform", "args": [0.1, 0.4]}
    search = S.load(make(tmp_path, trials, space=space(method_rho=RHO, optim_lr=lr)), "toy-1")
    figure = P.importances(search, study(search))
    assert not isinstance(figure, str)
    weights = dict(zip(figure.data[0].y, figure.data[0].x, strict=True))
    assert set(weights) == {"method.rho", "optim.lr"} and weights["method.rho"] > 2 * weights["optim.lr"]


def test_the_gain_and_groups_are_those_of_the_summary(tmp_path: Path) -> None:
    def group(source: str, role: str, value: float, **settings: float) -> dict[str, Any]:
        test = {str(s): {"test/accuracy": value + 0.01 * s, "test/accuracy/audio": 0.1} for s in (1, 2, 3)}
        return {"source": source, "role": role, "settings": settings, "val": {"1": value, "2": value}, "test": test}

    gain = {"metric": "test/accuracy", "mean": 0.125, "std": 0.01, "n": 3, "interval95": [-0.01, 0.26]}
    groups = [group("search/0", "tuned", 0.7, rho=1.25), group("baseline/2", "baseline", 0.9, lr=0.1)]
    summary = json.dumps({"finals": {"groups": groups, "gain": gain}, "seconds": 3725})
    trial = {"params": {"method.rho": 1.25}, "curve": [0.4]}
    page = Page(search_page(make(tmp_path, [trial], space=space(method_rho=RHO), summary=summary), "toy-1"))
    assert "Gain over the tuned baseline: +0.1250 ± 0.0100 test/accuracy, 3 paired seeds" in page.text
    assert "zero lies within: no difference is shown" in page.text
    assert page.column("test/accuracy", "settings") == ["0.7200 ± 0.0100", "0.9200 ± 0.0100"]
    assert page.column("settings", "from") == ["rho=1.25", "lr=0.1"]
    assert page.marked[0][0] == "search 0"  # the baseline never wins
    assert "took 1 h 2 min 5 s" in page.text


def test_broken_files_of_a_search_are_said_and_its_runs_shown_nevertheless(tmp_path: Path) -> None:
    trial = {"params": {"method.rho": 1.25}, "curve": [0.4]}
    final = {"stage": "final", "params": {}, "tags": {"source": "search/0", "role": "tuned"},
             "metrics": {"best/val/accuracy": 0.5, "test/accuracy": 0.25}}  # fmt: skip
    reader = make(tmp_path, [trial, final], summary='{"finals": {"groups": [{"source": 1}]}}', space="{", data="[1]")
    page = Page(search_page(reader, "toy-1"))
    assert "space.json of the search cannot be read" in page.text
    assert page.column("test/accuracy", "settings") == ["0.2500"]


def test_what_comes_from_runs_is_escaped_everywhere(tmp_path: Path) -> None:
    domain = {"kind": "choice", "args": [EVIL, "b"]}
    trials = [
        {"params": {"model.fusion.name": EVIL}, "curve": [0.5], "reason": EVIL, "tags": {"method": EVIL}},
        {"params": {"model.fusion.name": "b"}, "curve": [0.6]},
        {"params": {"model.fusion.name": EVIL}, "curve": [0.4], "status": "pruned"},
        {"params": {}, "stage": "final", "tags": {"source": EVIL, "role": EVIL}, "curve": [0.5],
         "metrics": {"best/val/accuracy": 0.5, "test/accuracy": 0.5}},
    ]  # fmt: skip
    reader = make(
        tmp_path, trials, name=EVIL, space=space(model_fusion=domain), data=json.dumps({"samples": {EVIL: 1}})
    )
    text = search_page(reader, EVIL)
    assert "<script>alert" not in text
    page = Page(text)
    assert page.text.startswith(f"{EVIL} · tune_mm {EVIL}")  # title and heading
    assert EVIL in page.column("fusion", "status") and EVIL in page.column("reason", "status")
    assert not [s for s in page.scripts if re.match(r"\s*alert", s)]


def test_a_domain_is_widened_to_what_was_seen() -> None:
    wide = distribution(S.Domain("loguniform", (0.01, 1.0)), [0.005, 2.0])
    assert (wide.low, wide.high, wide.log) == (0.005, 2.0, True)  # type: ignore[attr-defined]
    more = distribution(S.Domain("choice", ("a", "b")), ["c"])
    assert more.choices == ("a", "b", "c")  # type: ignore[attr-defined]


def test_averages_leave_out_what_is_not_finite() -> None:
    one, two = [(1, 1.0), (2, math.nan), (3, 0.0)], [(1, 3.0), (2, 5.0)]
    epochs, mean, std = P.averaged([one, two])
    assert (epochs, list(mean)) == ([1, 2, 3], [2.0, 5.0, 0.0])
    assert list(std) == pytest.approx([math.sqrt(2), 0.0, 0.0])
    assert P.averaged([one, two], positive=True)[0] == [1, 2]


# ---- a paper


def truncation(reader: Reader, **changes: Any) -> Table:
    """DGL's Table 3 on the runs of NEWER, in per cent: truncation of both losses' gradients by row."""
    cells = (
        ("no", False, False, 67.1),
        ("multi", True, False, None),
        ("uni", False, True, None),
        ("both", True, True, 76.1),
    )
    rows = tuple(
        Row(
            label=name,
            where={"method.truncate_multimodal": multi, "method.truncate_unimodal": uni},
            published={"all": value} if value else {},
        )
        for name, multi, uni, value in cells
    )
    columns = (
        Column(label="all", metric="test/accuracy", scale=100),
        Column(label="rgb", metric="test/accuracy/rgb", group="alone", scale=100),
    )
    given: dict[str, Any] = {
        "title": "Truncation", "paper": "dgl", "source": "Table 3", "data": "avdigits", "where": {"method": "dgl"},
        "fill": ("python -m tune_mm.search --space ablation_truncation",), "reference": "no", "rows": rows,
        "columns": columns,
    }  # fmt: skip
    report = TableReport(**{**given, **changes})
    return build(report, reader.records(), Choice(data=None, since=None, run=runs.NEWER.name), "dgl_table3")


def alpha(reader: Reader, title: str = "Weight of the unimodal losses", data: str = "avdigits") -> Figure:
    """DGL's Table 4 as a curve, on the runs of ALPHAS."""
    report = SweepReport(
        title=title, paper="dgl", source="Table 4", data=data, x="method.alpha", metric="test/accuracy",
        label="accuracy", fill=("python -m tune_mm.search --space ablation_alpha --set data={data}",), gain=False,
        series=(Series(label="DGL", where={"method": "dgl"}),), where={"space": "ablation_alpha"},
    )  # fmt: skip
    return sweep(report, reader.records(), reader, Choice(data=None, since=None, run=None), "dgl_alpha")


def test_a_papers_page_shows_our_values_marked_beside_the_papers(reader: Reader) -> None:
    text = paper_page("dgl", [truncation(reader)], [], "sqlite:///x.db")
    page = Page(text)
    # the mean over seeds of 100 (b + 0.01 s + 0.002 ((s + i) mod 3)) is 100 b + 2.2
    ours = [float(cell.split(" ± ")[0]) for cell in page.column("all", "all")[:4]]
    assert ours == pytest.approx([100 * c.base + 2.2 for c in runs.TRUNCATION])
    assert page.column("all", "all")[0].endswith("[67.10]") and page.column("all", "all")[3].endswith("[76.10]")
    assert "[" not in page.column("all", "all")[1]
    best, second = 100 * runs.TRUNCATION[3].base + 2.2, 100 * runs.TRUNCATION[2].base + 2.2
    assert re.findall(r"<strong>([\d.]+) ", text) == [f"{best:.2f}"]
    assert re.findall(r"<u>([\d.]+) ", text) == [f"{second:.2f}"]
    assert "DGL (ICCV 2025)" in page.text and "from sqlite:///x.db" in page.text
    assert "Differences to no" in page.text and f"{100 * (0.75 - 0.65):+.2f} [" in page.text


def test_what_a_paper_page_lacks_is_shown_with_the_command_that_makes_it(reader: Reader) -> None:
    table = truncation(reader, rows=(Row(label="G-Blending", where={"method": "cggm"}),), reference=None, where={})
    page = Page(paper_page("dgl", [table], [alpha(reader, data="cremad")]))
    assert page.column("all", "all") == ["missing"]
    assert "python -m tune_mm.search --space ablation_truncation" in page.text
    assert "python -m tune_mm.search --space ablation_alpha --set data=cremad" in page.text


def test_a_papers_page_is_whole_small_and_its_contents_lead_to_its_parts(reader: Reader) -> None:
    text = paper_page("dgl", [truncation(reader)], [alpha(reader)])
    page = Page(text)
    assert [load for load in page.loads if not load.startswith("href=#")] == []
    targets = {load.removeprefix("href=#") for load in page.loads if not load.startswith("href=#m")}
    assert {"dgl_table3", "dgl_alpha"} <= targets
    assert all(f'<section id="{name}">' in text for name in ("dgl_table3", "dgl_alpha"))
    assert text.count("<svg") == 1 and len(text) < 200_000


def test_what_comes_from_reports_is_escaped_on_a_papers_page(reader: Reader) -> None:
    table = truncation(reader, title=EVIL, note=EVIL)
    text = paper_page("dgl", [table], [alpha(reader, title=EVIL)], EVIL)
    assert "<script>alert" not in text
    assert Page(text).text.count(EVIL) >= 5


def test_an_unknown_paper_is_refused_with_the_nearest(reader: Reader) -> None:
    with pytest.raises(ConfigError, match="no 'cgm'; nearest 'cggm'; available: dgl, cggm"):
        paper_page("cgm", [], [])
    assert "No tables and no figures." in Page(paper_page("cggm", [], [])).text
