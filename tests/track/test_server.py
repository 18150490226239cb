"""A real MLflow server that is killed, and one that begins after the search: nothing lost, nothing
doubled.
"""

import contextlib
import gc
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.track.stores import NEVER, content, warnings
from tune_mm.track import RunHandle, Store, Writer
from tune_mm.track.__main__ import main
from tune_mm.track.availability import Away, ask

pytestmark = pytest.mark.slow
Server = Callable[[], "subprocess.Popen[bytes]"]


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def serve(store: Store, tmp_path: Path, port: int) -> Iterator[Server]:
    """Starts a server on the store of the test; it answers when this returns."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> "subprocess.Popen[bytes]":
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        command += [
            "--workers",
            "1",
            "--backend-store-uri",
            store.uri,
            "--artifacts-destination",
            f"{tmp_path}/files",
        ]
        # A session of its own: the server has workers, and all of them are to be killed.
        with (tmp_path / "server.log").open("ab") as log:
            server = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=tmp_path, start_new_session=True
            )
        started.append(server)
        while not answers(port):
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(0.2)
            assert server.returncode is None, (tmp_path / "server.log").read_text()[-2000:]
        return server

    yield start
    for server in started:
        kill(server)


def answers(port: int) -> bool:
    try:
        ask(f"http://127.0.0.1:{port}")
    except Away:
        return False
    return True


def kill(server: "subprocess.Popen[bytes]") -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def writer_of(store: Store) -> Writer:
    return Writer(store, "space", search="first", interval=NEVER)


def epochs(writer: Writer, run: RunHandle, numbers: range) -> None:
    for epoch in numbers:
        writer.log(run, {"val/loss": epoch / 8, "val/accuracy": 0.5}, epoch)


# What both searches leave: ten epochs, in eighths.
TRIAL = {
    "name": "trial 0",
    "status": "FINISHED",
    "parent": "search",
    "params": {"lr": "0.1"},
    "tags": {"status": "completed"},
    "metrics": {
        "val/loss": [(e, e / 8) for e in range(10)],
        "val/accuracy": [(e, 0.5) for e in range(10)],
    },
    "files": {"best.txt": "state"},
}


def test_a_server_that_is_killed_and_comes_back(
    serve: Server, port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    (tmp_path / "state").write_text("state")
    store = Store.open(f"http://127.0.0.1:{port}", tmp_path)
    writer = writer_of(store)
    parent = writer.start("search", key="search")
    trial = writer.start("trial 0", {"lr": 0.1}, parent=parent, key="t0")
    epochs(writer, trial, range(4))
    assert writer.flush()
    kill(server)
    epochs(writer, trial, range(4, 8))
    writer.artifact(trial, tmp_path / "state", "best.txt")
    assert not writer.flush()
    del writer  # the search is killed too, and goes on with no server: it repeats an epoch
    gc.collect()  # tracebacks of failures hold the writer
    writer = writer_of(Store.open(store.uri, tmp_path, required=False))
    trial = writer.start(
        "trial 0", {"lr": 0.1}, parent=writer.start("search", key="search"), key="t0"
    )
    epochs(writer, trial, range(7, 10))
    writer.finish(trial, "completed")
    assert not writer.flush()
    serve()
    assert writer.flush()
    writer.close()
    found = content(store, "first")
    assert found["t0"] == TRIAL
    assert sorted(found) == ["search", "t0"]
    assert any("does not answer" in line and "work goes on" in line for line in warnings(caplog))
    assert "works again" in warnings(caplog)[-1]
    assert not (tmp_path / "mlruns" / "queue").exists()


def test_a_server_that_begins_after_the_search(
    serve: Server, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "state").write_text("state")
    store = Store.open(f"http://127.0.0.1:{port}", tmp_path, required=False)
    with writer_of(store) as writer:
        parent = writer.start("search", key="search")
        trial = writer.start("trial 0", {"lr": 0.1}, parent=parent, key="t0")
        epochs(writer, trial, range(10))
        writer.artifact(trial, tmp_path / "state", "best.txt")
        writer.finish(trial, "completed")
    assert main(["replay"]) == 1
    serve()
    assert main(["replay"]) == 0
    assert content(store, "first")["t0"] == TRIAL
    assert not (tmp_path / "mlruns" / "queue").exists()


def test_a_server_that_hangs_does_not_hold_up_the_end(
    serve: Server, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = serve()
    store = Store.open(f"http://127.0.0.1:{port}", tmp_path)
    with writer_of(store) as writer:
        run = writer.start("trial 0", key="t0")
        assert writer.flush()
        os.killpg(server.pid, signal.SIGSTOP)
        epochs(writer, run, range(3))
        assert not writer.flush()
    os.killpg(server.pid, signal.SIGCONT)
    assert main(["replay"]) == 0
    assert content(store, "first")["t0"]["metrics"]["val/loss"] == [(0, 0.0), (1, 0.125), (2, 0.25)]
