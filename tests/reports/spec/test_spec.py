"""Reports as files: those that are shipped hold the papers' numbers; every mistake in one is named
with its line.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.reports import sample_runs
from tune_mm import plugins
from tune_mm.config import file_names, find_file, load_config, read_yaml
from tune_mm.errors import ConfigError
from tune_mm.reports import catalogue
from tune_mm.reports.runs.select import Choice
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.spec.spec import TableReport
from tune_mm.reports.tables import layout

# As the papers print them (DGL, ICCV 2025).
TABLE_1 = """
    59.62 36.71 65.1 43.35 48.72 64.45 43.18 20.55 47.90
    58.78 58.62 69.21 46.35 51.12 69.60 44.34 26.56 49.33
    57.76 40.09 68.82 44.23 45.81 66.89 41.85 27.41 48.71
    55.11 38.34 67.44 43.61 46.67 65.70 42.33 25.12 48.17
    56.37 43.54 69.61 46.12 47.65 68.88 41.87 27.34 49.10
    60.46 64.23 73.12 50.03 54.67 71.12 45.87 31.60 51.19
    59.43 61.09 70.12 48.40 52.42 69.83 42.44 30.07 49.12
    61.11 64.57 74.32 49.78 54.88 69.10 45.18 31.23 50.84
    63.12 69.11 77.48 52.89 60.11 74.78 47.13 33.45 52.53"""
TABLE_2 = """
    56.11 23.43 60.12 40.65 51.33 76.33 76.83
    57.72 62.11 69.99 42.39 53.03 76.97 78.04
    55.61 40.61 65.31 42.09 52.68 75.87 77.97
    54.71 39.21 64.89 41.89 52.43 75.67 77.54
    55.29 44.18 66.65 42.24 52.97 76.04 77.95
    56.79 63.21 69.88 42.92 53.08 76.87 78.15
    58.67 66.32 72.28 43.65 53.81 77.01 78.81
    60.30 69.50 75.00 44.78 55.11 77.39 79.78"""
TABLES = [name for name in catalogue.names() if "table" in name]
MINE = """\
kind: table
title: Mine
paper: dgl
source: Table 9
data: avdigits
fill: [make it]
reference: A
columns:
  - {label: Accuracy, metric: test/accuracy}
rows:
  - {label: A, where: {method: joint}, published: {Accuracy: 1.0}}
  - {label: B, where: {method: dgl}}
"""


def shipped(name: str) -> TableReport:
    report = catalogue.load(catalogue.resolve(name)[1])
    assert isinstance(report, TableReport)
    return report


def published(report: TableReport) -> list[list[float | None]]:
    """The paper's values, row by row, of the rows that are no modality alone."""
    choice = Choice(None, None, None)
    names = [head.name for head in layout.heads(report, [], choice)]
    return [
        [row.published.get(n) for n in names]
        for row in report.rows
        if "{modality}" not in row.label
    ]


def methods(space: str) -> set[str]:
    """The methods that a search of a space trains: its own and its baseline's; of a suite those of
    all its spaces.
    """
    found = read_yaml(find_file("search_spaces", space)).data
    if "spaces" in found:
        return set().union(
            *(methods(s if isinstance(s, str) else s["space"]) for s in found["spaces"])
        )
    baseline = found["finals"].get("baseline")
    return {found["method"]} | (methods(baseline) if baseline else set())


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Writes mine.yaml in an empty working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        Path("mine.yaml").write_text(text, encoding="utf-8")
        return Path("mine.yaml")

    return write


def numbers(text: str) -> list[list[float]]:
    return [list(map(float, line.split())) for line in text.strip().splitlines()]


@pytest.mark.parametrize("name", catalogue.names())
def test_a_shipped_report_loads_and_opens_with_its_command(name: str) -> None:
    path = find_file("configs", f"paper/{name}")
    report = catalogue.load(path)
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith(f"# {'DGL' if report.paper == 'dgl' else 'CGGM'} {report.source}")
    assert f"#   python -m tune_mm.report {name}" in lines
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("name", TABLES)
def test_commands_of_a_shipped_table_name_spaces_and_configs_that_exist(name: str) -> None:
    report, choice = shipped(name), Choice(None, None, None)
    rows = layout.rows(report, [], choice)
    for row, head in itertools.product(rows, layout.heads(report, [], choice)):
        wanted = {**report.where, **layout.where(row, head)}
        if layout.unbuilt(wanted, head.data) or not layout.applies(row, head):
            continue
        for command in layout.commands(report, row, head, wanted):
            words = command.split()
            assert "{" not in command
            for word, following in itertools.pairwise(words):
                if word == "--space":
                    assert following in file_names("search_spaces")
                    # MOSI's table of the paper has methods that refuse its tasks.
                    assert name == "cggm_table_mosi" or wanted["method"] in methods(following)
                if word == "tune_mm.train":
                    overrides = [w for w in words if w.startswith(("method", "data."))]
                    assert load_config(following, [o for o in overrides if "$" not in o])


