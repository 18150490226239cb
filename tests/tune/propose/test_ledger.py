"""The journal: what a kill leaves behind, one driver at a time."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from tune_mm.tune.propose.journal import open_storage
from tune_mm.tune.propose.ledger import Busy, Ledger, Lock, Point, last_end


def ledger(path: Path, points: tuple[Point, ...] = (), name: str = "s/search") -> Ledger:
    return Ledger(
        open_storage(path),
        name,
        "min",
        lambda trial: {"x": trial.suggest_float("x", 0, 1)},
        lambda number: RandomSampler(seed=number),
        lambda number: points[number] if number < len(points) else None,
    )


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    book = ledger(path)
    given = book.ask()
    book.report(given.number, 1, 0.5)
    whole = path.read_bytes()
    for cut in (1, 20, len(whole) - 1):
        path.write_bytes(whole + whole[:cut].rstrip(b"\n"))
        again = ledger(path)
        assert again.frozen(0).intermediate_values == {1: 0.5}
        again.report(again.again(0).number, 2, 0.4)
        assert ledger(path).frozen(0).intermediate_values == {1: 0.5, 2: 0.4}


@pytest.mark.parametrize("size", [0, 10, 70_000])
def test_a_journal_of_one_torn_line_is_empty(tmp_path: Path, size: int) -> None:
    (tmp_path / "journal").write_bytes(b"x" * size)
    assert ledger(tmp_path / "journal").trials() == []


def test_a_trial_killed_between_asking_and_drawing_is_finished_drawing(tmp_path: Path) -> None:
    book = ledger(tmp_path / "journal", (Point({"x": 0.25}),))
    book.study.enqueue_trial({"x": 0.25})
    assert book.handed_out() == 0
    assert ledger(tmp_path / "journal", (Point({"x": 0.25}),)).ask().values == {"x": 0.25}
    book.study.ask()  # handed out, nothing drawn yet
    again = ledger(tmp_path / "journal")
    assert again.unfinished() == [0, 1]
    assert 0 <= again.again(1).values["x"] <= 1
    assert len(again.trials()) == 2


def test_whole_values_need_no_domains(tmp_path: Path) -> None:
    attrs = {"values": {"a": 1, "seed": 3}, "role": "tuned"}
    book = ledger(tmp_path / "journal", (Point({}, attrs),))
    assert book.ask().values == {"a": 1, "seed": 3}
    assert ledger(tmp_path / "journal").again(0).values == {"a": 1, "seed": 3}


def test_the_file_is_a_plain_optuna_study(tmp_path: Path) -> None:
    book = ledger(tmp_path / "journal")
    given = book.ask()
    book.report(given.number, 1, 0.5)
    book.prune(given.number, epochs=1)
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
    study = optuna.load_study(
        study_name="s/search", storage=optuna.storages.JournalStorage(backend)
    )
    assert [t.state for t in study.trials] == [TrialState.PRUNED]
    assert study.trials[0].value == 0.5


def test_what_another_process_enqueues_is_handed_out_next_and_once(tmp_path: Path) -> None:
    """As optuna-dashboard may, in a study beside another one of the same file."""
    ledger(tmp_path / "journal", name="s/baseline").ask()
    book = ledger(tmp_path / "journal")
    first = book.ask()
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
    theirs = optuna.load_study(
        study_name="s/search", storage=optuna.storages.JournalStorage(backend)
    )
    theirs.enqueue_trial({"x": 0.25})
    theirs.enqueue_trial({"x": 0.75})
    assert [first.number, *(book.ask().number for _ in range(3))] == [0, 1, 2, 3]
    assert [t.params["x"] for t in book.trials()][1:3] == [0.25, 0.75]
    assert len(book.trials(TrialState.WAITING)) == 0


def test_two_drivers_cannot_run_one_search(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "s" / "lock")
    with pytest.raises(Busy, match="another process is running this search"):
        Lock(tmp_path / "s" / "lock")
    lock.close()
    Lock(tmp_path / "s" / "lock").close()


def test_a_killed_driver_leaves_no_lock(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(
        target=_hold, args=(tmp_path / "lock", tmp_path / "held")
    )
    process.start()
    while not (tmp_path / "held").exists() and process.is_alive():
        process.join(0.05)
    with pytest.raises(Busy):
        Lock(tmp_path / "lock")
    process.kill()
    process.join()
    Lock(tmp_path / "lock").close()


def _hold(path: Path, held: Path) -> None:
    lock = Lock(path)
    held.touch()
    multiprocessing.Event().wait()
    lock.close()


def test_the_last_end_is_the_journal_s_own_word(tmp_path: Path) -> None:
    """A copy has new times of its own, and says the same."""
    path = tmp_path / "journal"
    assert last_end(open_storage(path)) is None
    book = ledger(path)
    other = ledger(path, name="s/baseline")
    for one in (book, other, book):
        trial = one.ask()
        one.report(trial.number, 1, 0.5)
        one.complete(trial.number, 0.5)
    book.ask()
    ends = [trial.datetime_complete for trial in (*book.trials(), *other.trials())]
    expected = max(end for end in ends if end is not None)
    os.utime(path, (0, 0))
    assert last_end(open_storage(path)) == expected
