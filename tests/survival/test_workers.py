"""Workers that die: a trial goes on from its last checkpoint, in the same MLflow run, and no epoch
is logged twice.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.survival.processes import SPACE, Started, saved, tracked, trials, write
from tests.survival.traced import GO, HELD, objective, trace

EPOCHS = 6
GRID = (
    SPACE.replace("{loguniform: [1e-5, 1e-1]}", "{grid: [1e-2, 1e-3, 1e-4]}")
    .replace("{name: tpe, startup: 3}", "grid")
    .replace("{name: asha, epochs: 4, grace: 1, reduction: 2}", f"{{name: none, epochs: {EPOCHS}}}")
    .replace("{top: 1, seeds: 2, epochs: 3}", "{top: 0}")
    .replace("trials: 8\n", "")
)


@pytest.mark.slow
def test_a_killed_worker_costs_the_epoch_it_was_in(tmp_path: Path, started: Started) -> None:
    """kill -9 of the worker that trains a trial, beside another trial."""
    space = write(tmp_path, GRID)
    search = started.search(tmp_path, space=space, concurrency=2, hold=8, since=2, wait=0.1)
    search.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
    (cut,) = trace(tmp_path, HELD)
    number = {1e-2: 0, 1e-3: 1, 1e-4: 2}[cut["lr"]]
    search.until(lambda: saved(tmp_path, "search", number, cut["epoch"] - 1), "its checkpoint")
    os.kill(cut["pid"], signal.SIGKILL)
    (tmp_path / GO).touch()
    assert search.ends() == 0, search.says

    assert f"search {number}: its worker died; it goes on from its checkpoint" in search.says
    assert [t.state for t in trials(tmp_path)] == [TrialState.COMPLETE] * 3
    begun = {
        lr: [line["epoch"] for line in trace(tmp_path) if line["lr"] == lr]
        for lr in (1e-2, 1e-3, 1e-4)
    }
    whole, epoch = list(range(1, EPOCHS + 1)), cut["epoch"]
    assert begun.pop(cut["lr"]) == whole[:epoch] + whole[epoch - 1 :]
    assert list(begun.values()) == [whole, whole]
    found = tracked(tmp_path)
    assert sorted(found) == ["search", "search/0", "search/1", "search/2"]
    for trial in trials(tmp_path):
        expected: list[tuple[int, Any]] = [
            (e, pytest.approx(objective(trial.params["optim.lr"], e))) for e in whole
        ]
        assert sorted(trial.intermediate_values.items()) == expected
        own = found[f"search/{trial.number}"]
        assert own["status"] == ("FINISHED", "completed")
        assert own["metrics"]["val/accuracy"] == expected
