"""The writer against a real sqlite store: runs nest, restarts repeat nothing, a store that fails
loses nothing.
"""

import math
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.track.stores import NEVER, break_store, mend_store, warnings
from tune_mm.config import UserError
from tune_mm.track import RunHandle, Store, Writer

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def writer(store: Store) -> Iterator[Writer]:
    with Writer(store, "space", search="first", interval=NEVER) as found:
        yield found


def again(store: Store, search: str = "first") -> Writer:
    """What a new process would make."""
    return Writer(store, "space", search=search, interval=NEVER)


def read(store: Store, run: RunHandle) -> Run:
    assert run.run_id is not None
    return store.client().get_run(run.run_id)


def runs(store: Store) -> list[Run]:
    return list(store.client().search_runs([store.experiment("space")]))


def history(store: Store, run: RunHandle, metric: str) -> list[tuple[int, float]]:
    assert run.run_id is not None
    return [(m.step, m.value) for m in store.client().get_metric_history(run.run_id, metric)]


def test_a_search_is_a_run_with_a_run_per_trial_below_it(store: Store, writer: Writer) -> None:
    parent = writer.start("search", params={"trials": 2}, tags={"stage": "search"}, key="search")
    trials = [
        writer.start(f"trial {i}", {"method.rho": i}, {"method": "cggm"}, parent, f"t{i}")
        for i in range(2)
    ]
    for i, trial in enumerate(trials):
        for epoch in (1, 2):
            writer.log(
                trial,
                {"val/accuracy": 0.5 + i + epoch, "val/loss": 1.0, "grad/norm/audio": 2.0},
                epoch,
            )
        writer.finish(trial, "completed")
    writer.finish(parent, "completed")
    assert writer.flush()
    top = read(store, parent)
    assert (top.info.status, top.info.run_name, top.data.params) == (
        "FINISHED",
        "search",
        {"trials": "2"},
    )
    assert "mlflow.parentRunId" not in top.data.tags
    for i, trial in enumerate(trials):
        child = read(store, trial)
        assert child.data.tags["mlflow.parentRunId"] == parent.run_id
        expected = {
            "method": "cggm",
            "status": "completed",
            "search": "first",
            "tune_mm.key": f"t{i}",
        }
        assert expected.items() <= child.data.tags.items()
        assert child.data.params == {"method.rho": str(i)}
        assert history(store, trial, "val/accuracy") == [(1, 1.5 + i), (2, 2.5 + i)]
        assert set(child.data.metrics) == {"val/accuracy", "val/loss", "grad/norm/audio"}


@pytest.mark.parametrize(
    ("status", "mlflow_status"),
    [
        ("completed", "FINISHED"),
        ("pruned", "FINISHED"),
        ("failed", "FAILED"),
        ("stopped", "KILLED"),
    ],
)
def test_how_a_run_ended(store: Store, writer: Writer, status: str, mlflow_status: str) -> None:
    run = writer.start("trial", key="t")
    writer.flush()
    assert (read(store, run).info.status, read(store, run).data.tags["status"]) == (
        "RUNNING",
        "running",
    )
    writer.finish(run, status, reason="loss was NaN")  # type: ignore[arg-type]
    writer.flush()
    found = read(store, run)
    assert (found.info.status, found.data.tags["status"]) == (mlflow_status, status)
    assert found.data.tags["reason"] == "loss was NaN"
    assert found.info.end_time is not None


def test_start_does_not_wait_and_the_handle_gets_its_id(store: Store, writer: Writer) -> None:
    run = writer.start("trial")
    assert run.run_id is None
    writer.flush()
    assert read(store, run).info.run_name == "trial"


