"""Figures of one simulated case."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from _scale_curves import Curves
from _scale_driver import Case, Driver
from _scale_meter import Writes
from optuna.trial import TrialState


def simulate(case: Case, curves: Curves, root: Path) -> dict[str, Any]:
    """Run one case; its figures (see scale.py). Everything lies under `root`."""
    driver = Driver(case, curves, root)
    driver.tracker.flush()  # the parent run, and what MLflow does once
    driver.meter.seconds.clear()
    base, writes = _peak(), Writes()
    cpu, own = time.process_time(), time.thread_time()
    with closing(writes), closing(driver.tracker):
        driver.run()
    cpu, own = time.process_time() - cpu, time.thread_time() - own
    return _figures(driver, writes, cpu, cpu - own, base)


def _figures(
    driver: Driver, writes: Writes, cpu: float, background: float, base: float
) -> dict[str, Any]:
    case, spent, span = driver.case, dict(driver.meter.seconds), driver.now
    spent["store", "store"] = spent.get(("store", "store"), 0.0) + background
    simulated = cpu - sum(spent.values())
    seconds = {
        k: v * (case.every if k[1] in ("tracking", "store") else 1) for k, v in spent.items()
    }
    driven = sum(seconds.values())
    trials = driver.ledger.trials()
    tenth = max(1, case.trials // 10)
    began = time.thread_time()
    driver.open()
    return {
        "trials": case.trials,
        "slots": case.slots,
        "tracked_one_in": case.every,
        "store": "MLflow server" if case.store else "sqlite",
        "metrics_per_epoch": len(driver.curves.names),
        "reports": driver.reports,
        "completed": sum(t.state == TrialState.COMPLETE for t in trials),
        "virtual_s": span,
        "reports_per_virtual_s": driver.reports / span,
        "driver_cpu_s": driven,
        "simulator_cpu_s": simulated,
        "seconds_per_epoch": driver.trained / driver.reports,
        "slots_busy": driver.trained / (span * case.slots),
        "load": driven / span,
        "load_without_store": (driven - seconds["store", "store"]) / span,
        "store_behind_at_end_s": driver.behind,
        "trial_ms": _split(seconds, "trial", case.trials),
        "report_ms": _split(seconds, "report", driver.reports),
        "store_ms_per_report": 1000 * seconds["store", "store"] / driver.reports,
        "ask_ms_first_tenth": sum(driver.ask_ms[:tenth]) / tenth,
        "ask_ms_last_tenth": sum(driver.ask_ms[-tenth:]) / tenth,
        "reports_per_s_at_saturation": driver.reports / driven,
        "reports_per_s_without_store": driver.reports / (driven - seconds["store", "store"]),
        "store_statements_per_virtual_s": case.every * writes.statements / span,
        "store_transactions_per_virtual_s": case.every * writes.transactions / span,
        "store_transactions_per_report": case.every * writes.transactions / driver.reports,
        "store_rounds": driver.rounds,
        "resume_cpu_s": time.thread_time() - began,
        "journal_mib": driver.journal.stat().st_size / 2**20,
        "peak_mib": _peak(),
        "memory_kib_per_trial": 1024 * (_peak() - base) / case.trials,
        "load_average": os.getloadavg()[
            0
        ],  # of the machine: other work on it makes CPU times longer
    }


def _split(seconds: Mapping[tuple[str, str], float], occasion: str, count: int) -> dict[str, float]:
    found = {part: 1000 * s / count for (o, part), s in seconds.items() if o == occasion}
    return {**found, "all": sum(found.values())}


def _peak() -> float:
    """Peak resident memory of this process, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
