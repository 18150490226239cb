"""Ctrl-C and polite kills: the search ends within seconds, whole, and says how to go on."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from optuna.trial import TrialState

from tests.survival.processes import SPACE, Process, Started, saved, summary, tracked, trials, write
from tests.survival.traced import GO, HELD, trace

SECONDS = 60.0  # a tenth of the epoch that waits: who waits for it is found out
AGAIN = "resume with: python -m tune_mm.search --name toy-1 --resume"
SIMPLE = SPACE.replace("trials: 8", "trials: 4").replace(
    "{top: 1, seeds: 2, epochs: 3}", "{top: 0}"
)


def ctrl_c(search: Process) -> None:
    """As a terminal does: to everything in the foreground, Ray's processes among it."""
    os.killpg(search.process.pid, signal.SIGINT)


def interrupt(search: Process) -> None:
    search.process.send_signal(signal.SIGINT)


def terminate(search: Process) -> None:
    search.process.send_signal(signal.SIGTERM)


def hang_up(search: Process) -> None:
    """As a terminal that is closed does."""
    search.process.send_signal(signal.SIGHUP)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("send", "word"),
    [
        (ctrl_c, "interrupted"),
        (interrupt, "interrupted"),
        (terminate, "terminated"),
        (hang_up, "terminated"),
    ],
)
def test_a_search_that_is_stopped(
    send: Callable[[Process], None], word: str, tmp_path: Path, started: Started
) -> None:
    """In the middle of an epoch of ten minutes."""
    search = started.search(tmp_path, space=write(tmp_path, SIMPLE), concurrency=1, hold=6)
    search.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
    (held,) = trace(tmp_path, HELD)
    cut, epoch = len({line["lr"] for line in trace(tmp_path)}) - 1, held["epoch"]
    if epoch > 1:
        search.until(lambda: saved(tmp_path, "search", cut, epoch - 1), "its checkpoint")
    send(search)
    assert search.ends(SECONDS) == 130, search.says
    assert f"stopped: {word}. {AGAIN}" in search.says
    assert "Traceback" not in search.says
    assert summary(tmp_path)["status"] == word
    assert json.loads((tmp_path / "mlruns/search/toy-1/search.json").read_text())["closed"]
    states = [t.state for t in trials(tmp_path)]
    assert states[-1] == TrialState.RUNNING and all(s.is_finished() for s in states[:-1])
    found = tracked(tmp_path)
    assert found["search"]["status"] == found[f"search/{cut}"]["status"] == ("KILLED", "stopped")

    (tmp_path / GO).touch()
    again = started.search(tmp_path, name="toy-1", resume=True, concurrency=1)
    assert again.ends() == 0, again.says
    assert len(trials(tmp_path)) == 4 and all(t.state.is_finished() for t in trials(tmp_path))
    assert {run["status"][0] for run in tracked(tmp_path).values()} == {"FINISHED"}
    begun = Counter((line["lr"], line["epoch"]) for line in trace(tmp_path))
    twice = {key: times for key, times in begun.items() if times > 1}
    assert twice == {(held["lr"], epoch): 2}, (
        "the epoch that was cut, and no other, is trained again"
    )


@pytest.mark.slow
def test_the_second_signal_does_not_wait(tmp_path: Path, started: Started) -> None:
    search = started.search(tmp_path, space=write(tmp_path, SIMPLE), concurrency=1, hold=2)
    search.until(lambda: trace(tmp_path, HELD), "the epoch that waits")
    terminate(search)
    terminate(search)
    assert search.ends(SECONDS) == 130, search.says
    assert AGAIN in search.says
    assert "Traceback" not in search.says
