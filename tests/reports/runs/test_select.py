"""One run per seed, of one configuration of one search, and a note of whatever was left out."""

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import tune_mm
from tests.reports import sample_runs
from tune_mm.errors import UserError
from tune_mm.reports.runs.select import Choice, Selection, by_seed, lacking, matches, select
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.reports.spec.spec import Column, TableReport, TableRow, Where
from tune_mm.track import Store

ALL = Choice()
DAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
BOTH: Where = {"method.truncate_multimodal": True, "method.truncate_unimodal": True}


@pytest.fixture(scope="module")
def records(store: Store) -> list[StoredRun]:
    return Reader.open(store.uri, Path("/nowhere")).records()


def report(data: str = "avdigits", where: Where | None = None) -> TableReport:
    column = Column(label="Accuracy", metric="test/accuracy")
    return TableReport(
        title="t",
        paper="dgl",
        source="Table 3",
        data=data,
        where=where or {},
        fill=("run",),
        rows=(TableRow(label="r"),),
        columns=(column,),
    )


def record(
    seed: int = 1,
    search: str = "s-1",
    stage: str = "final",
    status: str = "completed",
    day: float = 0,
    params: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
    **tags: Any,
) -> StoredRun:
    """A run on `toy` that started `day` days after DAY."""
    known = {
        "dataset": "toy",
        "data_kind": "real",
        "seed": str(seed),
        **({"search": search} if search else {}),
    }
    number = f"{search} {stage} {seed} {status} {day} {sorted((params or {}).items())} {sorted(tags.items())}"
    return StoredRun(
        id=number,
        name=f"run {seed}",
        space="space",
        search=f"{search}-uid" if search else "",
        parent=f"{search}-parent" if search else None,
        stage=stage,
        status=status,
        started=DAY + timedelta(days=day),
        tags={**known, **tags},
        params={
            "method.name": "dgl",
            "train.monitor": "val/accuracy",
            "seed": str(seed),
            **(params or {}),
        },
        metrics=metrics or {"test/accuracy": 0.5},
    )


def parent(search: str, status: str, day: float = 0, **tags: Any) -> StoredRun:
    own = record(0, search, "search", status, day, **tags)
    return StoredRun(**{**vars(own), "id": f"{search}-parent", "parent": None})


def toy(found: list[StoredRun], where: Where | None = None, choice: Choice = ALL) -> Selection:
    return select(found, report("toy"), where or {}, choice)


# ---- where


@pytest.mark.parametrize(
    ("stored", "wanted", "same"),
    [
        ("4.0", 4, True),
        ("4.0", 4.5, False),
        ("0.2", 0.2, True),
        ("1e-05", 0.00001, True),
        ("1", True, False),
        ("True", True, True),
        ("true", True, True),
        ("False", True, False),
        ("False", 0, False),
        ("None", None, True),
        ("0.0", None, False),
        ("gradient", "gradient", True),
        ("gradient", "weight", False),
        ("4.0", "4", False),
        ("fast", 4, False),
        ("4.0", (1, 4), True),
        ("2.0", (1, 4), False),
        ("None", (0.5, None), True),
        ("4.0", "*", True),
        ("/models/r34.pth", "*", True),
        ("None", "*", False),
        ("None", (None, "*"), True),
    ],
)
def test_values_compare_as_mlflow_shows_them(stored: str, wanted: object, same: bool) -> None:
    assert matches(record(params={"method.x": stored}), {"method.x": wanted}) is same  # type: ignore[dict-item]


def test_a_key_that_a_run_does_not_have_is_null_and_nothing_else() -> None:
    assert matches(record(), {"method.rho": None})
    assert not matches(record(), {"method.rho": 1.2})
    assert not matches(record(), {"method.rho": "*"})
    assert not matches(record(), {"method.rho": ()})


def test_where_knows_tags_before_params_and_the_runs_own() -> None:
    run = record(params={"role": "param"}, role="grid")
    assert matches(
        run,
        {
            "role": "grid",
            "space": "space",
            "stage": "final",
            "status": "completed",
            "search": "s-1",
        },
    )
    assert not matches(run, {"role": "param"})
    assert not matches(run, {"role": "grid", "space": "other"})


# ---- a real store