def test_tables_1_and_2_hold_the_published_numbers() -> None:
    assert published(shipped("dgl_table1")) == numbers(TABLE_1)
    assert published(shipped("dgl_table2")) == numbers(TABLE_2)
    alone = shipped("dgl_table1").rows[0].published
    assert alone == {
        "CREMA-D audio": 62.18,
        "CREMA-D visual": 68.23,
        "KS audio": 48.7,
        "KS visual": 54.6,
        "VGGSound audio": 45.13,
        "VGGSound visual": 30.68,
    }
    alone = shipped("dgl_table2").rows[0].published
    assert list(alone.values()) == [59.18, 68.34, 44.25, 54.28, 77.12]


def test_tables_3_to_5_hold_the_published_numbers() -> None:
    assert [row[0] for row in published(shipped("dgl_table3"))] == [65.10, 73.31, 74.22, 77.48]
    blending, dgl = [67.89, 68.12, 69.20, 69.21, 68.67], [73.35, 75.46, 76.13, 77.48, 77.08]
    assert published(shipped("dgl_table4")) == [
        [65.10, 65.10],
        *map(list, zip(blending, dgl, strict=True)),
    ]
    assert published(shipped("dgl_table5")) == [[38.59, 48.48], [41.67, 50.10]]


def test_of_the_cggm_paper_only_what_an_index_quotes_is_there_and_is_said_to_be() -> None:
    tables = {name: shipped(name) for name in TABLES if name.startswith("cggm")}
    assert len(tables) == 6
    found = {
        (n, row.label, *one)
        for n, t in tables.items()
        for row in t.rows
        for one in row.published.items()
    }
    assert found == {
        ("cggm_table_food101", "CGGM", "Accuracy", 92.94),
        ("cggm_table_brats", "CGGM", "Dice WT", 76.94),
    }
    for name in ("cggm_table_food101", "cggm_table_brats"):
        assert "third-party index, not verified" in tables[name].note
    assert not any(row.published for row in shipped("dense_ombria").rows)


# Compared in the CGGM paper (Sec. 4.3), and what of it has no row.
COMPARED = {
    "unimodal",
    "joint",
    "mrd",
    "mslr",
    "g_blending",
    "greedy",
    "ogm",
    "agm",
    "pmr",
    "umt",
    "ume",
    "qmf",
    "reconboost",
    "cggm",
}


@pytest.mark.parametrize(
    ("name", "task", "without"),
    [
        ("cggm_table_food101", "classification", {"greedy"}),
        ("cggm_table_brats", "segmentation", {"greedy", "pmr", "ume", "qmf", "reconboost"}),
    ],
)
def test_what_the_paper_compares_and_can_be_trained_has_a_row(
    name: str, task: str, without: set[str]
) -> None:
    assert {row.where["method"] for row in shipped(name).rows} == COMPARED - without
    assert all(
        task in plugins.load("methods", method).support.tasks for method in COMPARED - without
    )
    assert "Greedy" in shipped(name).note


def test_every_method_that_predicts_pixels_has_a_row_on_ombria() -> None:
    able = {
        m
        for m in plugins.available("methods")
        if "segmentation" in plugins.load("methods", m).support.tasks
    }
    assert {row.where["method"] for row in shipped("dense_ombria").rows} == able


def test_commands_of_a_row_are_its_own_below_a_group_then_everywhere(written: Any) -> None:
    text = MINE.replace(
        "metric: test/accuracy}",
        "group: Sound, metric: test/accuracy}\n  - {label: H, metric: test/h}",
    )
    text = text.replace("{Accuracy: 1.0}", "{Sound Accuracy: 1.0}")
    text = text.replace(
        "method: dgl}}",
        'method: dgl}, fill: [row], fill_below: {Sound: ["below {method} {data}"]}}',
    )
    report = catalogue.load(written(text))
    assert isinstance(report, TableReport)
    below, elsewhere = layout.heads(report, [], Choice(None, None, None))
    assert layout.commands(report, report.rows[1], below, {"method": "dgl"}) == (
        "below dgl avdigits",
    )
    assert layout.commands(report, report.rows[1], elsewhere, {"method": "dgl"}) == ("row",)
    assert layout.commands(report, report.rows[0], below, {"method": "joint"}) == ("make it",)
    with pytest.raises(
        ConfigError,
        match="fill_below of row 'B' must name groups of columns, got 'Soud'; nearest 'Sound'",
    ):
        catalogue.load(written(text.replace("fill_below: {Sound", "fill_below: {Soud")))


