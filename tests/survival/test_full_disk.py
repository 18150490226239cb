"""A disk that is full costs checkpoints, not trials: it is said, and the last good checkpoint
survives.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.survival.processes import (
    SPACE,
    Started,
    last_checkpoint,
    saved,
    summary,
    tracked,
    trials,
    write,
)
from tests.survival.test_workers import EPOCHS
from tests.survival.traced import GO, GO_AGAIN, HELD, HELD_AGAIN, objective, trace
from tune_mm.core import checkpoint
from tune_mm.tune.execute.trainable import STATE

# One trial of the grid, then one final run of it.
ONE = (
    SPACE.replace("{loguniform: [1e-5, 1e-1]}", "{grid: [1e-3]}")
    .replace("defaults:\n  - {optim.lr: 1e-3}\n", "")
    .replace("{name: tpe, startup: 3}", "grid")
    .replace("{name: asha, epochs: 4, grace: 1, reduction: 2}", f"{{name: none, epochs: {EPOCHS}}}")
    .replace("{top: 1, seeds: 2, epochs: 3}", "{top: 1, seeds: 1, epochs: 2}")
    .replace("trials: 8\n", "")
)
WHOLE = list(range(1, EPOCHS + 1))


def fill(disk: Path) -> None:
    """To the last byte."""
    with (disk / "other").open("ab", buffering=0) as file:
        while free := shutil.disk_usage(disk).free:
            with contextlib.suppress(OSError):  # somebody else took it
                file.write(bytes(free))


def kept(root: Path) -> tuple[dict[str, Any], int]:
    """The run's state in the trial's last checkpoint, and the epoch that the journal says of it."""
    folder, epoch = last_checkpoint(root)
    state: dict[str, Any] = checkpoint.load(folder / STATE)["run"]
    return state, epoch


@pytest.mark.slow
def test_a_full_disk_costs_no_trial(tmp_path: Path, disk: Path, started: Started) -> None:
    """Full from the third epoch on; later the worker is killed, and goes on from what was saved
    before.
    """
    search = started.search(
        tmp_path, space=write(tmp_path, ONE), concurrency=1, storage=str(disk), hold=3, again=5
    )
    search.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
    search.until(lambda: saved(tmp_path, "search", 0, 2), "its checkpoint")
    fill(disk)
    (tmp_path / GO).touch()
    search.until(lambda: trace(tmp_path, HELD_AGAIN), "the epoch after the next")
    assert f"search 0: no checkpoint: it needs 1.0 MiB and {disk}" in search.says
    state, epoch = kept(tmp_path)
    assert (epoch, state["epochs_done"]) == (2, 2)
    (held,) = trace(tmp_path, HELD_AGAIN)
    os.kill(held["pid"], signal.SIGKILL)
    (tmp_path / GO_AGAIN).touch()
    assert search.ends() == 0, search.says

    assert "search 0: its worker died; it goes on from its checkpoint" in search.says
    assert "Traceback" not in search.says
    (trial,) = trials(tmp_path)
    assert trial.state == TrialState.COMPLETE
    assert trial.value == pytest.approx(objective(1e-3, EPOCHS))
    own = [line["epoch"] for line in trace(tmp_path) if line["seed"] == 0]
    assert own == WHOLE[:5] + WHOLE[2:]
    found = tracked(tmp_path)
    assert [step for step, _ in found["search/0"]["metrics"]["objective"]] == WHOLE
    assert found["final/0"]["status"] == ("FINISHED", "completed")
    assert summary(tmp_path)["status"] == "completed"


@pytest.mark.slow
def test_a_disk_that_fills_while_a_checkpoint_is_written(
    tmp_path: Path, disk: Path, started: Started
) -> None:
    """Each state has 1.45 MB, of which the check beforehand knows nothing: two fit, the third is
    cut off in the middle, and no more are tried.
    """
    search = started.search(
        tmp_path,
        space=write(tmp_path, ONE),
        concurrency=1,
        storage=str(disk),
        ballast=1_450_000,
        hold=5,
    )
    search.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
    assert [line["epoch"] for line in trace(tmp_path)] == [1, 2, 3, 3, 4]
    (died,) = (line for line in search.says.splitlines() if "its worker died" in line)
    assert died.startswith("search 0: its worker died; it goes on from its checkpoint (OSError: ")
    assert os.strerror(errno.ENOSPC) in died
    assert f"search 0: no checkpoint: it needs 1.0 MiB and {disk}" in search.says
    state, epoch = kept(tmp_path)
    assert (epoch, state["epochs_done"], len(state["ballast"])) == (2, 2, 1_450_000)
    (tmp_path / GO).touch()
    assert search.ends() == 0, search.says
    (trial,) = trials(tmp_path)
    assert trial.state == TrialState.COMPLETE
    assert [step for step, _ in tracked(tmp_path)["search/0"]["metrics"]["objective"]] == WHOLE


@pytest.mark.slow
def test_a_search_waits_for_room_for_its_journal(
    tmp_path: Path, disk: Path, started: Started
) -> None:
    """Everything lies on one disk, which is filled anew as soon as anything is freed; then there is
    room again.

    Ten trials: the journal needs a new page of the disk several times, and one of them may just
    have been freed.
    """
    subprocess.run(["mount", "-o", "remount,size=32m", str(disk)], check=True)
    text = ONE.replace("[1e-3]", str([1e-3, *(10**-k for k in range(4, 13))]))
    started.log = tmp_path
    search = started.search(
        disk, space=write(disk, text), concurrency=1, marks=str(tmp_path), hold=3
    )
    search.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
    fill(disk)
    (tmp_path / GO).touch()
    search.until(
        filled_until(disk, lambda: "optuna.journal: its disk is full" in search.says),
        "a word about it",
    )
    (disk / "other").unlink()
    assert search.ends() == 0, search.says
    assert "Traceback" not in search.says and "records are lost" not in search.says
    found = tracked(disk)
    for trial in trials(disk):
        assert (trial.state, sorted(trial.intermediate_values)) == (TrialState.COMPLETE, WHOLE)
        assert [
            step for step, _ in found[f"search/{trial.number}"]["metrics"]["objective"]
        ] == WHOLE
    assert {run["status"] for run in found.values()} == {("FINISHED", "completed")}


def filled_until(disk: Path, condition: Callable[[], bool]) -> Callable[[], bool]:
    """The condition, looked at after the disk was filled again."""

    def look() -> bool:
        fill(disk)
        return condition()

    return look


@pytest.mark.slow
def test_a_final_run_on_a_full_disk(tmp_path: Path, disk: Path, started: Started) -> None:
    """Its result counts; only the files that it would leave are missing."""
    search = started.search(
        tmp_path, space=write(tmp_path, ONE), concurrency=1, storage=str(disk), hold=EPOCHS + 1
    )
    search.until(lambda: trace(tmp_path, HELD), "the final run")
    fill(disk)
    (tmp_path / GO).touch()
    assert search.ends() == 0, search.says
    told = " ".join(search.says.split())  # the console breaks long lines
    assert (
        f"final 0: no checkpoint: it needs 1.0 MiB and {disk}" in told
        and "its files are not kept" in told
    )
    assert "its worker died" not in told
    assert [(line["seed"], line["epoch"]) for line in trace(tmp_path)[EPOCHS:]] == [(1, 1), (1, 2)]
    run = tracked(tmp_path)["final/0"]
    assert run["status"] == ("FINISHED", "completed")
    assert run["metrics"]["test/accuracy"] == [
        (2, pytest.approx(objective(1e-3, 2) - 0.1 + 1e-3))
    ]  # as the toy's test
    assert sorted(run["files"]) == ["config.yaml"]
