"""Ten thousand trials: what one driver can feed, measured without training, and 1,000 real trials
of trivial length.

    python benchmarks/scale.py                                  # 64, 512 and 4,096 slots in virtual time
    python benchmarks/scale.py --real                           # through Ray Tune, on this machine
    python benchmarks/scale.py --quick                          # 60 trials on 16 slots
    python benchmarks/scale.py --profile 64                     # where the driver's time goes on 64 slots
    python benchmarks/scale.py --trials 500 --slots 64 --metrics 6      # of the 58 of an epoch
    python benchmarks/scale.py --trials 500 --slots 64 --store http://127.0.0.1:5000    # an MLflow server's
    python benchmarks/scale.py --record sqlite:///mlruns/mlflow.db --filter "tags.search = 'cggm_utd-1'"

The simulated search is ASHA (27 epochs, grace 1, reduction 3) with TPE over six settings. Trials
replay recorded runs of CGGM on UTD-MHAD (scale_curves.json.gz, 58 metrics an epoch of about 2.5 s;
`--record` makes another file): see _scale_driver.py for what is real in it. CPU times are those of
one core, split by part:

    searcher   Optuna's sampler and its study       ledger     Optuna's journal
    scheduler  Ray's ASHA                           callback   configs, the board
    tracking   records into the queue on disk       store      the queue into MLflow, on the tracking thread

One trial in ten is tracked and counts ten times (`--every 1` tracks all and takes ten times as long
in the store). load: CPU seconds of the driver per second of the search; at 1 a core is full. What
the store cannot take then waits in the queue on disk: store_behind_at_end_s is how long it goes on
after the last trial. Prints tables and writes benchmarks/results/scale.json (scale_real.json).
"""

from __future__ import annotations

import argparse
import cProfile
import json
import multiprocessing
import os
import platform
import pstats
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from _scale_curves import SHIPPED, load, record
from _scale_driver import Case
from _scale_figures import simulate
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).resolve().parent / "results"
EPOCH = 60.0  # seconds; for which the slots at saturation are told beside the recorded ones
QUICK = Case(60, 16)


def run(case: Case) -> dict[str, Any]:
    """One case in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        return simulate(case, load(keep=case.metrics), Path(scratch))


def apart(case: Case) -> dict[str, Any]:
    """One case in a process of its own, so that its peak memory is its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (case,))


def capacity(found: Mapping[str, Any]) -> dict[str, float]:
    """Slots that one core feeds: at the recorded pace, and with epochs of EPOCH seconds.

    A full slot reports once an epoch; at saturation the driver takes reports_per_s_at_saturation of
    them, trials' beginnings and ends included. Beyond that the store falls behind; without_store:
    when the search itself waits.
    """
    rates = {
        "": found["reports_per_s_at_saturation"],
        "_without_store": found["reports_per_s_without_store"],
    }
    paces = {"recorded_pace": found["seconds_per_epoch"], "60_s_epochs": EPOCH}
    return {
        f"slots_at_{name}{what}": rate * pace
        for name, pace in paces.items()
        for what, rate in rates.items()
    }


def table(title: str, rows: Sequence[Mapping[str, Any]], head: str) -> Table:
    """A column per case."""
    out = Table(title=title, title_justify="left")
    out.add_column(head)
    for row in rows:
        out.add_column(f"{row[head]:,}", justify="right")
    flat = [_flat(row) for row in rows]
    for key in dict.fromkeys(k for row in flat for k in row if k != head):
        out.add_row(key, *(_cell(row.get(key)) for row in flat))
    return out


def _flat(row: Mapping[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in row.items():
        out |= (
            {f"{key}: {part}": v for part, v in value.items()}
            if isinstance(value, Mapping)
            else {key: value}
        )
    return out


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return (
        f"{value:,}"
        if isinstance(value, int)
        else f"{value:,.3g}"
        if abs(value) < 1000
        else f"{value:,.0f}"
    )


def save(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Add to benchmarks/results/<name>.json; a case that is there already is replaced."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    there = json.loads(path.read_text())["cases"] if path.exists() else {}
    machine = {
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    versions = {p: metadata.version(p) for p in ("ray", "optuna", "mlflow", "sqlalchemy")}
    cases = {**there, **{label(row): row for row in rows}}
    path.write_text(
        json.dumps({"machine": machine, "versions": versions, "cases": cases}, indent=1) + "\n"
    )


def label(row: Mapping[str, Any]) -> str:
    """What tells a case from others."""
    said = f"{row['trials']} trials on {row['slots']} slots"
    return (
        f"{said}, {row['metrics_per_epoch']} metrics an epoch, {row['store']}"
        if "store" in row
        else said
    )


def profiled(case: Case, console: Console) -> None:
    """The functions in which one case spends its time."""
    profile = cProfile.Profile()
    profile.runcall(run, case)
    pstats.Stats(profile, stream=console.file).sort_stats("cumulative").print_stats(60)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--trials", type=int, help="default 10000; with --real 1000")
    p.add_argument("--slots", type=int, nargs="+", help="default 64 512 4096; with --real 2")
    p.add_argument(
        "--every",
        type=int,
        default=10,
        metavar="N",
        help="track one trial in N (10), count it N times",
    )
    p.add_argument(
        "--metrics", type=int, metavar="N", help="of an epoch; default all that were recorded"
    )
    p.add_argument("--store", metavar="URI", help="of an MLflow server; default a sqlite file")
    p.add_argument(
        "--quick", action="store_true", help=f"{QUICK.trials} trials on {QUICK.slots} slots"
    )
    p.add_argument(
        "--real", action="store_true", help="real trials, which wait instead of training"
    )
    p.add_argument("--seconds", type=float, default=1.0, help="of a real trial")
    p.add_argument(
        "--profile", type=int, metavar="SLOTS", help="profile one case; nothing is written"
    )
    p.add_argument(
        "--record", metavar="URI", help="write scale_curves.json.gz from an MLflow store"
    )
    p.add_argument("--filter", default="", help="which of its runs, in MLflow's words")
    return p


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    given, console = parser().parse_args(arguments), Console(width=120)
    if given.record:
        console.print(f"{record(given.record, given.filter, SHIPPED)} runs in {SHIPPED}")
    elif given.profile:
        profiled(Case(given.trials or 10_000, given.profile, every=given.every), console)
    elif given.real:
        from _scale_real import measure

        rows = [measure(given.trials or 1000, given.seconds, slots) for slots in given.slots or [2]]
        console.print(table("real trials, which wait instead of training", rows, "slots"))
        save("scale_real", rows)
    elif given.quick:
        console.print(table("one driver in virtual time", [row(QUICK)], "slots"))
    else:
        for slots in given.slots or [64, 512, 4096]:
            case = Case(
                given.trials or 10_000,
                slots,
                every=given.every,
                metrics=given.metrics,
                store=given.store,
            )
            found = row(case)
            console.print(table("one driver in virtual time", [found], "slots"))
            save("scale", [found])


def row(case: Case) -> dict[str, Any]:
    """Figures of one case."""
    found = apart(case)
    return {**found, **capacity(found)}


if __name__ == "__main__":
    main()
