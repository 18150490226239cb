"""Tables hold what the runs measured, beside what the paper says, and tell what they lack."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.reports import sample_runs
from tests.reports.tables.tabling import (
    cell,
    choice,
    made,
    mine,
    percents,
    seeds,
    shipped,
    t_interval,
)
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.tables.tables import build, render_markdown


@pytest.fixture(scope="module")
def records(store_root: Path) -> Sequence[StoredRun]:
    return Reader.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root).records()


# ---- from a store


def test_cells_are_mean_and_deviation_over_the_seeds_of_the_latest_search(
    records: Sequence[StoredRun],
) -> None:
    table = build(shipped("dgl_table3"), records, choice("avdigits"), "dgl_table3")
    columns = {"Accuracy": 0.0, "audio alone": 0.1, "visual alone": 0.2}
    assert [head.title for head in table.columns] == list(columns)
    assert [line.label for line in table.rows] == ["Baseline", "+MT", "+UT", "DGL (MT+UT)"]
    for i, line in enumerate(table.rows):
        for column, less in columns.items():
            ours = cell(table, line.label, column).ours
            assert ours is not None and ours.n == 3
            assert ours.mean == pytest.approx(100 * (sample_runs.TRUNCATION[i].base + 0.022 - less))
            assert ours.std == pytest.approx(statistics.stdev(percents(i, less)))
    assert table.missing == ()
    parents = {r.id for r in records if r.search == sample_runs.NEWER.uid and r.parent is None}
    assert set(table.parents) == parents


def test_rows_are_compared_with_the_reference_by_seed(records: Sequence[StoredRun]) -> None:
    table = build(shipped("dgl_table3"), records, choice("avdigits"))
    assert cell(table, "Baseline", "Accuracy").comparison is None
    for i, row in ((1, "+MT"), (2, "+UT"), (3, "DGL (MT+UT)")):
        found = cell(table, row, "Accuracy").comparison
        differences = [a - b for a, b in zip(percents(i), percents(0), strict=True)]
        assert found is not None and found.n == 3 and found.p == 0.25
        assert found.difference == pytest.approx(
            100 * (sample_runs.TRUNCATION[i].base - sample_runs.TRUNCATION[0].base)
        )
        assert (found.low, found.high) == pytest.approx(t_interval(differences))
    assert "Differences are to Baseline, paired by seed" in table.caption
    assert "With 3 seeds p cannot be below 0.25: 6 are needed for p < 0.05." in table.caption


def test_best_and_second_are_marked_and_the_papers_values_stand_beside(
    records: Sequence[StoredRun],
) -> None:
    table = build(shipped("dgl_table3"), records, choice("avdigits"))
    column = [line.cells[0] for line in table.rows]
    assert [c.best for c in column] == [False, False, False, True]
    assert [c.second for c in column] == [False, False, True, False]
    assert [c.published for c in column] == [65.10, 73.31, 74.22, 77.48]
    for words in (
        "Data: avdigits (real), n = 3 seeds;",
        "the paper's values, on cremad.",
        "DGL (ICCV 2025), Table 3.",
    ):
        assert words in table.caption


def test_run_takes_another_search(records: Sequence[StoredRun]) -> None:
    table = build(shipped("dgl_table3"), records, choice("avdigits", run=sample_runs.OLDER.name))
    ours = cell(table, "Baseline", "Accuracy").ours
    assert ours is not None and ours.mean == pytest.approx(100 * (0.65 + 0.022 - 0.1))


def test_what_is_missing_is_said_with_its_command(records: Sequence[StoredRun]) -> None:
    table = build(shipped("dgl_table3"), records, choice())
    assert all(
        c.ours is None and c.why == "no completed runs" for line in table.rows for c in line.cells
    )
    assert table.missing == (
        "python -m tune_mm.search --space ablation_truncation --set data=cremad",
    )
    assert (
        "Data: cremad (no runs)." in table.caption and "Missing: 12 of 12 cells." in table.caption
    )
    assert table.parents == () and not table.compared


def test_rows_of_one_table_may_come_from_several_searches_and_say_so(
    records: Sequence[StoredRun],
) -> None:
    table = build(shipped("dgl_table4"), records, choice("avdigits"))
    joint = cell(table, "Joint training", "DGL").ours
    assert joint is not None and joint.mean == pytest.approx(
        67.2
    )  # 0.65 + 0.022, of the truncation search
    means = [c.ours.mean for line in table.rows[1:] for c in line.cells[1:] if c.ours]
    assert means == pytest.approx([100 * (cell.base + 0.022) for cell in sample_runs.ALPHA])
    assert (
        f"of several searches: {sample_runs.ALPHAS.name}, {sample_runs.NEWER.name}" in table.caption
    )
    assert len(table.parents) == 2


def test_a_column_without_runs_has_the_command_of_its_own(records: Sequence[StoredRun]) -> None:
    table = build(shipped("dgl_table4"), records, choice("avdigits"))
    found = cell(table, "alpha = 4", "G-Blending")
    command = "python -m tune_mm.search --space ablation_blending --set data=avdigits"
    assert (found.ours, found.published, found.fill) == (None, 69.21, (command,))
    assert table.missing == (command,)


def test_what_is_not_built_has_no_command(records: Sequence[StoredRun]) -> None:
    row = {"label": "OGM", "where": {"method": "ogm_ge"}, "published": {"Accuracy": 68.82}}
    table = build(mine(reference=None, rows=[row]), records, choice("avdigits"))
    found = table.rows[0].cells[0]
    assert (found.ours, found.fill, found.why) == (None, (), "method 'ogm_ge' is not built yet")
    assert table.missing == ()
    later = {"label": "Later", "where": {"method": "joint", "model.encoder.name": "mamba"}}
    table = build(mine(reference=None, rows=[later]), records, choice("avdigits"))
    assert table.rows[0].cells[0].why == "encoder 'mamba' is not built yet"
    anything = {"label": "Any", "where": {"method": "joint", "model.encoder.name": "*"}}
    table = build(mine(reference=None, rows=[anything]), [], choice())
    assert table.rows[0].cells[0].fill == ("make avdigits joint",)


def test_another_data_set_takes_the_place_of_the_first(records: Sequence[StoredRun]) -> None:
    table = build(shipped("dgl_table1"), records, choice("avdigits"))
    assert [head.title for head in table.columns] == [
        "avdigits audio",
        "avdigits visual",
        "avdigits multi",
    ]
    # Joint training: the runs of tune_mm.train.
    ours = [c.ours.mean for c in next(r for r in table.rows if r.label == "Concat").cells if c.ours]
    assert ours == pytest.approx(
        [100 * (sample_runs.JOINT.base + 0.022 - less) for less in (0.1, 0.2, 0.0)]
    )
    assert cell(table, "audio only", "avdigits audio").published == 62.18
    assert not cell(table, "audio only", "avdigits visual").applies
    assert cell(table, "audio only", "avdigits audio").fill == (
        "for s in 1 2 3; do python -m tune_mm.train avdigits method=unimodal method.modality=audio seed=$s; done",
    )
    assert "the paper's values, on cremad." in table.caption


def test_a_data_set_of_a_table_shows_its_columns_alone(records: Sequence[StoredRun]) -> None:
    table = build(shipped("dgl_table1"), records, choice("kinetics_sounds"))
    assert [head.title for head in table.columns] == ["KS audio", "KS visual", "KS multi"]
    assert [c.published for c in table.rows[-1].cells] == [52.89, 60.11, 74.78]


def test_modalities_are_those_of_the_data(records: Sequence[StoredRun]) -> None:
    table = build(shipped("dgl_table1"), records, choice("utd_mhad"))
    assert [head.label for head in table.columns] == [*sorted(sample_runs.SENSORS), "multi"]
    assert [line.label for line in table.rows][:3] == [
        f"{m} only" for m in sorted(sample_runs.SENSORS)
    ]
    # The tuned baseline of the search over rho.
    ours = cell(table, "Concat", "utd_mhad multi").ours
    assert ours is not None and ours.mean == pytest.approx(100 * (0.71 + 0.022))


def test_synthetic_data_and_values_that_are_not_finite_are_named(
    records: Sequence[StoredRun],
) -> None:
    rows = [{"label": f"lambda {x}", "where": {"method.lam": x}} for x in (0.01, 0.2)]
    table = build(
        mine(data="mosi", where={"method": "cggm"}, reference=None, rows=rows), records, choice()
    )
    assert "Data: mosi (synthetic), n = 2 to 3 seeds;" in table.caption
    assert "Lambda 0.2: test/accuracy is not finite for seed 3." in table.caption
    second = table.rows[1].cells[0].ours
    assert second is not None and second.n == 2
    assert "(n = 2)" in render_markdown(table) and "(n = 3)" in render_markdown(table)


# ---- from records


def test_equal_numbers_share_a_place() -> None:
    found = [
        *made("joint", seeds(0.5)),
        *made("dgl", seeds(0.70001)),
        *made("cggm", seeds(0.70004)),
    ]
    column = [line.cells[0] for line in build(mine(), found, choice()).rows]
    assert [c.best for c in column] == [False, True, True]  # 70.00 both, as shown
    assert not any(c.second for c in column)


def test_the_smallest_is_best_where_the_column_says_so() -> None:
    columns = [{"label": "MAE", "metric": "test/mae", "best": "min"}]
    rows = [{"label": name, "where": {"method": name.lower()}} for name in ("Joint", "DGL", "CGGM")]
    found = [
        r
        for m, v in (("joint", 0.9), ("dgl", 0.7), ("cggm", 0.8))
        for r in made(m, {1: v}, metric="test/mae")
    ]
    table = build(mine(columns=columns, rows=rows), found, choice())
    assert [(c.best, c.second) for c in (line.cells[0] for line in table.rows)] == [
        (False, False),
        (True, False),
        (False, True),
    ]
    unmarked = [{**columns[0], "best": "none"}]
    assert not any(
        line.cells[0].best
        for line in build(mine(columns=unmarked, rows=rows), found, choice()).rows
    )


def test_one_number_is_not_the_best_of_any() -> None:
    table = build(mine(), made("dgl", seeds(0.5, 0.6, 0.7)), choice())
    assert not any(c.best or c.second for line in table.rows for c in line.cells)
    assert "Bold" not in table.caption


def test_real_and_synthetic_data_are_not_compared() -> None:
    found = [
        *made("joint", seeds(0.9, 0.9, 0.9), data_kind="synthetic"),
        *made("dgl", seeds(0.5, 0.6, 0.7)),
    ]
    table = build(mine(), found, choice())
    assert cell(table, "Joint", "Accuracy").ours is None
    assert cell(table, "Joint", "Accuracy").fill == ("make avdigits joint",)
    assert "Data: avdigits (real)" in table.caption and not table.compared
    assert "3 such runs are not on real data: left out." in table.caption


def test_too_few_seeds_are_said_to_be_too_few() -> None:
    table = build(
        mine(), [*made("joint", seeds(0.5, 0.6)), *made("dgl", seeds(0.6, 0.8))], choice()
    )
    found = cell(table, "DGL", "Accuracy").comparison
    assert found is not None and found.p is None and found.difference == pytest.approx(15)
    assert "Fewer than 3 seeds in common are too few for any claim." in table.caption
    assert "+15.00 (n = 2: too few for a claim)" in render_markdown(table)


def test_runs_that_did_not_complete_leave_a_note() -> None:
    found = made("dgl", seeds(0.5), status="failed")
    table = build(mine(), found, choice())
    assert cell(table, "DGL", "Accuracy").ours is None
    assert "1 failed" in table.caption


def test_a_metric_that_runs_do_not_log_needs_no_command() -> None:
    table = build(mine(), made("dgl", seeds(0.5), metric="test/f1"), choice())
    found = cell(table, "DGL", "Accuracy")
    assert (found.why, found.fill) == ("test/accuracy is not logged for seed 1", ())
