"""What a search costs beside training: 32 trials of 1 s on 2 slots, ledger and tracking included,
against the ideal.

    python benchmarks/scheduling.py [--trials 32] [--seconds 1.0] [--slots 2]

The trials wait instead of training, so that what is left is Ray Tune, Optuna's journal and MLflow.
Every trial writes when it began and ended; per slot (worker) the gaps between trials are the
overhead. Start-up (Ray, workers, imports) is told apart. Prints a table and writes
benchmarks/results/scheduling.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tune_mm.config import Config
from tune_mm.tune import search
from tune_mm.tune.plan.plan import Options

RESULTS = Path(__file__).resolve().parent / "results"
METRICS = 12  # values reported per epoch, about what a run with three modalities has
GOALS = {"wall_over_ideal": 1.10, "overhead_ms": 130.0}

SPACE = """config: iemocap
method: joint
objective: val/accuracy
domains:
  optim.lr: {{loguniform: [1e-5, 1e-1]}}
  optim.weight_decay: {{uniform: [0, 1]}}
  optim.clip: {{loguniform: [0.2, 5]}}
trials: {trials}
scheduler: {{name: none, epochs: {epochs}}}
finals: {{top: 0}}
"""


@dataclass(frozen=True)
class Epoch:
    metrics: dict[str, float]
    best: bool
    done: bool
    diverged: bool = False
    notes: tuple[str, ...] = ()


@dataclass
class Waiting:
    """Takes `seconds` in all and notes when it began and ended, one file per trial in `folder`."""

    config: Config
    seconds: float
    folder: str
    best_value: float = 0.0
    best_epoch: int = 0
    epochs_done: int = 0

    def __post_init__(self) -> None:
        self.began = time.time()

    def epoch(self) -> Epoch:
        self.epochs_done += 1
        total = self.config.train.epochs
        time.sleep(max(0.0, self.began + self.seconds * self.epochs_done / total - time.time()))
        self.best_value, self.best_epoch = self.config.optim.lr * self.epochs_done, self.epochs_done
        done = self.epochs_done >= total
        if done:
            record = {"pid": os.getpid(), "began": self.began, "ended": time.time()}
            Path(self.folder, f"{self.began}-{os.getpid()}.json").write_text(json.dumps(record))
        return Epoch({f"train/loss/{i}": self.best_value + i for i in range(METRICS)}, True, done)

    def test(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {"epochs_done": self.epochs_done}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs_done = state["epochs_done"]

    def best_state(self) -> dict[str, Any]:
        return {}

    def gradient_vectors(self) -> dict[str, Any]:
        return {}


def measure(trials: int, seconds: float, slots: int, epochs: int) -> dict[str, Any]:
    """One search; its wall time against the ideal, and the gaps between the trials of a slot."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        (root / "marks").mkdir()
        (root / "waiting.yaml").write_text(SPACE.format(trials=trials, epochs=epochs))
        options = Options(root=root, space=str(root / "waiting.yaml"), concurrency=slots)
        start = time.time()
        with open(os.devnull, "w") as nowhere:
            build = partial(Waiting, seconds=seconds, folder=str(root / "marks"))
            code = search.run(options, Console(file=nowhere), build=build)
        total = time.time() - start
        marks = [json.loads(f.read_text()) for f in (root / "marks").iterdir()]
    assert code == 0
    assert len(marks) == trials
    return _figures(marks, seconds, slots, total, start)


def _figures(
    marks: list[dict[str, Any]], seconds: float, slots: int, total: float, start: float
) -> dict[str, Any]:
    workers: dict[int, list[tuple[float, float]]] = {}
    for mark in sorted(marks, key=lambda m: m["began"]):
        workers.setdefault(mark["pid"], []).append((mark["began"], mark["ended"]))
    gaps = [b[0] - a[1] for runs in workers.values() for a, b in pairwise(runs)]
    first = max(runs[0][0] for runs in workers.values())  # from here on all slots work
    last = max(m["ended"] for m in marks)
    before = sum(min(e, first) - b for runs in workers.values() for b, e in runs if b < first)
    ideal = (len(marks) * seconds - before) / slots
    return {
        "trials": len(marks),
        "seconds_per_trial": seconds,
        "slots": slots,
        "workers": len(workers),
        "start_up_s": first - start,
        "wall_s": last - first,
        "ideal_s": ideal,
        "wall_over_ideal": (last - first) / ideal,
        "overhead_ms": 1000 * statistics.fmean(gaps),
        "overhead_median_ms": 1000 * statistics.median(gaps),
        "overhead_max_ms": 1000 * max(gaps),
        "wind_down_s": start + total - last,
        "total_s": total,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--slots", type=int, default=2)
    given = parser.parse_args()
    cases = {
        f"{epochs} epochs": measure(given.trials, given.seconds, given.slots, epochs)
        for epochs in (1, 10)
    }
    console = Console(width=120)
    table = Table(
        title=f"{given.trials} trials of {given.seconds:g} s on {given.slots} slots",
        title_justify="left",
    )
    table.add_column("")
    for name in cases:
        table.add_column(name, justify="right")
    for key in next(iter(cases.values())):
        table.add_row(
            key,
            *(
                f"{case[key]:.3f}" if isinstance(case[key], float) else str(case[key])
                for case in cases.values()
            ),
        )
    console.print(table)
    for key, goal in GOALS.items():
        worst = max(case[key] for case in cases.values())
        console.print(
            f"{key}: {worst:.3f}, goal {goal:g} or less: {'reached' if worst <= goal else 'MISSED'}"
        )
    versions = {p: metadata.version(p) for p in ("ray", "optuna", "mlflow", "torch")}
    machine = {
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    RESULTS.mkdir(exist_ok=True)
    out = {"machine": machine, "versions": versions, "goals": GOALS, "cases": cases}
    (RESULTS / "scheduling.json").write_text(json.dumps(out, indent=1) + "\n")


if __name__ == "__main__":
    main()
