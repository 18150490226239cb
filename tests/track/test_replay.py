"""`python -m tune_mm.track replay`: what is queued gets into its store once, whoever kills it in
the middle.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.track.stores import NEVER, break_store, content, mend_store
from tune_mm.errors import UserError
from tune_mm.track import Store, Writer
from tune_mm.track.__main__ import main
from tune_mm.track.outbox.queue import Queue
from tune_mm.track.replay import replay

REPOSITORY = Path(__file__).resolve().parents[2]
TRIALS, EPOCHS = 3, 4


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def a_search(writer: Writer) -> None:
    parent = writer.start("search", {"trials": TRIALS}, key="search")
    for i in range(TRIALS):
        trial = writer.start(f"trial {i}", {"lr": i}, parent=parent, key=f"t{i}")
        for epoch in range(EPOCHS):
            writer.log(trial, {"val/loss": i + epoch / 10}, epoch)
        file = Path("state")
        file.write_text(f"state {i}")
        writer.artifact(trial, file, "checkpoints.txt")
        writer.finish(trial, "completed")


def expected() -> dict[str, object]:
    """What `a_search` leaves, read off it."""
    plain = {"parent": "search", "status": "FINISHED", "tags": {"status": "completed"}}
    trials = {
        f"t{i}": {
            **plain,
            "name": f"trial {i}",
            "params": {"lr": str(i)},
            "metrics": {"val/loss": [(epoch, i + epoch / 10) for epoch in range(EPOCHS)]},
            "files": {"checkpoints.txt": f"state {i}"},
        }
        for i in range(TRIALS)
    }
    # Nobody finished it: `close` says stopped.
    search = {
        "name": "search",
        "status": "KILLED",
        "parent": None,
        "params": {"trials": "3"},
        "tags": {"status": "stopped"},
        "metrics": {},
        "files": {},
    }
    return {"search": search, **trials}


@pytest.fixture
def queue(store: Store, tmp_path: Path) -> Path:
    """What a search has left whose store was away all the time; the store is back."""
    break_store(store, tmp_path)
    with Writer(store, "space", search="first", interval=NEVER) as writer:
        a_search(writer)
    mend_store(store, tmp_path)
    (found,) = Path("mlruns/queue").glob("*/first")
    return found


def test_everything_gets_into_the_store_and_the_queue_is_removed(
    store: Store, queue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay"]) == 0
    assert content(store, "first") == expected()
    # 1 start and the end of the parent; 1 start, 4 epochs, 1 file and the end of each trial
    assert (
        capsys.readouterr().out
        == f"{queue}: 23 records of 4 runs are in {store.uri}; the queue is removed\n"
    )
    assert not Path("mlruns/queue").exists()
    assert main(["replay"]) == 0
    assert capsys.readouterr().out == "no queued records below mlruns\n"


def test_a_store_that_is_still_away_keeps_the_queue(
    store: Store, queue: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    break_store(store, tmp_path)
    assert main(["replay", "--queue", str(queue)]) == 1
    database = tmp_path / "mlruns" / "mlflow.db"
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"{queue}: kept: {database} is no file"
    assert told[1].startswith(f"{queue}: 23 records of 'space' wait")
    database.rmdir()
    assert main(["replay"]) == 1
    assert f"{database} is missing" in capsys.readouterr().err
    assert not database.exists()
    database.mkdir()
    mend_store(store, tmp_path)
    assert main(["replay"]) == 0
    assert content(store, "first") == expected()


@pytest.mark.parametrize("calls", [2, 7])
def test_a_replay_killed_in_the_middle_doubles_and_loses_nothing(
    store: Store, queue: Path, calls: int
) -> None:
    code = """
