"""What the benchmarks share: interleaved medians, random data of given shapes, the machine, results
on disk.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tune_mm.config import load_config
from tune_mm.core.run import Run
from tune_mm.core.types import Batch, Clock, Dataset, DataSpec, Padded, Split, Task

RESULTS = Path(__file__).resolve().parent / "results"
IEMOCAP = {"text": (22, 1024), "audio": (350, 130), "visual": (50, 342)}
MOSI = {"text": (8, 100), "audio": (8, 73), "visual": (8, 100)}
CLOCK = Clock(0, 0, 10, 10)


@dataclass(frozen=True)
class Timing:
    """Medians in seconds: of the clock on the wall, and of the processor over all threads."""

    wall: float
    cpu: float


def interleave(
    cases: Mapping[str, Callable[[], Any]], rounds: int, warm: int = 1
) -> dict[str, Timing]:
    """Run the cases in turn, A B A B ..., so that what else the machine does hits all of them
    alike.
    """
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for i in range(warm + rounds):
        for name, case in cases.items():
            wall, cpu = time.perf_counter(), time.process_time()
            case()
            if i >= warm:
                seen[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        name: Timing(*(statistics.median(column) for column in zip(*rows, strict=True)))
        for name, rows in seen.items()
    }


def high_water() -> float:
    """Peak resident memory of this process in GB."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held before it started us
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def split(shapes: Mapping[str, tuple[int, int]], count: int, classes: int, masked: bool) -> Split:
    """Normal numbers; with `masked`, sequences of random lengths, zero after their end."""
    inputs = {}
    for m, (steps, width) in shapes.items():
        value = torch.randn(count, steps, width)
        mask = torch.arange(steps) < torch.randint(1, steps + 1, (count, 1)) if masked else None
        inputs[m] = Padded(value if mask is None else value * mask[..., None], mask)
    return Split(inputs, torch.randint(0, classes, (count,)), tuple(map(str, range(count))))


def dataset(
    shapes: Mapping[str, tuple[int, int]], count: int, classes: int, masked: bool
) -> Dataset:
    """Random train, val and test splits; val and test are a sixth of train."""
    torch.manual_seed(0)
    sizes = {"train": count, "val": max(count // 6, 1), "test": max(count // 6, 1)}
    splits = {name: split(shapes, n, classes, masked) for name, n in sizes.items()}
    return Dataset("random", DataSpec(shapes, Task("classification", classes)), splits, "synthetic")


def run(name: str, data: Dataset, *overrides: str) -> Run:
    """A Run of the named config, in training mode."""
    made = Run(load_config(name, ["train.device=cpu", *overrides]), data)
    made.model.train()
    return made


def stepper(made: Run, batch: Batch) -> Callable[[], Any]:
    """One optimizer step of `made` on `batch`."""
    return lambda: made.step(batch, CLOCK)


def first(data: Dataset, count: int = 64) -> Batch:
    """The first `count` training samples."""
    return data.splits["train"].batch(torch.arange(count))


def machine() -> dict[str, Any]:
    """Where the figures were measured."""
    return {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "load_average": os.getloadavg()[0],
        "capability": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "tune_mm": metadata.version("tune-mm"),
    }


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; the first column is text."""
    out = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        out.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        out.add_row(*row)
    Console(width=120).print(out)


def verdict(name: str, value: float, goal: float, unit: str = "") -> str:
    """`name: value (goal or less): reached`."""
    return f"{name}: {value:.2f}{unit}, goal {goal:g}{unit} or less: {'reached' if value <= goal else 'MISSED'}"


def save(name: str, payload: Mapping[str, Any]) -> None:
    """Write benchmarks/results/<name>.json, with the machine and the versions."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine(), **payload}, indent=1, default=asdict)
    (RESULTS / f"{name}.json").write_text(text + "\n")