@pytest.mark.parametrize(
    ("multimodal", "unimodal", "base"),
    [(False, False, 0.65), (True, False, 0.70), (False, True, 0.72), (True, True, 0.75)],
)
def test_a_cell_is_the_latest_searchs(
    records: list[StoredRun], multimodal: bool, unimodal: bool, base: float
) -> None:
    where: Where = {"method.truncate_multimodal": multimodal, "method.truncate_unimodal": unimodal}
    found = select(records, report(where={"space": "ablation_truncation"}), where, ALL)
    values = by_seed(found.records, "test/accuracy")
    assert list(values) == [1, 2, 3]
    assert sum(values.values()) / 3 == pytest.approx(base + 0.022)  # the formula of sample_runs.py
    assert (found.data, found.kind, found.searches) == (
        "avdigits",
        "real",
        ("ablation_truncation-2",),
    )
    today = f"{found.records[0].started:%Y-%m-%d}"
    assert found.notes == (
        f"2 searches have such runs; shown: ablation_truncation-2 of {today} (--run chooses)",
    )


@pytest.mark.parametrize("name", [sample_runs.OLDER.name, sample_runs.OLDER.uid])
def test_run_chooses_a_search(records: list[StoredRun], name: str) -> None:
    found = select(records, report(where={"space": "ablation_truncation"}), BOTH, Choice(run=name))
    assert by_seed(found.records, "test/accuracy")[1] == pytest.approx(
        0.75 + 0.01 + 0.002 * ((1 + 3) % 3) - 0.1
    )
    assert found.notes == ()


def test_since_leaves_older_runs_out(records: list[StoredRun]) -> None:
    newer = min(r.started for r in records if r.search == sample_runs.NEWER.uid)
    table, where = report(where={"space": "ablation_truncation"}), BOTH
    assert select(records, table, where, Choice(since=newer)).notes == ()
    naive = datetime.fromtimestamp(newer.timestamp())  # as a user types it: local, without a zone
    assert select(records, table, where, Choice(since=naive)).searches == ("ablation_truncation-2",)
    assert select(records, table, where, Choice(since=newer + timedelta(days=1))).records == []


def test_three_sensors_and_a_tuned_baseline(records: list[StoredRun]) -> None:
    table = report("utd_mhad")
    cggm = select(
        records, table, {"method": "cggm", "method.rho": 1.2, "method.magnitude": True}, ALL
    )
    joint = select(records, table, {"method": "joint", "role": "baseline"}, ALL)
    gains = {
        s: v - by_seed(joint.records, "test/accuracy")[s]
        for s, v in by_seed(cggm.records, "test/accuracy").items()
    }
    # i = 2 and 0: 0.80 - 0.71 + 0.002 ((s + 2) mod 3 - s mod 3)
    assert gains == pytest.approx({1: 0.09 - 0.002, 2: 0.09 - 0.002, 3: 0.09 + 0.004})
    assert (cggm.searches, joint.searches) == (("ablation_rho-1",), ("ablation_rho-1",))


def test_runs_of_train_are_taken_where_there_are_no_final_ones(records: list[StoredRun]) -> None:
    found = select(records, report(), {"method": "joint"}, ALL)
    assert by_seed(found.records, "test/accuracy") == pytest.approx({1: 0.672, 2: 0.684, 3: 0.69})
    assert (found.searches, found.notes) == ((), ())
    assert [
        r.seed
        for r in select(records, report(), {"method": "joint"}, Choice(run="joint seed 2")).records
    ] == [2]


def test_an_unfinished_search_gives_what_it_has_and_says_so(records: list[StoredRun]) -> None:
    found = select(records, report(), {"method.alpha": 3.0, "space": "dgl_avdigits"}, ALL)
    assert by_seed(found.records, "test/accuracy") == pytest.approx({1: 0.77 + 0.01 + 0.002})
    assert found.notes == (
        "1 run of search dgl_avdigits-1 not completed (1 running)",
        "search dgl_avdigits-1 is not finished (running)",
    )


def test_trials_are_no_results(records: list[StoredRun]) -> None:
    found = select(
        records, report(), {"method.alpha": 2.5}, ALL
    )  # a completed trial of the unfinished search
    assert found == Selection(
        [], "avdigits", "", (), ("search dgl_avdigits-1 is not finished (running)",)
    )