def test_reports_are_found_by_name_by_the_end_of_one_and_by_path(written: Any) -> None:
    assert catalogue.resolve("dgl_table3")[0] == catalogue.resolve("table3")[0] == "dgl_table3"
    assert catalogue.resolve(str(written(MINE))) == ("mine", Path("mine.yaml"))
    with pytest.raises(ConfigError, match=r"^report: no 'dgl_tabel3'; nearest 'dgl_table3'; "):
        catalogue.resolve("dgl_tabel3")
    with pytest.raises(ConfigError, match=r"mine.yml"):
        catalogue.resolve("nowhere/mine.yml")


def test_a_folder_of_ones_own_adds_reports(written: Any, tmp_path: Path) -> None:
    (tmp_path / "configs/paper").mkdir(parents=True)
    (tmp_path / "configs/paper/my_table.yaml").write_text(MINE, encoding="utf-8")
    assert {"my_table", "dgl_table3"} <= set(catalogue.names())
    name, path = catalogue.resolve("my_table")
    assert (name, catalogue.load(path).title) == ("my_table", "Mine")


@pytest.mark.parametrize(
    ("old", "new", "messages"),
    [
        (
            "kind: table",
            "kind: tabel",
            [
                "kind: must be one of table, sweep, curves, scatter, got 'tabel'; nearest 'table' (mine.yaml line 1)"
            ],
        ),
        (
            "kind: table\n",
            "",
            ["kind: must be one of table, sweep, curves, scatter, got nothing (mine.yaml)"],
        ),
        (
            "paper: dgl",
            "paper: dlg",
            ["paper: must be one of dgl, cggm, got 'dlg'; nearest 'dgl' (mine.yaml line 3)"],
        ),
        (
            "title: Mine\n",
            "titel: Mine\n",
            ["title: missing", "titel: no such key; nearest 'title' ("],
        ),
        (
            "metric: test/accuracy",
            "metrics: test/accuracy",
            [
                "columns.0.metric: missing",
                "columns.0.metrics: no such key; nearest 'columns.0.metric' (",
            ],
        ),
        ("reference: A", "reference: a", ["reference must be the label of a row, got 'a'"]),
        ("label: B", "label: A", ["rows must have names of their own, got 'A' twice"]),
        (
            "published: {Accuracy",
            "published: {Acuracy",
            ["published of row 'A' must name columns, got 'Acuracy'; nearest 'Accuracy'"],
        ),
        (
            "fill: [make it]",
            "fill: []",
            ["fill: must have at least 1 items, got [] (mine.yaml line 6)"],
        ),
        ("data: avdigits", "data: 3", ["data: must be text, got 3 (mine.yaml line 5)"]),
    ],
)
def test_mistakes_are_named_with_their_place(
    written: Any, old: str, new: str, messages: list[str]
) -> None:
    assert old in MINE and catalogue.load(written(MINE)).title == "Mine"
    with pytest.raises(ConfigError) as caught:
        catalogue.load(written(MINE.replace(old, new)))
    problems = sorted(caught.value.problems)
    assert len(problems) == len(messages)
    for problem, message in zip(problems, sorted(messages), strict=True):
        assert message in problem and "mine.yaml" in problem


def test_values_of_where_keep_their_types(written: Any) -> None:
    where = "where: {method: joint, method.alpha: 4, method.truncate: true, role: [tuned, null], x: 0.5}"
    report = catalogue.load(written(MINE.replace("where: {method: joint}", where)))
    assert isinstance(report, TableReport)
    expected = {**yaml.safe_load(f"{{{where}}}")["where"], "role": ("tuned", None)}
    assert report.rows[0].where == expected
    assert [type(v) for v in report.rows[0].where.values()] == [str, int, bool, tuple, float]


def test_runs_of_a_report_are_counted_by_data_set(store_root: Path) -> None:
    reader = Reader.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root)
    records = reader.records()
    seeds = len(sample_runs.SEEDS)
    # Table 3: the four cells of two searches, and alpha 4 with both truncations of the third.
    assert catalogue.runs(shipped("dgl_table3"), records) == {"avdigits": (4 + 4 + 1) * seeds}
    assert catalogue.runs(shipped("dgl_table5"), records) == {}


def test_a_figures_searches_are_known(store_root: Path) -> None:
    records = Reader.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root).records()

    def searches(name: str, data: str) -> set[str]:
        report = catalogue.load(catalogue.resolve(name)[1])
        ids = catalogue.parents(report, records, Choice(data, None, None))
        return {parent(records, run).search for run in ids}

    assert searches("dgl_fig1", "avdigits") == {sample_runs.NEWER.uid}
    assert searches("dgl_alpha", "avdigits") == {sample_runs.ALPHAS.uid}
    assert searches("cggm_fig5a", "utd_mhad") == {sample_runs.RHOS.uid}
    assert searches("cggm_fig5a", "iemocap") == set()


def parent(records: list[StoredRun], run: str) -> StoredRun:
    return next(r for r in records if r.id == run)
