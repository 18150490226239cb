"""Checkpoints that are damaged on disk: found by their checksum, said, and the one before is taken."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.survival.processes import Started, last_checkpoint, saved, tracked, trials, write
from tests.survival.test_workers import EPOCHS, GRID
from tests.survival.traced import GO, HELD, objective, trace
from tune_mm.tune.execute.trainable import STATE

ONE = GRID.replace("[1e-2, 1e-3, 1e-4]", "[1e-3]")
WHOLE = list(range(1, EPOCHS + 1))


def truncate(file: Path) -> str:
    """Cut off its second half; what is said then."""
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    return "it is truncated"


def flip(file: Path) -> str:
    """Flip one bit of what is stored, which would else be a wrong key; what is said then."""
    whole = bytearray(file.read_bytes())
    whole[whole.index(b"epochs_done") + 2] ^= 4
    file.write_bytes(whole)
    return "does not have its checksum"


@pytest.mark.slow
@pytest.mark.parametrize(("killed", "damage"), [("worker", flip), ("driver", truncate)])
def test_a_damaged_checkpoint_gives_way(
    killed: str, damage: Callable[[Path], str], tmp_path: Path, started: Started
) -> None:
    """In the fourth epoch the checkpoint of the third is damaged, and the worker or the driver is
    killed.
    """
    search = started.search(tmp_path, space=write(tmp_path, ONE), concurrency=1, hold=4)
    search.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
    search.until(lambda: saved(tmp_path, "search", 0, 3), "its checkpoint")
    folder, epoch = last_checkpoint(tmp_path)
    assert epoch == 3
    said = damage(folder / STATE)
    (held,) = trace(tmp_path, HELD)
    if killed == "worker":
        os.kill(held["pid"], signal.SIGKILL)
    else:
        search.process.kill()
        search.process.wait()
        search = started.search(tmp_path, name="toy-1", resume=True, concurrency=1)
    (tmp_path / GO).touch()
    assert search.ends() == 0, search.says

    note = " ".join(search.says.split())  # the console breaks long lines
    assert (
        f"search 0: its checkpoint {folder.name} cannot be used: {folder / STATE}: damaged: "
        in note
    )
    assert said in note
    assert [line["epoch"] for line in trace(tmp_path)] == WHOLE[:4] + WHOLE[2:], (
        "on from the second epoch"
    )
    (trial,) = trials(tmp_path)
    assert trial.state == TrialState.COMPLETE
    expected: list[tuple[int, Any]] = [(e, pytest.approx(objective(1e-3, e))) for e in WHOLE]
    assert sorted(trial.intermediate_values.items()) == expected
    own = tracked(tmp_path)["search/0"]
    assert (own["status"], own["metrics"]["val/accuracy"]) == (("FINISHED", "completed"), expected)
