"""A reader finds every run and every epoch of a real store, changes nothing in it, and refuses what
is no store.
"""

import math
import os
import shutil
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from mlflow.entities import Metric

from tests.reports import sample_runs
from tune_mm.errors import UserError
from tune_mm.reports.runs import store as module
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.track import Store

REPOSITORY = Path(__file__).resolve().parents[3]

pytestmark = pytest.mark.usefixtures("no_uri_in_the_environment")


@pytest.fixture(scope="module")
def reader(store: Store) -> Reader:
    return Reader.open(store.uri, Path("/nowhere"))


@pytest.fixture(scope="module")
def records(reader: Reader) -> list[StoredRun]:
    return reader.records()


@pytest.fixture
def own(store_root: Path, tmp_path: Path) -> Path:
    """A copy of the store that a test may change; its artifacts stay those of the original."""
    (tmp_path / "mlruns").mkdir()
    return Path(
        shutil.copyfile(store_root / "mlruns" / "mlflow.db", tmp_path / "mlruns" / "mlflow.db")
    )


def one(records: list[StoredRun], search: sample_runs.Search, source: str, seed: int) -> StoredRun:
    found = [
        r
        for r in records
        if r.search == search.uid and r.tags.get("source") == source and r.seed == seed
    ]
    assert len(found) == 1
    return found[0]


# ---- records


def test_all_runs_of_the_project_are_found_and_no_others(records: list[StoredRun]) -> None:
    # Per search a parent and cells x seeds; the unfinished one: a parent, its trials, two final
    # runs; three of train.
    whole = (
        sample_runs.OLDER,
        sample_runs.NEWER,
        sample_runs.ALPHAS,
        sample_runs.RHOS,
        sample_runs.LAMBDAS,
    )
    expected = {s.uid: 1 + 3 * (len(s.cells) + len(s.baseline)) for s in whole}
    expected |= {sample_runs.UNFINISHED.uid: 1 + len(sample_runs.TRIALS) + 2, "": 3}
    assert {
        uid: sum(r.search == uid for r in records) for uid in {r.search for r in records}
    } == expected
    assert records == sorted(records, key=lambda r: (r.started, r.id))


def test_a_final_run_is_read_whole(records: list[StoredRun]) -> None:
    run = one(records, sample_runs.RHOS, "grid/2", 3)
    parent = next(r for r in records if r.search == sample_runs.RHOS.uid and r.parent is None)
    assert (run.space, run.parent, run.stage, run.status) == (
        "ablation_rho",
        parent.id,
        "final",
        "completed",
    )
    assert (parent.stage, parent.name) == ("search", "ablation_rho-1")
    assert run.params["method.rho"] == "1.2"
    assert run.tags["dataset"] == "utd_mhad"
    assert datetime.now(UTC) - timedelta(hours=2) < run.started <= datetime.now(UTC)
    assert run.metrics["test/accuracy"] == pytest.approx(
        0.80 + 0.03 + 0.002 * ((3 + 2) % 3)
    )  # the formula of sample_runs.py
    assert run.metrics["test/accuracy/depth"] == pytest.approx(0.834 - 0.3)
    assert run.metrics["train/loss"] == pytest.approx(2 / 5)  # of the last epoch


def test_single_runs_belong_to_no_search(records: list[StoredRun]) -> None:
    single = [r for r in records if r.stage == "train"]
    assert {(r.search, r.parent, r.space) for r in single} == {("", None, "avdigits")}


def test_unfinished_runs_say_so(records: list[StoredRun]) -> None:
    found = [
        r
        for r in records
        if r.search == sample_runs.UNFINISHED.uid and r.parent and r.stage == "search"
    ]
    states = {int(r.tags["trial"]): r.status for r in found}
    assert states == {n: status for n, (_, _, _, status) in enumerate(sample_runs.TRIALS)}


def test_spaces_narrow_down(reader: Reader) -> None:
    found = reader.records(["ablation_alpha", "no_such_space"])
    assert {r.space for r in found} == {"ablation_alpha"}
    assert len(found) == 16
    assert reader.records(["no_such_space"]) == []


