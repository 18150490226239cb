"""A store exists and answers once it is opened, whoever else opens it, or it is refused in one
clear message.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tune_mm.config import UserError
from tune_mm.track import Store
from tune_mm.track.store import redacted

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def no_uri_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_default_is_sqlite_below_the_root_and_leaves_nothing_else(tmp_path: Path) -> None:
    store = Store.open(None, tmp_path / "project")
    database = tmp_path / "project" / "mlruns" / "mlflow.db"
    assert store.uri == f"sqlite:///{database}"
    store.experiment("demo")
    run = store.client().create_run(store.experiment("demo"))
    store.client().log_text(run.info.run_id, "hello", "note.txt")
    assert [p.name for p in tmp_path.iterdir()] == ["project"]
    assert sorted(p.name for p in database.parent.iterdir()) == ["artifacts", "mlflow.db"]
    assert (
        database.parent / "artifacts" / "demo" / run.info.run_id / "artifacts" / "note.txt"
    ).read_text() == "hello"
    assert not list(tmp_path.rglob("meta.yaml"))


def test_a_file_store_nearby_changes_nothing(tmp_path: Path) -> None:
    trap = tmp_path / "mlruns" / "0" / "meta.yaml"
    trap.parent.mkdir(parents=True)
    trap.write_text("experiment_id: '0'\n")
    assert Store.open(None, tmp_path).uri.startswith("sqlite:")


def test_opening_again_keeps_what_is_there(tmp_path: Path) -> None:
    first = Store.open(None, tmp_path).experiment("demo")
    assert Store.open(None, tmp_path).experiment("demo") == first
    names = {e.name for e in Store.open(None, tmp_path).client().search_experiments()}
    assert names == {"Default", "demo"}


def test_explicit_uri_then_environment_then_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/env.db")
    assert Store.open(None, tmp_path).uri == f"sqlite:///{tmp_path}/env.db"
    assert (
        Store.open(f"sqlite:///{tmp_path}/own.db", tmp_path).uri == f"sqlite:///{tmp_path}/own.db"
    )
    assert not (tmp_path / "mlruns").exists()


def test_a_relative_uri_becomes_absolute(tmp_path: Path) -> None:
    assert (
        Store.open("sqlite:///here/runs.db", tmp_path).uri == f"sqlite:///{tmp_path}/here/runs.db"
    )


def test_mlflows_own_tracking_uri_is_left_alone(tmp_path: Path) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    Store.open(None, tmp_path / "project").experiment("demo")
    assert mlflow.get_tracking_uri() == before


def test_mlflow_itself_reads_the_store(tmp_path: Path) -> None:
    store = Store.open(None, tmp_path)
    expected = store.experiment("demo")
    found = MlflowClient(f"sqlite:///{tmp_path}/mlruns/mlflow.db").get_experiment_by_name("demo")
    assert found is not None
    assert found.experiment_id == expected
    assert found.artifact_location == f"file://{tmp_path}/mlruns/artifacts/demo"


def test_four_processes_on_a_fresh_store(tmp_path: Path) -> None:
    # All wait for the gate, so that they meet in the same empty folder.
    code = """
import sys
from pathlib import Path
from tune_mm.track import Store, Writer
print("ready", flush=True)
sys.stdin.readline()
with Writer(Store.open(None, Path(sys.argv[1])), "demo", search=sys.argv[2]) as writer:
    run = writer.start("run", key="only")
    writer.log(run, {"val/loss": 1.0}, 1)
    writer.finish(run, "completed")
assert run.run_id is not None
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    pipe = subprocess.PIPE
    workers = [
        subprocess.Popen(
            [*command, f"s{i}"], env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
        )
        for i in range(4)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    outputs = []
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("\n")
        worker.stdin.flush()
    for worker in workers:
        outputs.append((*worker.communicate(), worker.returncode))
    assert outputs == [("", "", 0)] * 4
    store = Store.open(None, tmp_path)
    runs = store.client().search_runs([store.experiment("demo")])
    assert {r.data.tags["tune_mm.search"] for r in runs} == {"s0", "s1", "s2", "s3"}
    assert sorted(p.name for p in (tmp_path / "mlruns").iterdir()) == ["mlflow.db"]


def unusable(tmp_path: Path, case: str) -> str:
    """A URI that cannot work."""
    if case == "folder":
        (tmp_path / "x.db").mkdir()
    elif case == "no database":
        (tmp_path / "x.db").write_text("this is no database, it is a text of some length " * 10)
    elif case == "below a file":
        (tmp_path / "file").write_text("")
        return f"sqlite:///{tmp_path}/file/x.db"
    elif case == "server away":
        return "http://127.0.0.1:9/"
    elif case == "unknown scheme":
        return "mango://somewhere/db"
    elif case == "no driver":
        return "postgresql://me:secret@127.0.0.1:9/db"
    elif case == "file store":
        return f"file://{tmp_path}/files"
    return f"sqlite:///{tmp_path}/x.db"


@pytest.mark.parametrize(
    "case",
    [
        "folder",
        "no database",
        "below a file",
        "server away",
        "unknown scheme",
        "no driver",
        "file store",
    ],
)
def test_an_unusable_store_is_a_users_mistake(
    tmp_path: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = unusable(tmp_path, case)
    with pytest.raises(UserError, match="cannot be used") as caught:
        Store.open(uri, tmp_path)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(
    not Path("/proc/version").exists(), reason="no folder here that even root may not write to"
)
def test_an_unwritable_folder_is_a_users_mistake() -> None:
    with pytest.raises(UserError, match=r"/proc/mlruns/mlflow\.db cannot be used: .*/proc/mlruns"):
        Store.open(None, Path("/proc"))


def test_opening_says_nothing(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from tune_mm.track import Store; Store.open(None, Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_deleted_experiment_is_named_with_the_way_out(tmp_path: Path) -> None:
    store = Store.open(None, tmp_path)
    store.client().delete_experiment(store.experiment("demo"))
    with pytest.raises(UserError, match="mlflow experiments restore -x 1"):
        store.experiment("demo")


def test_passwords_are_not_shown() -> None:
    assert redacted("postgresql://me:secret@host/db") == "postgresql://me:***@host/db"
    assert redacted("sqlite:////a/b.db") == "sqlite:////a/b.db"