def test_values_that_are_not_finite_are_left_out_and_named(records: list[StoredRun]) -> None:
    found = select(records, report("mosi"), {"method.lam": 0.2}, ALL)
    assert (found.kind, [r.seed for r in found.records]) == ("synthetic", [1, 2, 3])
    assert by_seed(found.records, "test/accuracy") == pytest.approx({1: 0.634, 2: 0.64})
    assert lacking(found.records, "test/accuracy") == "test/accuracy is not finite for seed 3"
    assert lacking(found.records, "test/mae") == "test/mae is not logged for seeds 1, 2, 3"
    assert lacking(found.records[:2], "test/accuracy") == ""


def test_the_data_set_is_the_columns_then_the_users_then_the_reports(
    records: list[StoredRun],
) -> None:
    joint: Where = {"method": "joint"}
    assert select(records, report("avdigits"), joint, Choice(data="utd_mhad")).data == "utd_mhad"
    assert (
        select(records, report("cremad"), joint, Choice(data="utd_mhad"), data="avdigits").data
        == "avdigits"
    )
    none = select(records, report("cremad"), joint, ALL)
    assert none == Selection([], "cremad", "", (), ())


def test_a_rows_where_comes_on_top_of_the_reports(records: list[StoredRun]) -> None:
    table = report(where={"space": "ablation_alpha", "method.alpha": 1.0})
    assert by_seed(select(records, table, {}, ALL).records, "test/accuracy")[1] == pytest.approx(
        0.72 + 0.012
    )
    assert by_seed(select(records, table, {"method.alpha": 4.0}, ALL).records, "test/accuracy")[
        1
    ] == pytest.approx(0.762)


# ---- made by hand: what a store rarely has


def test_the_search_that_began_last_counts_although_an_older_one_ended_later() -> None:
    # s-1 began first and was resumed after s-2 had ended.
    found = toy(
        [
            record(1, "s-1", day=0),
            record(2, "s-1", day=9),
            record(1, "s-2", day=1),
            record(2, "s-2", day=2),
        ]
    )
    assert found.searches == ("s-2",)
    assert found.notes == ("2 searches have such runs; shown: s-2 of 2026-03-02 (--run chooses)",)


def test_a_search_begins_with_its_parent() -> None:
    own = [
        parent("s-1", "completed", 5),
        record(1, "s-1", day=6),
        record(1, "s-2", day=7),
        parent("s-2", "completed", 4),
    ]
    assert toy(own).searches == ("s-1",)


def test_two_searches_of_one_name_are_two() -> None:
    first, second = record(1, "s", day=0), record(1, "s", day=3)
    again = StoredRun(
        **{**vars(second), "search": "s-other-uid", "metrics": {"test/accuracy": 0.9}}
    )
    found = toy([first, again])
    assert by_seed(found.records, "test/accuracy") == {1: 0.9}
    assert found.notes == ("2 searches have such runs; shown: s of 2026-03-04 (--run chooses)",)


def test_real_data_come_before_synthetic() -> None:
    real, made = record(1, "s-1", day=0), record(1, "s-2", day=5, data_kind="synthetic")
    found = toy([real, made])
    assert (found.kind, found.records) == ("real", [real])
    assert found.notes == ("1 run on synthetic data left out (1 completed)",)


def test_synthetic_data_serve_while_the_real_run_goes_on() -> None:
    real, made = record(1, "s-1", status="running"), record(1, "s-2", data_kind="synthetic")
    found = toy([real, made])
    assert (found.kind, found.records) == ("synthetic", [made])
    assert found.notes == ("1 run on real data left out (1 running)",)


def test_of_a_seed_run_twice_the_latest_counts() -> None:
    old, new = record(2, "", "train", day=0), record(2, "", "train", day=1)
    found = toy([new, record(1, "", "train"), old])
    assert [r.started for r in found.records] == [DAY, new.started]
    assert found.notes == ("seed 2 run more than once: the latest counts",)


def validated(
    alpha: str, seed: int, val: float, test: float, monitor: str = "val/accuracy"
) -> StoredRun:
    metrics = {f"best/{monitor}": val, "test/accuracy": test}
    return record(
        seed,
        params={"method.alpha": alpha, "train.monitor": monitor},
        metrics=metrics,
        source=f"search/{alpha}",
    )


