"""A node that dies without a word: its trials move to another and finish."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.survival.processes import Process, Started, saved, tracked, trials, write
from tests.survival.test_workers import EPOCHS, GRID
from tests.survival.traced import HELD, objective, trace


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    """A folder of Ray's own (its sockets need short paths), and a token of this cluster's own."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    yield {
        "RAY_TMPDIR": folder,
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    shutil.rmtree(folder, ignore_errors=True)


def say(process: Process, text: str) -> None:
    assert process.process.stdin is not None
    process.process.stdin.write(f"{text}\n".encode())
    process.process.stdin.flush()


@pytest.mark.slow
def test_the_trials_of_a_dead_node_move(
    tmp_path: Path, started: Started, environment: dict[str, str]
) -> None:
    """The node is killed (raylet, workers and all) in the middle of an epoch of one of its trials."""
    space, storage = write(tmp_path, GRID), tmp_path / "shared"
    cluster = started.module(tmp_path, "tests.survival.nodes", str(tmp_path), **environment)
    cluster.until((tmp_path / "address").exists, "the cluster")
    address = (tmp_path / "address").read_text()
    search = started.search(
        tmp_path,
        environment=environment,
        space=space,
        address=address,
        storage=str(storage),
        hold=8,
        since=2,
        wait=0.1,
    )
    search.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
    (cut,) = trace(tmp_path, HELD)
    number = {1e-2: 0, 1e-3: 1, 1e-4: 2}[cut["lr"]]
    search.until(lambda: saved(tmp_path, "search", number, cut["epoch"] - 1), "its checkpoint")
    say(cluster, cut["node"])  # its worker waits until it dies
    assert search.ends() == 0, search.says

    assert "its worker died; it goes on from its checkpoint" in search.says
    assert [t.state for t in trials(tmp_path)] == [TrialState.COMPLETE] * 3
    assert len({line["node"] for line in trace(tmp_path)}) == 2, "the trials ran on both nodes"
    own = [line for line in trace(tmp_path) if line["lr"] == cut["lr"]]
    whole, epoch = list(range(1, EPOCHS + 1)), cut["epoch"]
    assert [line["epoch"] for line in own] == whole[:epoch] + whole[epoch - 1 :]
    assert {line["node"] for line in own[:epoch]} == {cut["node"]}
    assert cut["node"] not in {line["node"] for line in own[epoch:]}
    found = tracked(tmp_path)
    assert sorted(found) == ["search", "search/0", "search/1", "search/2"]
    for trial in trials(tmp_path):
        expected = [(e, pytest.approx(objective(trial.params["optim.lr"], e))) for e in whole]
        assert found[f"search/{trial.number}"]["status"] == ("FINISHED", "completed")
        assert found[f"search/{trial.number}"]["metrics"]["val/accuracy"] == expected