def test_a_restart_resumes_the_run_and_repeats_no_epoch(store: Store) -> None:
    first = again(store)
    run = first.start("trial", {"lr": 0.1}, key="t0")
    for epoch in (1, 2, 3):
        first.log(run, {"val/loss": float(epoch), "val/accuracy": 0.1 * epoch, "lr": 0.1}, epoch)
    first.finish(run, "failed", reason="node died")
    first.close()
    with again(store) as second:
        same = second.start("trial", {"lr": 0.1}, key="t0")
        second.flush()
        reopened = read(store, same)
        assert (reopened.info.status, reopened.data.tags["status"]) == ("RUNNING", "running")
        assert "reason" not in reopened.data.tags
        for epoch in (2, 3, 4):  # from the checkpoint of epoch 1
            second.log(same, {"val/loss": 10.0 * epoch, "val/accuracy": 0.5, "lr": 0.1}, epoch)
        second.log(
            same, {"test/accuracy": 0.7}, 2
        )  # another kind of record at a step that is there
        second.finish(same, "completed")
    assert same.run_id == run.run_id
    assert len(runs(store)) == 1
    assert history(store, same, "val/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)]
    assert history(store, same, "test/accuracy") == [(2, 0.7)]
    assert read(store, same).info.status == "FINISHED"
    with again(store) as third:
        third.log(third.start("trial", key="t0"), {"test/accuracy": 0.9}, 2)
    assert history(store, same, "test/accuracy") == [(2, 0.7)]


def test_a_restarted_search_finds_parent_and_children(store: Store) -> None:
    def session() -> tuple[RunHandle, ...]:
        with again(store) as writer:
            parent = writer.start("search", key="search")
            return parent, *(writer.start(f"t{i}", parent=parent, key=f"t{i}") for i in range(3))

    before, after = session(), session()
    assert [r.run_id for r in after] == [r.run_id for r in before]
    assert len(runs(store)) == 4
    assert {r.data.tags.get("mlflow.parentRunId") for r in runs(store)} == {None, before[0].run_id}


def test_another_search_of_the_same_keys_has_its_own_runs(store: Store) -> None:
    for search in ("first", "second"):
        with again(store, search) as writer:
            writer.start("trial", key="t0")
    assert len(runs(store)) == 2


def test_the_search_tag_tells_searches_apart_when_the_writer_has_no_name(store: Store) -> None:
    for _ in range(2):
        with Writer(store, "space", interval=NEVER) as writer:
            for search in ("a", "b it's"):
                parent = writer.start("search", tags={"search": search}, key="search")
                writer.start("t0", parent=parent, key="t0")
    assert len(runs(store)) == 4
    assert {r.data.tags["search"] for r in runs(store)} == {"a", "b it's"}


def test_the_same_key_in_one_process_is_the_same_run(store: Store, writer: Writer) -> None:
    run = writer.start("trial", key="t0")
    writer.log(run, {"val/loss": 1.0}, 1)
    writer.finish(run, "stopped")
    writer.flush()
    assert writer.start("trial", key="t0") is run
    writer.log(run, {"val/loss": 2.0}, 1)
    writer.log(run, {"val/loss": 3.0}, 2)
    writer.flush()
    assert read(store, run).info.status == "RUNNING"
    writer.finish(run, "completed")
    writer.flush()
    assert read(store, run).info.status == "FINISHED"
    assert history(store, run, "val/loss") == [(1, 1.0), (2, 3.0)]


def test_finished_and_started_again_between_two_rounds(store: Store, writer: Writer) -> None:
    run = writer.start("trial", key="t0")
    writer.finish(run, "failed")
    writer.start("trial", key="t0")
    writer.flush()
    assert (read(store, run).info.status, read(store, run).data.tags["status"]) == (
        "RUNNING",
        "running",
    )


def test_runs_without_a_key_are_new_each_time(store: Store) -> None:
    for _ in range(2):
        with again(store) as writer:
            writer.start("run")
            writer.start("run")
    assert len(runs(store)) == 4


def test_a_kill_loses_no_run_and_a_restart_continues_it(store: Store, tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from tune_mm.track import Store, Writer
writer = Writer(Store.open(sys.argv[1], Path(sys.argv[2])), "space", search="first")
run = writer.start("trial", key="t0")
for epoch in (1, 2):
    writer.log(run, {"val/loss": float(epoch)}, epoch)
writer.flush()
writer.log(run, {"val/loss": 3.0}, 3)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, store.uri, str(tmp_path)], cwd=REPOSITORY, check=False
    )
    assert done.returncode == -9
    with again(store) as writer:
        run = writer.start("trial", key="t0")
        for epoch in (2, 3, 4):
            writer.log(run, {"val/loss": float(epoch)}, epoch)
    assert len(runs(store)) == 1
    assert history(store, run, "val/loss") == [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]


def test_params_are_shortened_and_many_are_all_there(store: Store, writer: Writer) -> None:
    run = writer.start(
        "trial", {"long": "x" * 7000, "zero": 0, "none": None, **{f"p{i}": i for i in range(230)}}
    )
    writer.tags(run, {f"t{i}": "y" * 6000 for i in range(120)})
    assert writer.flush()
    found = read(store, run).data
    assert len(found.params) == 233
    assert len(found.params["long"]) == 6000
    assert (found.params["zero"], found.params["none"]) == ("0", "None")
    assert found.tags["t119"].endswith("...")


