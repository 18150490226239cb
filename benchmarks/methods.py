"""What each method costs beside joint training with the same fusion: a step, and a whole run with
all between epochs.

    python benchmarks/methods.py --data-root ../shared/data [--epochs 12] [--rounds 30]

Two CNNs (suite methods_avdigits) and three transformers of sequences (methods_utd), each method as
the first trial of the suite's search has it, with the config's batch size, against joint training
that differs in the method alone. One thread each. Ratios are of processor time: a step's of medians
of interleaved steps, a run's of sums over epochs that all methods take in turns. `passes`: over the
training data in all, those without a step included, relative to joint's. `before`: what is trained
before the first step (and then shared by trials), in epochs of joint training. Prints tables and
writes benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _measure import interleave, save, table

from tune_mm.config import Config, with_overrides
from tune_mm.core.run import Run
from tune_mm.core.types import Clock, Dataset
from tune_mm.data import base as data
from tune_mm.filesystem import ENV_CACHE
from tune_mm.tune.space import space as space_files
from tune_mm.tune.space import suite as suites

SUITES = ("methods_avdigits", "methods_utd")


def configs(suite: str, epochs: int) -> dict[str, Config]:
    """The first trial of each search of a suite by `<method> <fusion>`, and `joint <fusion>` for
    every fusion.
    """
    out: dict[str, Config] = {}
    for space in suites.spaces(suites.build(suite, space_files.read(suite)), {}).values():
        shared = {
            "train.device": "cpu",
            "train.epochs": epochs,
            "train.batch_size": space.base.train.batch_size,
        }
        first = with_overrides(
            space.base, {**(space.defaults[0] if space.defaults else {}), **shared}
        )
        fusion = first.model.fusion.name
        out[f"{first.method.name} {fusion}"] = first
        out.setdefault(f"joint {fusion}", with_overrides(first, {"method": {"name": "joint"}}))
    return out


def dataset(config: Config, root: Path | None) -> Dataset:
    """The real data of a config where they are, else synthetic ones."""
    return data.load(config.data, data.resolve(config.data, root))


def runs(
    wanted: dict[str, Config], known: Dataset
) -> tuple[dict[str, Run], dict[str, float], dict[str, str]]:
    """A run of each; seconds spent before its first step; why others cannot train these data."""
    out: dict[str, Run] = {}
    before, refused = dict[str, float](), dict[str, str]()
    for key, config in wanted.items():
        start = time.process_time()
        try:
            out[key] = Run(config, known)
        except ValueError as error:
            refused[key] = str(error)
            continue
        before[key] = time.process_time() - start
    return out, before, refused


def stepper(run: Run) -> Callable[[], None]:
    """The steps that a method takes on one batch, always the same one, at the start of a run's
    second half.
    """
    split = run.splits["train"]
    batch = split.batch(torch.arange(run.config.train.batch_size))
    epochs = run.config.train.epochs
    run.model.train()

    def step() -> None:
        for sub in range(run.method.substeps(run.net.modalities)):
            run.step(batch, Clock(epochs // 2, 1, 8, epochs, sub))

    return step


def measure(suite: str, root: Path | None, epochs: int, rounds: int) -> dict[str, Any]:
    """Ratios to joint training, by `<method> <fusion>`."""
    wanted = configs(suite, epochs)
    known = dataset(next(iter(wanted.values())), root)
    found, before, refused = runs(wanted, known)
    total = dict.fromkeys(found, 0.0)
    samples = {}
    for _ in range(epochs):
        for key, run in found.items():
            start = time.process_time()
            samples[key] = run.epoch().metrics["samples"]
            total[key] += time.process_time() - start
    steps = {
        key: t.cpu
        for key, t in interleave({k: stepper(r) for k, r in found.items()}, rounds, warm=3).items()
    }
    rows = {}
    for key in found:
        method, fusion = key.split()
        joint = f"joint {fusion}"
        if method != "joint":
            rows[key] = {
                "step": steps[key] / steps[joint],
                "run": total[key] / total[joint],
                "passes": samples[key] / samples[joint],
                "before": before[key] / (total[joint] / epochs),
            }
    units = {
        key: {"step_ms": 1000 * steps[key], "epoch_s": total[key] / epochs}
        for key in found
        if key not in rows
    }
    return {
        "data": known.name,
        "kind": known.kind,
        "joint": units,
        "methods": rows,
        "refused": refused,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    torch.set_num_threads(1)
    out = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ[ENV_CACHE] = cache  # models that are trained beforehand are trained here
        for name in SUITES:
            out[name] = measure(name, given.data_root, given.epochs, given.rounds)
    for name, found in out.items():
        rows = [
            [
                *key.split(),
                *(f"{r[k]:.2f}" for k in ("step", "run", "passes")),
                f"{r['before']:.0f}",
            ]
            for key, r in found["methods"].items()
        ]
        table(
            f"{name}, relative to joint",
            ("method", "fusion", "step", "run", "passes", "before"),
            rows,
        )
        for method, why in found["refused"].items():
            print(f"{name}: {method}: {why}")
    save("methods", {"epochs": given.epochs, "rounds": given.rounds, "cases": out})


if __name__ == "__main__":
    main()