def test_pages_are_joined(
    reader: Reader, records: list[StoredRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 7)
    assert [r.id for r in reader.records()] == [r.id for r in records]


def test_runs_that_do_not_say_what_they_are_are_left_out_and_counted(own: Path) -> None:
    copy = Store(f"sqlite:///{own}", None)
    client = copy.client()
    experiment = copy.experiment("ablation_alpha")
    first, second = (
        client.search_runs([experiment], f"tags.trial = '{n}'")[0].info.run_id for n in (0, 1)
    )
    client.set_tag(first, "stage", "polishing")
    client.set_tag(second, "seed", "one")
    reader = Reader.open(copy.uri, own.parent)
    assert len(reader.records(["ablation_alpha"])) == 14
    assert reader.notes == ("2 runs were left out: of an unknown stage or seed",)


# ---- curves


@pytest.mark.parametrize(
    ("metric", "formula"),
    [
        ("grad/norm/skeleton", lambda e: 2 / e),
        ("grad/norm_multi/skeleton", lambda e: 1 / e),
        ("grad/norm_uni/depth", lambda e: 6 / e),
        ("grad/cos/inertial", lambda e: 0.1 - 0.02 * e),
        ("balance/depth", lambda e: 1 / 3 + 0.1 * e),
        ("val/accuracy", lambda e: (0.80 + 0.01 + 0.002 * ((1 + 2) % 3)) * e / 5),
    ],
)
def test_curves_have_all_epochs(
    reader: Reader, records: list[StoredRun], metric: str, formula
) -> None:
    curve = reader.curve(one(records, sample_runs.RHOS, "grid/2", 1), metric)
    assert [e for e, _ in curve] == [1, 2, 3, 4, 5]
    assert [v for _, v in curve] == pytest.approx([formula(e) for e in range(1, 6)])


def test_only_metrics_that_a_run_has_become_curves(
    reader: Reader, records: list[StoredRun]
) -> None:
    run = one(records, sample_runs.ALPHAS, "grid/0", 1)
    found = reader.curves(run, ["grad/norm/audio", "balance/audio", "grad/norm/text"])
    assert list(found) == ["grad/norm/audio"]
    assert len(reader.curve(run, "balance/audio")) == 0


def test_nan_stays_nan(reader: Reader, records: list[StoredRun]) -> None:
    run = one(records, sample_runs.LAMBDAS, "grid/1", 3)
    values = [v for _, v in reader.curve(run, "val/accuracy")]
    assert [math.isnan(v) for v in values] == [False, False, True, True, True]
    assert math.isnan(run.metrics["test/accuracy"])


def test_of_an_epoch_logged_twice_the_last_counts_and_infinity_is_not_finite(own: Path) -> None:
    copy = Store(f"sqlite:///{own}", None)
    client = copy.client()
    run_id = client.search_runs([copy.experiment("avdigits")], max_results=1)[0].info.run_id
    late = 2**45  # ms since 1970: after whatever the fixture wrote
    new = [
        Metric("val/loss", 9.0, late, 2),
        Metric("val/loss", 7.0, late + 1, 2),
        Metric("val/loss", math.inf, late, 6),
    ]
    client.log_batch(run_id, new)
    reader = Reader.open(copy.uri, own.parent)
    run = next(r for r in reader.records() if r.id == run_id)
    curve = dict(reader.curve(run, "val/loss"))
    assert sorted(curve) == [1, 2, 3, 4, 5, 6]
    assert (curve[2], curve[6]) == (7.0, math.inf)
    assert run.metrics["val/loss"] == math.inf


# ---- artifacts


def test_artifacts_are_copied(reader: Reader, records: list[StoredRun], store_root: Path) -> None:
    parent = next(r for r in records if r.search == sample_runs.NEWER.uid and r.parent is None)
    by_record, by_id = reader.artifact(parent, "data.json"), reader.artifact(parent.id, "data.json")
    assert by_record is not None
    assert by_id is not None
    assert by_record.read_text() == by_id.read_text() == '{"name": "avdigits", "kind": "real"}'
    assert not by_record.is_relative_to(store_root)


def test_a_missing_artifact_is_none(reader: Reader, records: list[StoredRun]) -> None:
    assert reader.artifact(records[0], "gradients.npz") is None
    assert reader.artifact("0" * 32, "config.yaml") is None


def test_copies_go_with_the_reader(store: Store, records: list[StoredRun]) -> None:
    reader = Reader.open(store.uri, Path("/nowhere"))
    copy = reader.artifact(records[0], "config.yaml")
    assert copy is not None
    assert copy.exists()
    del reader
    assert not copy.exists()


def test_a_file_is_attached_and_read_back(
    reader: Reader, records: list[StoredRun], tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    page.write_text("<p>first</p>")
    parent = next(r for r in records if r.search == sample_runs.ALPHAS.uid and r.parent is None)
    reader.attach(parent.id, page, "reports")
    page.write_text("<p>second</p>")
    reader.attach(parent.id, page, "reports")
    found = reader.artifact(parent, "reports/page.html")
    assert found is not None
    assert found.read_text() == "<p>second</p>"


def test_what_cannot_be_attached_is_one_message(reader: Reader, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("")
    with pytest.raises(UserError, match=r"page\.html cannot be attached to run 0+ in sqlite:"):
        reader.attach("0" * 32, page)


# ---- opening


def test_explicit_uri_then_environment_then_the_root(
    store_root: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Reader.open(None, tmp_path).shown == f"sqlite:///{own}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store_root}/mlruns/mlflow.db")
    assert Reader.open(None, tmp_path).shown == f"sqlite:///{store_root}/mlruns/mlflow.db"
    assert Reader.open(f"sqlite:///{own}", Path("/nowhere")).shown == f"sqlite:///{own}"


def test_reading_changes_no_byte(own: Path, tmp_path: Path) -> None:
    before = own.read_bytes()
    reader = Reader.open(None, tmp_path)
    reader.curve(reader.records()[1], "val/accuracy")
    assert own.read_bytes() == before
    assert [p.name for p in tmp_path.rglob("*")] == ["mlruns", "mlflow.db"]


def test_a_missing_store_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"mlruns/mlflow\.db does not exist: `python -m tune_mm\.search"
    ) as caught:
        Reader.open(None, tmp_path)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_stays_empty(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"")
    with pytest.raises(UserError, match=r"x\.db is empty"):
        Reader.open(f"sqlite:///{tmp_path}/x.db", tmp_path)
    assert (tmp_path / "x.db").read_bytes() == b""


def test_a_database_of_something_else(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("CREATE TABLE birds (name TEXT)")
    with pytest.raises(UserError, match="holds other tables than MLflow's"):
        Reader.open(f"sqlite:///{tmp_path}/x.db", tmp_path)


def test_a_store_without_runs_of_ours(own: Path) -> None:
    with sqlite3.connect(own) as connection:
        connection.execute("DELETE FROM tags WHERE key = 'stage'")
    with pytest.raises(UserError, match="has no runs of tune_mm"):
        Reader.open(f"sqlite:///{own}", own.parent)


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("451aebb31d03", "of an earlier MLflow than .*mlflow db upgrade"),
        ("ffffffffffff", "of a later MLflow than"),
    ],
)
def test_a_store_of_another_version_is_refused_and_not_migrated(
    own: Path, revision: str, message: str
) -> None:
    # 451aebb31d03 added the step to metrics (MLflow 1.0); no version has the other. A table less:
    # MLflow would add it.
    with sqlite3.connect(own) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        connection.execute("DROP TABLE scheduler_leases")
    before = own.read_bytes()
    with pytest.raises(UserError, match=message) as caught:
        Reader.open(f"sqlite:///{own}", own.parent)
    assert "\n" not in str(caught.value)
    assert own.read_bytes() == before


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:///{root}/text.db",
        "sqlite:///{root}",
        "http://127.0.0.1:9/",
        "mango://me:secret@somewhere/db",
        "postgresql://me:secret@127.0.0.1:9/db",
        "file://{root}/files",
        "{root}/files",
    ],
)
def test_what_cannot_be_read_is_one_message(
    tmp_path: Path, uri: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.db").write_text("this is no database, it is a text of some length " * 10)
    with pytest.raises(UserError, match="cannot be read") as caught:
        Reader.open(uri.format(root=tmp_path), tmp_path)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_store_that_fails_later_is_one_message(own: Path) -> None:
    reader = Reader.open(f"sqlite:///{own}", own.parent)
    with sqlite3.connect(own) as connection:
        connection.execute("DROP TABLE latest_metrics")
    with pytest.raises(UserError, match="cannot be read") as caught:
        reader.records()
    assert "\n" not in str(caught.value)


def test_reading_prints_nothing_and_loads_neither_torch_nor_ray(store: Store) -> None:
    code = """
import sys
from pathlib import Path
from tune_mm.reports.runs.store import Reader
import tune_mm.reports.runs.select
reader = Reader.open(sys.argv[1], Path.cwd())
runs = reader.records()
assert reader.artifact(runs[0], "config.yaml") is not None
assert not {"torch", "ray"} & set(sys.modules)
"""
    command = [sys.executable, "-c", code, store.uri]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