import os, signal, sys
from mlflow.tracking import MlflowClient
from tune_mm.track.__main__ import main
left = int(sys.argv[1])
for name in ("create_run", "log_batch", "log_artifact", "set_terminated"):
    def call(self, *args, inner=getattr(MlflowClient, name), **kwargs):
        global left
        found = inner(self, *args, **kwargs)
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    setattr(MlflowClient, name, call)
main(["replay"])
"""
    command = [sys.executable, "-c", code, str(calls)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False)
    assert done.returncode == -9
    assert content(store, "first") != expected()
    assert main(["replay"]) == 0
    assert content(store, "first") == expected()


def test_a_search_that_goes_on_takes_its_queue_over(store: Store, queue: Path) -> None:
    with Writer(store, "space", search="first", interval=NEVER) as writer:
        parent = writer.start("search", key="search")
        trial = writer.start("trial 0", parent=parent, key="t0")
        writer.log(
            trial, {"val/loss": 9.0}, EPOCHS - 1
        )  # the last epoch once more, from a checkpoint
        writer.finish(trial, "completed")
    assert content(store, "first") == expected()
    assert not queue.exists()


def test_a_search_that_runs_keeps_its_queue(
    store: Store, queue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running = Queue(queue)
    assert main(["replay"]) == 1
    assert "in use by a running search, which writes it itself" in capsys.readouterr().err
    running.close()
    assert content(store, "first") == {}


def test_a_store_that_never_was_is_made_only_by_name(store: Store, queue: Path) -> None:
    never = f"sqlite:///{Path.cwd()}/never/mlflow.db"
    Queue(queue).describe(uri=never)
    assert main(["replay"]) == 1
    assert not Path("never").exists()
    assert main(["replay", "--tracking-uri", never]) == 0
    assert content(Store.open(never, Path.cwd()), "first") == expected()


def test_another_store_takes_what_the_first_does_not_have(
    store: Store, queue: Path, template: Path
) -> None:
    other = Path("other.db")
    other.write_bytes(template.read_bytes())
    assert main(["replay", "--tracking-uri", f"sqlite:///{other}"]) == 0
    assert content(store, "first") == {}
    assert content(Store.open(f"sqlite:///{other}", Path.cwd()), "first") == expected()


def test_what_the_store_refuses_is_kept_and_tried_again(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    writer = Writer(store, "space", search="first", interval=NEVER)
    run = writer.start("trial", key="t0")
    assert writer.flush()
    assert run.run_id is not None
    store.client().delete_run(run.run_id)
    writer.log(run, {"val/loss": 1.0}, 1)
    writer.close()
    assert main(["replay"]) == 1
    # One line for what is left of the run: its metrics and its end came in the same round.
    assert "1 records of 'space' are refused by the store and kept in" in capsys.readouterr().err
    store.client().restore_run(run.run_id)
    assert main(["replay"]) == 0
    found = content(store, "first")["t0"]
    assert (found["metrics"], found["status"]) == ({"val/loss": [(1, 1.0)]}, "KILLED")
    assert not (tmp_path / "mlruns" / "queue").exists()


def test_a_damaged_line_is_said_every_time(
    store: Store, queue: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    segment = queue / "01000000.jsonl"
    lines = segment.read_bytes().splitlines(keepends=True)
    segment.write_bytes(b"".join([*lines[:2], b"\0" * 30 + b"\n", *lines[3:]]))
    for _ in range(2):
        assert main(["replay"]) == 1
        assert (
            f"1 records of 'space' are damaged and kept in {queue / 'damaged.jsonl'}"
            in capsys.readouterr().err
        )
    assert content(store, "first")["t0"]["metrics"] == {"val/loss": [(1, 0.1), (2, 0.2), (3, 0.3)]}


def test_a_password_is_not_kept_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.at("http://me:secret@127.0.0.1:9", Path.cwd())
    assert "secret" not in str(store.queue("first"))
    with Writer(store, "space", search="second", interval=NEVER) as writer:
        writer.start("run")
        folder = writer._queue.folder
    about = (folder / "queue.json").read_text()
    assert "secret" not in about
    assert "me:***@127.0.0.1:9" in about
    (line,) = [line for line in replay(folder).lines if "kept: " in line]
    assert line.endswith(
        "the password of http://me:***@127.0.0.1:9 is not kept: give the whole address by --tracking-uri"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    assert "does not answer" in replay(folder).lines[0]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["replya"], "no command 'replya'; nearest 'replay'; available: replay"),
        (["replay", "--queue", "nowhere"], "--queue: no such folder 'nowhere'"),
        (
            ["replay", "--queue", "mlruns/artifacts"],
            "--queue: mlruns/artifacts is no queue of tracking records",
        ),
        ([], "the following arguments are required: replay"),
        (["replay", "--quick"], "unrecognized arguments: --quick"),
    ],
)
def test_a_mistake_is_said(store: Store, arguments: list[str], said: str) -> None:
    Path("mlruns/artifacts").mkdir()
    with pytest.raises(UserError, match=said):
        main(arguments)


def test_queues_of_two_stores_do_not_go_into_one(store: Store, queue: Path) -> None:
    with Writer(
        Store.at("http://127.0.0.1:9", Path.cwd()), "space", search="first", interval=NEVER
    ) as writer:
        writer.start("run")
    with pytest.raises(
        UserError, match=r"--tracking-uri: there are queues of http://127\.0\.0\.1:9, sqlite:///"
    ):
        main(["replay", "--tracking-uri", store.uri])