def test_a_param_that_changes_becomes_a_tag(store: Store) -> None:
    with again(store) as writer:
        run = writer.start("trial", {"lr": 0.1, "x": 1}, key="t0")
        writer.flush()
        writer.params(run, {"lr": 0.2, "new": 3})
    with again(store) as writer:
        writer.start("trial", {"lr": 0.3, "x": 1}, key="t0")
    found = read(store, run).data
    assert found.params == {"lr": "0.1", "x": "1", "new": "3"}
    assert {k: v for k, v in found.tags.items() if k.startswith("changed")} == {"changed.lr": "0.3"}


def test_thousands_of_metrics_and_values_that_are_no_numbers(store: Store, writer: Writer) -> None:
    run = writer.start("trial")
    for epoch in range(100):
        writer.log(run, {f"m{i}": float(epoch) for i in range(40)}, epoch)
    writer.log(run, {"nan": math.nan, "inf": math.inf, "odd|name": 1.0}, 0)
    writer.log(run, {}, 0)
    assert writer.flush()
    found = read(store, run).data.metrics
    assert len(found) == 43
    assert [s for s, _ in history(store, run, "m39")] == list(range(100))
    assert math.isnan(found["nan"])
    assert found["inf"] > 1e300
    assert found["odd_name"] == 1.0


def test_artifacts_are_taken_when_given(store: Store, writer: Writer, tmp_path: Path) -> None:
    run = writer.start("trial")
    file = tmp_path / "state.bin"
    file.write_bytes(b"\x00\x01")
    writer.artifact(run, file, "checkpoints/best.pt")
    file.unlink()
    writer.artifact(run, "a: 1\n", "config.yaml")
    assert writer.flush()
    assert run.run_id is not None
    folder = tmp_path / "mlruns" / "artifacts" / "space" / run.run_id / "artifacts"
    assert (folder / "checkpoints" / "best.pt").read_bytes() == b"\x00\x01"
    assert (folder / "config.yaml").read_text() == "a: 1\n"
    assert [a.path for a in store.client().list_artifacts(run.run_id)] == [
        "checkpoints",
        "config.yaml",
    ]
    with pytest.raises(ValueError, match="relative path inside the run"):
        writer.artifact(run, "x", "../outside")
    with pytest.raises(FileNotFoundError):
        writer.artifact(run, file, "again.pt")


def test_runs_that_nobody_finished_are_stopped_at_close(store: Store) -> None:
    with again(store) as writer:
        done, left = writer.start("done"), writer.start("left")
        writer.finish(done, "completed")
    writer.close()
    assert (read(store, done).info.status, read(store, left).info.status) == ("FINISHED", "KILLED")
    assert read(store, left).data.tags["status"] == "stopped"


def test_a_full_buffer_and_a_passed_interval_write_by_themselves(store: Store) -> None:
    written = threading.Event()

    def watch(writer: Writer) -> None:
        inner = writer._round

        def round_and_tell(asked: bool = False) -> bool:
            try:
                return inner(asked)
            finally:
                written.set()

        writer._round = round_and_tell  # type: ignore[method-assign]

    with again(store) as writer:
        watch(writer)
        run = writer.start("trial")
        writer.log(run, {f"m{i}": 0.0 for i in range(1000)}, 1)
        assert written.wait(30)
        assert run.run_id is not None
    written.clear()
    with Writer(store, "space", interval=0.01) as writer:
        watch(writer)
        run = writer.start("trial")
        for _ in range(2):  # the first round may have begun before the start
            written.clear()
            assert written.wait(30)
        assert run.run_id is not None


def test_threads_share_a_writer(store: Store, writer: Writer) -> None:
    handles: list[RunHandle] = []

    def work(number: int) -> None:
        run = writer.start(f"t{number}", key=f"t{number}")
        handles.append(run)
        for step in range(50):
            writer.log(run, {"val/loss": float(step)}, step)
            if step % 20 == 0:
                writer.flush()
        writer.finish(run, "completed")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.flush()
    for run in handles:
        assert [s for s, _ in history(store, run, "val/loss")] == list(range(50))


# ---- a store that fails


