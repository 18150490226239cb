"""A search whose MLflow server dies and comes back, or is away from beginning to end: nothing lost,
nothing doubled.
"""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.survival.processes import Process, Started, runs, summary, tracked, write
from tests.survival.traced import GO, GO_AGAIN, HELD, HELD_AGAIN, trace
from tune_mm.errors import UserError
from tune_mm.track import Store
from tune_mm.track.availability import Away, ask
from tune_mm.tune.plan import plan
from tune_mm.tune.plan.plan import Options
from tune_mm.tune.tracking import Tracker

NOTE = "mlflow.note.content"
VIEWS = {"mlflow.sharedViewState.tune_mm_searches", "mlflow.sharedViewState.tune_mm_trials"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search with the default store."""
    root, found = tmp_path_factory.mktemp("undisturbed"), Started()
    search = found.search(root, space=write(root), concurrency=1)
    assert search.ends() == 0, search.says
    found.close()
    return root


@pytest.fixture
def uri() -> str:
    """The address of a server that does not run yet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def serve(started: Started, root: Path, uri: str) -> Process:
    """A server on a database of its own; it answers when this returns."""
    given = {
        "host": "127.0.0.1",
        "port": uri.rpartition(":")[2],
        "workers": "1",
        "backend-store-uri": f"sqlite:///{root}/server.db",
        "artifacts-destination": f"{root}/files",
    }
    server = started.module(root, "mlflow", "server", *(f"--{k}={v}" for k, v in given.items()))
    server.until(lambda: answers(uri), "an answer")
    return server


def answers(uri: str) -> bool:
    try:
        ask(uri)
    except Away:
        return False
    return True


def experiment(root: Path, uri: str, name: str = "toy") -> Any:
    return Store.open(uri, root).client().get_experiment_by_name(name)


def note(root: Path, uri: str) -> str:
    """The description of the search's parent run."""
    (parent,) = (r for r in runs(root, uri=uri) if r.data.tags["tune_mm.key"] == "search")
    return str(parent.data.tags[NOTE])


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back(
    undisturbed: Path, tmp_path: Path, started: Started, uri: str
) -> None:
    """kill -9 in the middle of a trial; it is back while the search still runs, and catches up at
    once.
    """
    space, server = write(tmp_path), serve(started, tmp_path, uri)
    search = started.search(
        tmp_path, space=space, concurrency=1, tracking_uri=uri, hold=8, again=11
    )
    search.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
    server.kill_all()
    (tmp_path / GO).touch()
    search.until(lambda: trace(tmp_path, HELD_AGAIN), "a later epoch that waits")
    search.until(
        lambda: "work goes on, records are queued in" in search.says, "a word about the server"
    )
    assert list((tmp_path / "mlruns" / "queue").glob("*/*/*.jsonl"))
    serve(started, tmp_path, uri)
    search.until(lambda: f"{uri} works again" in search.says, "a word that the server is back")
    (tmp_path / GO_AGAIN).touch()
    assert search.ends() == 0, search.says
    assert search.says.count("tracking: ") == 2 and "Traceback" not in search.says
    assert tracked(tmp_path, uri=uri) == tracked(undisturbed)
    assert not (tmp_path / "mlruns" / "queue").exists()
    assert set(experiment(tmp_path, uri).tags) >= VIEWS


@pytest.mark.slow
def test_a_server_that_is_away_for_the_whole_search(
    undisturbed: Path, tmp_path: Path, started: Started, uri: str
) -> None:
    """Nothing answers from the first trial to the last; then a server begins, and `replay` brings
    it all.
    """
    search = started.search(tmp_path, space=write(tmp_path), concurrency=1, tracking_uri=uri)
    assert search.ends() == 0, search.says
    assert (
        "does not answer" in search.says
        and "work goes on, records are queued in mlruns/queue/" in search.says
    )
    assert (
        "once the store is back: python -m tune_mm.track replay --queue mlruns/queue/"
        in search.says
    )
    assert "Traceback" not in search.says
    told = [
        {k: v for k, v in summary(r).items() if k in ("status", "best")}
        for r in (tmp_path, undisturbed)
    ]
    assert told[0]["status"] == "completed" and told[0]["best"].keys() == told[1]["best"].keys()
    early = started.module(tmp_path, "tune_mm.track", "replay")
    assert early.ends() == 1 and "kept: " in early.says and "does not answer" in early.says

    serve(started, tmp_path, uri)
    replay = started.module(tmp_path, "tune_mm.track", "replay")
    assert replay.ends() == 0, replay.says
    assert f"of {len(tracked(undisturbed))} runs are in {uri}; the queue is removed" in replay.says
    assert tracked(tmp_path, uri=uri) == tracked(undisturbed)
    again = started.module(tmp_path, "tune_mm.track", "replay")
    assert (again.ends(), again.says) == (0, "no queued records below mlruns\n")
    assert "Status: completed" in note(tmp_path, uri)


def begun(root: Path, uri: str) -> Tracker:
    given = Options(root=root, space=write(root), tracking_uri=uri)
    return Tracker(plan.resolve(given), "real", {})


def test_views_and_links_wait_for_the_store(tmp_path: Path) -> None:
    """A file that is empty, as where the disk had no room for more, and is there when the search
    ends.
    """
    database, other = tmp_path / "store.db", tmp_path / "other.db"
    Store.open(f"sqlite:///{other}", tmp_path)
    database.touch()
    address = f"sqlite:///{database}"
    tracker = begun(tmp_path, address)
    database.unlink()
    shutil.copyfile(other, database)
    said = {
        "status": "completed",
        "objective": "val/accuracy",
        "stages": {"search": {"complete": 8}},
        "best": {},
    }
    tracker.summary(json.dumps({**said, "finals": None}), {}, "completed")
    tracker.close()
    assert set(experiment(tmp_path, address).tags) >= VIEWS
    (run,) = runs(tmp_path, uri=address)
    assert f"runs/{run.info.run_id}/artifacts/summary.json" in run.data.tags[NOTE]


@pytest.mark.parametrize(
    "uri", ["mango://x/db", "postgresql://me@127.0.0.1:9/db", "sqlite:////proc/version/x.db"]
)
def test_an_address_that_can_never_work_is_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match=r"tracking store .* cannot be used"):
        begun(tmp_path, uri)
    assert not (tmp_path / "mlruns").exists()
