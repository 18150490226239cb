"""The simulator of benchmarks/scale.py: what it drives is real, and what it counts is right."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
TRIALS, SLOTS = 20, 6


@pytest.fixture(scope="module")
def bench() -> Any:
    """The benchmark's modules; they import each other by their plain names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        import scale

        yield scale


@pytest.fixture(scope="module")
def found(bench: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A small case's figures and the folder that it left."""
    root = tmp_path_factory.mktemp("scale")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return bench.simulate(bench.Case(TRIALS, SLOTS, epochs=9), bench.load(), root), root


def rows(root: Path, query: str) -> list[tuple[Any, ...]]:
    with sqlite3.connect(root / "mlruns" / "mlflow.db") as store:
        return store.execute(query).fetchall()


def test_every_report_is_in_journal_and_store(
    bench: Any, found: tuple[dict[str, Any], Path]
) -> None:
    figures, root = found
    from tune_mm.tune.propose.journal import open_storage

    (study,) = open_storage(root / "journal").get_all_studies()
    trials = open_storage(root / "journal").get_all_trials(study._study_id)
    assert len(trials) == TRIALS
    assert figures["reports"] == sum(len(t.intermediate_values) for t in trials)
    steps = "select run_uuid, step from metrics where key = 'val/accuracy'"
    assert len(rows(root, steps)) == figures["reports"]
    assert rows(root, "select count(*) from runs") == [(TRIALS + 1,)]  # and the parent


def test_asha_keeps_one_in_three_at_most_at_each_rung(found: tuple[dict[str, Any], Path]) -> None:
    """Rungs at 1, 3, 9: a trial ends there or goes on; with 20 trials every rung thins them out."""
    ends = [
        step
        for _, step in rows(
            found[1],
            "select run_uuid, max(step) from metrics where key = 'val/accuracy' group by run_uuid",
        )
    ]
    assert set(ends) == {1, 3, 9}
    assert ends.count(1) > ends.count(3) > 0
    assert found[0]["completed"] == ends.count(9)


def test_the_clock_is_that_of_the_recorded_epochs(
    bench: Any, found: tuple[dict[str, Any], Path]
) -> None:
    """Between slots working all the time, and one after another; and no faster than the longest
    trial.
    """
    figures, _ = found
    curves = bench.load()
    trained = figures["seconds_per_epoch"] * figures["reports"]
    assert trained / SLOTS <= figures["virtual_s"] <= trained
    assert figures["slots_busy"] == pytest.approx(trained / (SLOTS * figures["virtual_s"]))
    epochs = [
        s
        for n in range(curves.runs)
        for s in curves.of(n, {"method.rho": 1.2, "method.lam": 0.1}).seconds
    ]
    assert 0.3 * min(epochs) < figures["seconds_per_epoch"] < 3 * max(epochs)


def test_decisions_repeat(bench: Any, found: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    """However much is tracked: one in four here."""
    again = bench.simulate(bench.Case(TRIALS, SLOTS, epochs=9, every=4), bench.load(), tmp_path)
    for key in ("reports", "completed", "virtual_s", "seconds_per_epoch"):
        assert again[key] == pytest.approx(found[0][key])
    assert rows(tmp_path, "select count(*) from runs") == [(TRIALS // 4 + 1,)]


def test_load_is_time_over_time(bench: Any, found: tuple[dict[str, Any], Path]) -> None:
    figures, _ = found
    parts = figures["trial_ms"]["all"] * TRIALS + figures["report_ms"]["all"] * figures["reports"]
    parts += figures["store_ms_per_report"] * figures["reports"]
    assert figures["load"] == pytest.approx(parts / 1000 / figures["virtual_s"])
    more = bench.capacity(figures)
    assert more["slots_at_60_s_epochs"] == pytest.approx(60_000 / (parts / figures["reports"]))
    rest = parts / figures["reports"] - figures["store_ms_per_report"]
    assert more["slots_at_60_s_epochs_without_store"] == pytest.approx(60_000 / rest)
    assert figures["load_without_store"] == pytest.approx(
        rest * figures["reports"] / 1000 / figures["virtual_s"]
    )


def test_fewer_metrics_keep_the_objective_and_every_decision(
    bench: Any, found: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    """6 of an epoch's metrics and what the driver logs beside them: the objective so far, and
    best/... at the end.
    """
    figures = bench.simulate(
        bench.Case(TRIALS, SLOTS, epochs=9, metrics=6), bench.load(keep=6), tmp_path
    )
    for key in ("reports", "completed", "virtual_s"):
        assert figures[key] == pytest.approx(found[0][key])
    assert (figures["metrics_per_epoch"], found[0]["metrics_per_epoch"]) == (6, 58)
    per_report = "select count(*) from metrics where key not like 'best/%' and key != 'objective'"
    assert rows(tmp_path, per_report) == [(6 * figures["reports"],)]
    assert bench.label(figures) == f"{TRIALS} trials on {SLOTS} slots, 6 metrics an epoch, sqlite"


def test_the_store_is_behind_by_what_it_still_writes(found: tuple[dict[str, Any], Path]) -> None:
    """After the last trial at least its own end is written; at most everything is."""
    figures, _ = found
    written = figures["store_ms_per_report"] * figures["reports"] / 1000
    assert 0 < figures["store_behind_at_end_s"] <= written


def test_the_nearest_run_is_replayed_and_seeds_take_turns(bench: Any) -> None:
    curves = bench.load()
    chosen = [curves.of(n, {"method.rho": 0.91, "method.lam": 0.19}) for n in range(4)]
    assert {(c.settings["method.rho"], c.settings["method.lam"]) for c in chosen} == {(0.9, 0.2)}
    assert chosen[0] is not chosen[1]
    assert chosen[0] is chosen[3]  # three seeds


def test_overhead_is_what_the_wall_has_more_than_the_ideal(bench: Any) -> None:
    """Four trials of 1 s on two slots take 2 s ideally; here they end 2.5 s after the first began:
    a quarter more.
    """
    from _scale_real import figures

    marks = [{"began": 10 + b, "ended": 11 + b} for b in (0.0, 0.0, 1.2, 1.5)]
    found = figures(marks, 1.0, 2, start=7.0, total=6.0, cpu=0.2)
    assert (found["start_up_s"], found["wall_s"], found["ideal_s"]) == (3.0, 2.5, 2.0)
    assert found["overhead"] == pytest.approx(0.25)
    assert found["driver_cpu_ms_per_trial"] == pytest.approx(50)


def test_parts_are_counted_once(bench: Any) -> None:
    """What is nested counts for the inner part: both together are what the thread used."""
    import time

    from _scale_meter import Meter

    meter = Meter()
    began = time.thread_time()
    with meter.part("outer"):
        sum(range(200_000))
        with meter.part("inner"):
            sum(range(400_000))
    used = time.thread_time() - began
    assert meter.seconds["", "outer"] > 0 < meter.seconds["", "inner"]
    assert sum(meter.seconds.values()) <= used