def test_a_store_that_fails_is_reported_once_and_nothing_is_lost(
    store: Store,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    writer = again(store)
    run = writer.start("trial", key="t0")
    writer.log(run, {"val/loss": 1.0}, 1)
    assert writer.flush()
    break_store(store, tmp_path)
    writer.log(run, {"val/loss": 2.0}, 2)
    assert not writer.flush()
    late = writer.start("late", {"x": 1}, key="t1")
    writer.log(late, {"val/loss": 5.0}, 1)
    writer.artifact(late, "text", "note.txt")
    writer.finish(late, "pruned")
    assert not writer.flush()
    assert late.run_id is None
    assert len(warnings(caplog)) == 1
    assert "fails" in warnings(caplog)[0]
    mend_store(store, tmp_path)
    writer.log(run, {"val/loss": 3.0}, 3)
    assert writer.flush()
    assert "works again" in warnings(caplog)[1]
    writer.close()
    assert len(warnings(caplog)) == 2
    assert history(store, run, "val/loss") == [(1, 1.0), (2, 2.0), (3, 3.0)]
    found = read(store, late)
    assert (found.info.status, found.data.tags["status"], found.data.params) == (
        "FINISHED",
        "pruned",
        {"x": "1"},
    )
    assert len(runs(store)) == 2
    # mlflow's own traceback of the same failure is not shown
    assert "Traceback" not in capfd.readouterr().err


def test_close_says_how_much_waits_and_where(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = again(store)
    run = writer.start("trial")
    writer.flush()
    break_store(store, tmp_path)
    writer.log(run, {"a": 1.0, "b": 2.0}, 1)
    writer.finish(run, "completed")
    writer.close()
    (queue,) = (tmp_path / "mlruns" / "queue").glob("*/first")
    way = f"once the store is back: python -m tune_mm.track replay --queue {queue}"
    assert (
        warnings(caplog)[-1] == f"tracking: 2 records of 'space' wait; {way}"
    )  # metrics of a step, end
    writer.log(run, {"a": 1.0}, 2)
    writer.close()


def test_a_failed_store_is_tried_again_without_being_asked(store: Store, tmp_path: Path) -> None:
    with Writer(store, "space", interval=0.01) as writer:
        run = writer.start("trial")
        writer.flush()
        break_store(store, tmp_path)
        writer.log(run, {"val/loss": 1.0}, 1)
        assert not writer.flush()
        mend_store(store, tmp_path)
        mended = threading.Event()
        inner = writer._report

        def report(failure: str | None) -> None:
            inner(failure)
            if failure is None:
                mended.set()

        writer._report = report  # type: ignore[method-assign]
        assert mended.wait(60)
        assert history(store, run, "val/loss") == [(1, 1.0)]


def test_an_answer_that_got_lost_makes_no_second_run(store: Store, writer: Writer) -> None:
    create = writer._sink.client.create_run

    def create_and_fail(*args: object, **kwargs: object) -> Run:
        create(*args, **kwargs)  # type: ignore[arg-type]
        raise ConnectionError("the answer did not arrive")

    writer._sink.client.create_run = create_and_fail  # type: ignore[method-assign]
    run = writer.start("trial", key="t0")
    assert not writer.flush()
    assert writer.flush()  # finds what the first call made
    assert [r.info.run_id for r in runs(store)] == [run.run_id]


def test_a_run_that_was_deleted_by_hand_holds_up_no_other(
    store: Store, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    gone, other = writer.start("gone"), writer.start("other")
    writer.flush()
    assert gone.run_id is not None
    store.client().delete_run(gone.run_id)
    for step in (1, 2):
        writer.log(gone, {"val/loss": 1.0}, step)
        writer.log(other, {"val/loss": 1.0}, step)
        assert writer.flush()
    assert history(store, other, "val/loss") == [(1, 1.0), (2, 1.0)]
    assert len(warnings(caplog)) == 1
    assert "'gone'" in warnings(caplog)[0]
    writer.close()
    # Two steps and the end: the start was written.
    assert "3 records of 'space' are refused by the store and kept in" in warnings(caplog)[-1]


def test_an_artifact_that_cannot_be_written_holds_up_nothing_else(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writer = again(store)
    run, other = writer.start("run"), writer.start("other")
    (tmp_path / "mlruns" / "artifacts").write_text("in the way")
    writer.artifact(run, "text", "note.txt")
    writer.log(run, {"val/loss": 1.0}, 1)
    writer.finish(run, "completed")
    writer.log(other, {"val/loss": 2.0}, 1)
    assert not writer.flush()
    assert read(store, run).info.status == "FINISHED"
    assert history(store, run, "val/loss") == [(1, 1.0)]
    assert history(store, other, "val/loss") == [(1, 2.0)]
    assert "note.txt" in warnings(caplog)[0]
    (tmp_path / "mlruns" / "artifacts").unlink()
    assert writer.flush()
    assert (
        tmp_path / "mlruns" / "artifacts" / "space" / str(run.run_id) / "artifacts" / "note.txt"
    ).exists()
    writer.close()


def test_an_experiment_that_cannot_be_had_is_a_users_mistake(store: Store) -> None:
    store.client().delete_experiment(store.experiment("space"))
    with pytest.raises(UserError, match="'space' is deleted"):
        Writer(store, "space")
