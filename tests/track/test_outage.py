"""Stores that are away: a search goes on, what it records is on disk at once, and the store ends up
as without it.
"""

import gc
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.track.stores import NEVER, break_store, content, disconnect, mend_store, warnings
from tune_mm.errors import UserError
from tune_mm.track import RunHandle, Store, Writer
from tune_mm.track.availability import Away, ask
from tune_mm.track.backoff import Backoff
from tune_mm.track.store import Unreachable

AWAY = "http://127.0.0.1:9/"  # the discard port: nothing listens there


def writer_of(store: Store, retry: Backoff | None = None) -> Writer:
    return Writer(store, "space", search="first", interval=NEVER, retry=retry)


def queue_of(tmp_path: Path) -> Path:
    (found,) = (tmp_path / "mlruns" / "queue").glob("*/first")
    return found


def a_search(writer: Writer) -> tuple[RunHandle, RunHandle]:
    parent = writer.start("search", {"trials": 1}, {"stage": "search"}, key="search")
    trial = writer.start("trial 0", {"lr": 0.1}, parent=parent, key="search/0")
    writer.log(trial, {"val/loss": 0.5, "val/accuracy": 0.8}, 1)
    writer.artifact(trial, "a: 1\n", "config.yaml")
    writer.finish(trial, "completed")
    writer.finish(parent, "stopped", "interrupted")
    return parent, trial


# What `a_search` leaves, read off it.
EXPECTED: dict[str, dict[str, Any]] = {
    "search": {
        "name": "search",
        "status": "KILLED",
        "parent": None,
        "params": {"trials": "1"},
        "tags": {"stage": "search", "status": "stopped", "reason": "interrupted"},
        "metrics": {},
        "files": {},
    },
    "search/0": {
        "name": "trial 0",
        "status": "FINISHED",
        "parent": "search",
        "params": {"lr": "0.1"},
        "tags": {"status": "completed"},
        "metrics": {"val/loss": [(1, 0.5)], "val/accuracy": [(1, 0.8)]},
        "files": {"config.yaml": "a: 1\n"},
    },
}


# ---- the store is back while the search runs


def test_records_of_a_killed_search_are_there_when_it_goes_on(store: Store, tmp_path: Path) -> None:
    writer = writer_of(store)
    break_store(store, tmp_path)
    a_search(writer)
    assert not writer.flush()
    del writer  # a kill
    gc.collect()  # the failure's traceback holds the writer too
    mend_store(store, tmp_path)
    with writer_of(store) as again:
        parent = again.start("search", key="search")
        again.flush()
        assert parent.run_id is not None
        again.finish(parent, "stopped", "interrupted")
    assert content(store, "first") == EXPECTED
    assert not (tmp_path / "mlruns" / "queue").exists()


def test_a_kill_between_two_rounds_loses_nothing_of_a_store_that_answers(store: Store) -> None:
    writer = writer_of(store)
    a_search(writer)
    del writer
    writer_of(store).close()
    assert content(store, "first") == EXPECTED


def test_runs_keep_their_times(store: Store, tmp_path: Path) -> None:
    writer = writer_of(store)
    first, second = writer.start("first", key="a"), writer.start("second", key="b")
    writer.finish(first, "completed")
    break_store(store, tmp_path)
    writer.finish(second, "failed")
    writer.flush()
    lines = (queue_of(tmp_path) / "01000000.jsonl").read_text()
    mend_store(store, tmp_path)
    writer.close()
    for run in (first, second):
        info = store.client().get_run(str(run.run_id)).info
        assert f'"start":{info.start_time}' in lines
        assert f'"ended":{info.end_time}' in lines


def test_a_store_that_failed_is_not_tried_before_its_pause_is_over(
    store: Store, tmp_path: Path
) -> None:
    now = 0.0
    writer = writer_of(store, Backoff(lambda: now))
    break_store(store, tmp_path)
    parent, _ = a_search(writer)
    writer._beat()  # 1 s until the next attempt
    now = 1.0
    writer._beat()  # 2 s
    mend_store(store, tmp_path)
    now = 2.9
    writer._beat()
    assert parent.run_id is None
    now = 3.0
    writer._beat()
    assert parent.run_id is not None
    assert content(store, "first") == EXPECTED
    writer.close()


