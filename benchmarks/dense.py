"""What a training step of dense predictions costs in memory and time: joint training, DGL, CGGM,
and what saves it.

    python benchmarks/dense.py [--rounds 3] [--threads 2] [--only brats] [--batch 8]

Full sizes: BraTS (four DeepLab v3+ of ResNet-101, 160 x 160) and NYUv2 (two ResNet-34 of ESANet,
480 x 640), batches of 8 random images. Every case takes its steps (one that does not count, then
one that does) in a process of its own, and the cases take turns `rounds` times. Ratios are of
medians of processor time, and of peak memory above that of a process which holds the same model and
has taken no step (so: of what a step keeps, gradients and optimizer included). CGGM has its
published settings for BraTS. Floating-point operations (products and convolutions, what is computed
again included) do not depend on the machine. Options: activation checkpointing in the encoders, and
bfloat16 under autocast. With --device cuda time is the clock's with the device waited for, and
memory what was allocated there. Prints tables and writes benchmarks/results/dense.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from _measure import CLOCK, first, high_water, save, table, verdict
from torch.utils.flop_counter import FlopCounterMode

from tune_mm.config import load_config, with_overrides
from tune_mm.core.run import Run
from tune_mm.core.types import Dataset, DataSpec, Padded, Split, Task

SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "brats": dict.fromkeys(("flair", "t1ce", "t1", "t2"), (1, 160, 160)),
    "nyuv2": {"rgb": (3, 480, 640), "depth": (1, 480, 640)},
}
TASKS = {
    "brats": Task("segmentation", 4, weights=(0.2, 0.3, 0.25, 0.25), dice=1.0),
    "nyuv2": Task("segmentation", 40, weights=(1.0,) * 40),
}
METHODS: dict[str, dict[str, Any]] = {
    "joint": {},
    "dgl": {"method.alpha": 1.0},
    "cggm": {"method.rho": 1.0, "method.lam": 0.1, "method.classifier_lr": 6e-3},
}
# ESANet's head reads more channels than a decoder of the first stage's maps: there is no direction
# to compare.
OWN = {("nyuv2", "cggm"): {"method.direction": "off", "method.lam": 0.0}}
OPTIONS: dict[str, dict[str, Any]] = {
    "": {},
    "checkpointing": {"model.encoder.checkpoint": True},
    "bf16": {"train.amp": "bf16"},
    "both": {"model.encoder.checkpoint": True, "train.amp": "bf16"},
}
COUNTED = 2  # images of the step whose operations are counted
GOALS = (1.6, 1.5)  # DGL's step over that of joint training: time, memory


def images(name: str, count: int) -> Dataset:
    """Random images and masks in place of a data set's."""
    torch.manual_seed(0)
    shapes, task = SHAPES[name], TASKS[name]
    size = next(iter(shapes.values()))[1:]

    def split(n: int) -> Split:
        inputs = {m: Padded(torch.randn(n, *shape)) for m, shape in shapes.items()}
        mask = torch.randint(0, task.outputs, (n, *size)).to(torch.uint8)
        return Split(inputs, mask, tuple(map(str, range(n))))

    return Dataset(
        name,
        DataSpec(shapes, task),
        {s: split(n) for s, n in (("train", count), ("val", 1), ("test", 1))},
    )


def prepared(name: str, method: str, option: str, batch: int, device: str) -> Run:
    """A run of the config as it is, with one method and one way to save."""
    config = load_config(name, [f"train.device={device}", f"train.batch_size={batch}"])
    settings = {**METHODS[method], **OWN.get((name, method), {}), **OPTIONS[option]}
    made = Run(
        with_overrides(
            with_overrides(config, {"method": {"name": method, **_own(settings)}}),
            _shared(settings),
        ),
        images(name, batch),
    )
    made.model.train()
    return made


def _own(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k.removeprefix("method."): v for k, v in settings.items() if k.startswith("method.")}


def _shared(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in settings.items() if not k.startswith("method.")}


def case(name: str, method: str, option: str, batch: int, device: str, threads: int) -> None:
    """Print a step's seconds, its operations, and the peak memory in GB, whole and above that of
    the model, as JSON.
    """
    torch.set_num_threads(threads)
    made = prepared(name, method, option, batch, device)
    samples = first(Dataset("", made.spec, made.splits), batch)
    cuda = device == "cuda"
    before = torch.cuda.memory_allocated() / 2**30 if cuda else high_water()
    made.step(samples, CLOCK)
    if cuda:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    made.step(samples, CLOCK)
    if cuda:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else high_water()
    few = min(batch, COUNTED)  # counting holds on to memory
    with FlopCounterMode(display=False) as counter:
        made.step(first(Dataset("", made.spec, made.splits), few), CLOCK)
    flops = counter.get_total_flops() * batch / few
    found = {
        "wall": wall,
        "cpu": wall if cuda else cpu,
        "tflop": flops / 1e12,
        "gb": peak - before,
        "whole_gb": peak,
    }
    print(json.dumps(found))


def measured(
    cases: list[tuple[str, str, str]], asked: argparse.Namespace
) -> dict[tuple[str, str, str], dict[str, float]]:
    """Medians over the rounds, the cases in turn."""
    found: dict[tuple[str, str, str], list[dict[str, float]]] = {c: [] for c in cases}
    shared = [str(asked.batch), asked.device, str(asked.threads)]
    for _ in range(asked.rounds):
        for c in cases:
            command = [sys.executable, __file__, "--case", *c, *shared]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[c].append(json.loads(done.stdout.splitlines()[-1]))
    return {
        c: {k: statistics.median(row[k] for row in rows) for k in rows[0]}
        for c, rows in found.items()
    }


def report(
    name: str, found: Mapping[tuple[str, str, str], Mapping[str, float]], batch: int
) -> dict[str, Any]:
    """Print a table of one data set's cases, each against joint training as it is."""
    base = found[name, "joint", ""]
    rows, out = [], dict[str, Any]()
    for (_, method, option), got in found.items():
        ratios = {f"{k}_ratio": got[k] / base[k] for k in ("cpu", "tflop", "gb")}
        label = f"{method}, {option}" if option else method
        out[label] = {**got, **ratios}
        figures = (
            got["wall"],
            got["cpu"],
            ratios["cpu_ratio"],
            ratios["tflop_ratio"],
            got["gb"],
            ratios["gb_ratio"],
        )
        rows.append([label, *(f"{x:.2f}" for x in figures)])
    columns = ("", "wall s", "cpu s", "/ joint", "FLOPs / joint", "step GB", "/ joint")
    table(f"{name}, batch {batch}, full size", columns, rows)
    print(verdict("DGL: time over joint", out["dgl"]["cpu_ratio"], GOALS[0]))
    print(verdict("DGL: memory over joint", out["dgl"]["gb_ratio"], GOALS[1]), flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--only", choices=list(SHAPES))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--case", nargs=6, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        name, method, option, batch, device, threads = asked.case
        case(name, method, option, int(batch), device, int(threads))
        return
    results: dict[str, Any] = {
        "batch": asked.batch,
        "rounds": asked.rounds,
        "threads": asked.threads,
    }
    for name in [asked.only] if asked.only else SHAPES:
        cases = [(name, method, "") for method in METHODS]
        cases += [(name, "joint", option) for option in OPTIONS if option]
        results[name] = report(name, measured(cases, asked), asked.batch)
        save("dense" if not asked.only else f"dense_{name}", results)


if __name__ == "__main__":
    main()
