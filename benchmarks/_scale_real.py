"""Many short trials through Ray Tune itself: wall time against the ideal, as Ray's scalability page
reports it.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from scheduling import SPACE, Waiting

from tune_mm.tune import search
from tune_mm.tune.plan.plan import Options


def measure(trials: int, seconds: float, slots: int) -> dict[str, Any]:
    """A search of `trials` that wait `seconds` each; slots may be more than there are processors.

    wall_s is from the first trial's beginning to the last one's end; start-up is told apart.
    """
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "marks").mkdir()
        (root / "waiting.yaml").write_text(SPACE.format(trials=trials, epochs=1))
        share = min(1.0, len(os.sched_getaffinity(0)) / slots)
        options = Options(
            root=root, space=str(root / "waiting.yaml"), concurrency=slots, cpus=share
        )
        start, cpu = time.time(), time.process_time()
        with open(os.devnull, "w") as nowhere:
            build = partial(Waiting, seconds=seconds, folder=str(root / "marks"))
            code = search.run(options, Console(file=nowhere), build=build)
        total, cpu = time.time() - start, time.process_time() - cpu
        marks = [json.loads(f.read_text()) for f in (root / "marks").iterdir()]
    assert code == 0
    assert len(marks) == trials
    return figures(marks, seconds, slots, start, total, cpu)


def figures(
    marks: list[dict[str, Any]], seconds: float, slots: int, start: float, total: float, cpu: float
) -> dict[str, Any]:
    """marks: began and ended of every trial. cpu: of the driver's process, start-up included.

    overhead: as a share of the ideal, trials x seconds / slots. load_average: of the machine,
    whatever else runs on it.
    """
    first, last = min(m["began"] for m in marks), max(m["ended"] for m in marks)
    ideal = len(marks) * seconds / slots
    return {
        "trials": len(marks),
        "seconds_per_trial": seconds,
        "slots": slots,
        "start_up_s": first - start,
        "wall_s": last - first,
        "ideal_s": ideal,
        "overhead": (last - first) / ideal - 1,
        "trials_per_s": len(marks) / (last - first),
        "driver_cpu_ms_per_trial": 1000 * cpu / len(marks),
        "total_s": total,
        "load_average": os.getloadavg()[0],
    }