@pytest.mark.parametrize(("monitor", "chosen"), [("val/accuracy", "4"), ("val/mae", "2")])
def test_of_several_configurations_validation_decides_and_seeds_are_not_mixed(
    monitor: str, chosen: str
) -> None:
    # 4 has the greater validation value and the worse test value; 8 has the greatest of all and one
    # seed only.
    own = [validated("4", s, 0.8, 0.5, monitor) for s in (1, 2)] + [
        validated("2", s, 0.7, 0.6, monitor) for s in (1, 2)
    ]
    found = toy([*own, validated("8", 1, 0.9 if monitor == "val/accuracy" else 0.1, 0.9, monitor)])
    assert {r.params["method.alpha"] for r in found.records} == {chosen}
    assert [r.seed for r in found.records] == [1, 2]
    told = f"3 configurations match; shown: search/{chosen}, the best on validation of those with most seeds"
    assert found.notes == (told,)


def test_the_objective_of_the_search_comes_before_the_monitor() -> None:
    def run(alpha: str, mae: float, accuracy: float) -> StoredRun:
        return record(
            params={"method.alpha": alpha},
            metrics={"best/val/mae": mae, "best/val/accuracy": accuracy},
        )

    own = [run("1", 0.5, 0.9), run("2", 0.4, 0.8), run("3", math.nan, 0.99)]
    assert toy(own).records[0].params["method.alpha"] == "3"
    with_parent = [parent("s-1", "completed", objective="val/mae"), *own]
    assert toy(with_parent).records[0].params["method.alpha"] == "2"


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("train.device", ("cpu", "cuda")),
        ("train.gradient_vectors", ("0", "100")),
        ("train.probe_size", ("32", "64")),
    ],
)
def test_what_changes_no_training_is_no_setting(key: str, values: tuple[str, str]) -> None:
    own = [record(seed, params={key: value}) for seed, value in enumerate(values, 1)]
    assert [r.seed for r in toy(own).records] == [1, 2]


def test_final_runs_come_before_runs_of_train() -> None:
    assert toy([record(1, "", "train", day=5), record(2, "s-1")]).searches == ("s-1",)


def test_runs_that_did_not_end_are_counted_by_search() -> None:
    own = [record(1, "s-1"), record(2, "s-1", status="failed"), parent("s-1", "stopped")]
    own += [
        record(s, "s-2", status=status, day=1)
        for s, status in ((1, "running"), (2, "running"), (3, "stopped"))
    ]
    found = toy(own)
    assert [r.seed for r in found.records] == [1]
    assert found.notes == (
        "1 run of search s-1 not completed (1 failed)",
        "3 runs of search s-2 not completed (2 running, 1 stopped)",
        "search s-1 is not finished (stopped)",
    )


def test_only_unfinished_runs_are_no_result() -> None:
    found = toy([record(1, status="running"), record(2, "", "train", status="failed")])
    assert found.records == []
    assert found.notes == (
        "1 run of search s-1 not completed (1 running)",
        "1 run not completed (1 failed)",
    )


def test_runs_of_another_version_are_told() -> None:
    versions: list[dict[str, Any]] = [
        {"version.tune_mm": v} for v in ("0.0.3", tune_mm.__version__)
    ]
    own = [record(seed, **version) for seed, version in enumerate(versions, 1)]
    assert toy(own).notes == (f"made with tune_mm 0.0.3; this is {tune_mm.__version__}",)
    assert toy(own[1:]).notes == ()


# ---- a user's mistakes


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            Choice(run="ablation_truncaton-1"),
            "--run: no search or run 'ablation_truncaton-1'; nearest 'ablation_tr",
        ),
        (
            Choice(data="avdigit"),
            "--data: no runs on 'avdigit'; nearest 'avdigits'; available: avdigits, mosi, utd_",
        ),
    ],
)
def test_unknown_names_are_told_with_the_nearest(
    records: list[StoredRun], choice: Choice, message: str
) -> None:
    with pytest.raises(UserError) as caught:
        choice.check(records)
    assert str(caught.value).startswith(message)


def test_known_names_pass(records: list[StoredRun]) -> None:
    """A search's name, its id, a run's name; the same with one letter more is unknown."""
    for run in (sample_runs.OLDER.name, sample_runs.OLDER.uid, "joint seed 1"):
        Choice(run=run, data="avdigits").check(records)
        with pytest.raises(UserError, match="--run: no search or run"):
            Choice(run=f"{run}x", data="avdigits").check(records)