def test_a_file_that_is_missing_is_not_made_anew(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = tmp_path / "mlruns" / "mlflow.db"
    writer = writer_of(store)
    disconnect(store)
    database.rename(tmp_path / "away.db")
    a_search(writer)
    assert not writer.flush()
    assert not database.exists()
    (tmp_path / "away.db").rename(database)
    writer.close()
    assert content(store, "first") == EXPECTED
    said = [line.split(": ", 1)[1] for line in warnings(caplog)]
    assert len(said) == 2
    assert f"{database} is missing); work goes on, records are queued in" in said[0]
    assert said[1].endswith("works again, 6 queued records are written")  # the calls in `a_search`


# ---- a store that is down when the search begins


def test_a_server_that_is_away_is_an_error_unless_it_is_let_pass(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"cannot be used: 127\.0\.0\.1:9 does not answer"):
        Store.open(AWAY, tmp_path)
    assert Store.open(AWAY, tmp_path, required=False).uri == AWAY


@pytest.mark.parametrize(
    "uri", ["mango://x/db", "postgresql://me@127.0.0.1:9/db", "sqlite:////proc/version/x.db"]
)
def test_a_mistake_is_never_let_pass(tmp_path: Path, uri: str) -> None:
    with pytest.raises(UserError, match="cannot be used") as caught:
        Store.open(uri, tmp_path, required=False)
    assert not isinstance(caught.value, Unreachable)


def test_a_search_without_a_store_queues_everything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = writer_of(Store.open(AWAY, tmp_path, required=False))
    assert writer.experiment_id == ""
    parent, trial = a_search(writer)
    assert not writer.flush()
    writer.close()
    assert (parent.run_id, trial.run_id) == (None, None)
    first, last = warnings(caplog)
    assert "does not answer" in first
    assert "work goes on, records are queued in" in first
    assert (
        "6 records of 'space' wait; once the store is back: python -m tune_mm.track replay --queue"
        in last
    )


def test_a_file_store_that_could_not_be_made_is_made_later(tmp_path: Path, template: Path) -> None:
    database = tmp_path / "mlruns" / "mlflow.db"
    store = Store.at(f"sqlite:///{database}", tmp_path)
    database.mkdir(parents=True)
    with pytest.raises(UserError, match="is no file"):
        Store.open(store.uri, tmp_path, required=False)
    database.rmdir()
    database.write_bytes(b"")  # as where the disk had no room for more
    writer = writer_of(store)
    a_search(writer)
    assert not writer.flush()
    database.unlink()
    database.write_bytes(template.read_bytes())
    writer.close()
    assert content(store, "first") == EXPECTED


@pytest.fixture
def ill() -> Iterator[str]:
    """A server that answers 503, or 401 below /closed."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401 if self.path.startswith("/closed") else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_5xx_is_away_and_any_other_answer_is_not(ill: str) -> None:
    with pytest.raises(Away, match="answers 503 Service Unavailable"):
        ask(ill)
    ask(f"{ill.replace('://', '://me:secret@')}/closed/")
    ask("sqlite:////nowhere/x.db")


# ---- damage


def test_a_last_line_cut_short_is_dropped_with_a_note(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = writer_of(store)
    a_search(writer)
    del writer
    segment = queue_of(tmp_path) / "01000000.jsonl"
    segment.write_bytes(segment.read_bytes()[:-20])
    writer_of(store).close()
    assert "its last line was cut short and is dropped" in warnings(caplog)[0]
    assert len(warnings(caplog)) == 1
    found = content(store, "first")
    assert found["search/0"] == EXPECTED["search/0"]
    assert found["search"]["status"] == "RUNNING"
    assert not (tmp_path / "mlruns" / "queue").exists()


def test_a_damaged_line_is_kept_aside_and_the_others_are_written(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = writer_of(store)
    a_search(writer)
    del writer
    queue = queue_of(tmp_path)
    segment = queue / "01000000.jsonl"
    before = segment.read_bytes().splitlines(keepends=True)
    bad = before[2].replace(b"0.5", b"0.6")
    segment.write_bytes(b"".join([*before[:2], bad, *before[3:]]))
    writer_of(store).close()
    expected = {**EXPECTED, "search/0": {**EXPECTED["search/0"], "metrics": {}}}
    assert content(store, "first") == expected
    assert (queue / "damaged.jsonl").read_bytes() == bad
    told = warnings(caplog)
    assert "line 3 is damaged (the line is not whole) and kept in" in told[0]
    assert (
        told[1]
        == f"tracking: 1 records of 'space' are damaged and kept in {queue / 'damaged.jsonl'}"
    )


def test_a_queue_that_somebody_removed_is_said(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = writer_of(store)
    parent, _ = a_search(writer)
    (queue_of(tmp_path) / "01000000.jsonl").unlink()
    assert writer.flush()
    assert "was removed by somebody: its records are lost" in warnings(caplog)[0]
    writer.start("search", key="search")
    assert writer.flush()
    assert parent.run_id is not None
    writer.close()
