"""What a training step costs: CGGM against a transcription, `Run` against a plain loop, statistics
on against off.

    python benchmarks/step.py [--rounds 5]

Shapes are IEMOCAP's (batch 64; text 22x1024, audio 350x130, visual 50x342; width 40, 5 heads; 4
encoder, 2 fusion, 2 classifier layers; no padding mask) and MOSI's (8 steps of 100/73/100; 5
encoder, 3 fusion layers; masks). Ratios are of medians of interleaved steps of one process; peak
memory is that of a process of its own, interpreter included. Prints tables and writes
benchmarks/results/step.json.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from _measure import (
    CLOCK,
    IEMOCAP,
    MOSI,
    Timing,
    dataset,
    first,
    high_water,
    interleave,
    run,
    save,
    stepper,
    table,
    verdict,
)
from _transcription import plain
from torch import nn
from torch.profiler import ProfilerActivity, profile

from tune_mm import plugins
from tune_mm.core.run import Run
from tune_mm.core.types import Batch

UNMASKED = ("model.encoder.padding_mask=false", "model.fusion.padding_mask=false")
GOALS = {"0.0": (1.3, 1.3), "0.15": (3.2, 2.0)}  # seconds, GB
AUTHORS = {"0.0": (5.6, 3.1), "0.15": (10.4, 5.0)}
GROUPS = {
    "attention: products and softmax": ("bmm", "_softmax", "softmax", "_softmax_backward_data"),
    "linear layers": ("addmm", "mm", "linear"),
    "dropout: drawing and applying": (
        "random_",
        "ge",
        "clamp",
        "threshold_backward",
        "addcmul",
        "mul",
        "mul_",
    ),
    "layer norm": ("native_layer_norm", "native_layer_norm_backward"),
    "copies between layouts": ("copy_", "cat", "clone", "contiguous", "stack"),
}


def dropout_of(attention: str) -> list[str]:
    """Overrides for one rate of attention dropout everywhere; the other rates stay as published."""
    return [f"model.{part}.dropout_attention={attention}" for part in ("encoder", "fusion")]


def cggm(attention: str, *more: str, shapes: Any = IEMOCAP) -> tuple[Run, Batch]:
    """A CGGM run as published and its batch of 64."""
    data = dataset(shapes, 64, 4, masked=False)
    rate = f"method.classifier_dropout={attention}"
    made = run("iemocap", data, "method=cggm", rate, *UNMASKED, *dropout_of(attention), *more)
    return made, first(data)


def same_numbers(steps: int = 3) -> float:
    """Largest difference of any parameter after steps without dropout, in float64, on shorter
    sequences.
    """
    rates = ("attention", "relu", "embed", "residual")
    off = [f"model.{part}.dropout_{r}=0.0" for part in ("encoder", "fusion") for r in rates]
    shapes = {"text": (5, 24), "audio": (70, 13), "visual": (11, 30)}
    torch.set_default_dtype(torch.float64)
    try:
        made, batch = cggm("0.0", *off, "model.fusion.dropout_output=0.0", shapes=shapes)
        other = plain(made.config, made.model, made.net.modalities)
        for _ in range(steps):
            made.step(batch, CLOCK)
            other.step(batch)
    finally:
        torch.set_default_dtype(torch.float32)
    return max((p - other.params[n]).abs().max().item() for n, p in made.model.named_parameters())


def steps_of(attention: str) -> dict[str, Callable[[], Any]]:
    """CGGM's step: ours and the transcription."""
    made, batch = cggm(attention)
    other = plain(made.config, made.model, made.net.modalities)
    return {"ours": stepper(made, batch), "plain": lambda: other.step(batch)}


def peak(case: str, attention: str) -> float:
    """Peak memory in GB of a process that takes three steps."""
    command = [sys.executable, __file__, "--memory", case, attention]
    return float(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]
    )


def memory(case: str, attention: str) -> None:
    """Take three steps of `case` and print this process's peak memory in GB."""
    step = steps_of(attention)[case]
    for _ in range(3):
        step()
    print(high_water())


def against_transcription(rounds: int) -> dict[str, Any]:
    """Time and memory of CGGM's step with and without attention dropout."""
    out: dict[str, Any] = {"largest_difference_float64": same_numbers()}
    rows, lines = [], []
    for attention, (seconds, gigabytes) in GOALS.items():
        times = interleave(steps_of(attention), rounds)
        sizes = {case: peak(case, attention) for case in times}
        out[attention] = {case: {"time": times[case], "peak_gb": sizes[case]} for case in times}
        for case in times:
            rows.append(
                [
                    f"{case}, attention dropout {attention}",
                    *_cells(times[case]),
                    f"{sizes[case]:.2f}",
                ]
            )
        rows.append(
            [
                f"public code, other machine, {attention}",
                f"{AUTHORS[attention][0]:.2f}",
                "",
                str(AUTHORS[attention][1]),
            ]
        )
        lines += [verdict(f"dropout {attention}: step", times["ours"].wall, seconds, " s")]
        lines += [verdict(f"dropout {attention}: peak memory", sizes["ours"], gigabytes, " GB")]
    table("CGGM step at IEMOCAP's shapes", ("", "wall s", "cpu s", "peak GB"), rows)
    print(
        f"largest difference of a parameter after 3 steps, float64: {out['largest_difference_float64']:.1e}"
    )
    print(*lines, sep="\n")
    return out


def where(attention: str) -> dict[str, float]:
    """Share of the processor time of one step by kind of operation."""
    step = steps_of(attention)["ours"]
    step()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        step()
    events = {e.key.removeprefix("aten::"): e.self_cpu_time_total for e in seen.key_averages()}
    total = sum(events.values())
    shares = {
        group: sum(events.get(n, 0) for n in names) / total for group, names in GROUPS.items()
    }
    return {**shares, "everything else": 1 - sum(shares.values())}


def loop(made: Run, batch: Batch) -> Callable[[], Any]:
    """The same model in a plain PyTorch loop: nn.Module, backward, clipping, torch.optim.Adam."""
    model: nn.Module = plugins.load("models", "multimodal")(made.config.model, made.spec).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=made.config.optim.lr)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(batch.inputs), batch.target).backward()
        nn.utils.clip_grad_norm_(model.parameters(), made.config.optim.clip or math.inf)
        optimizer.step()

    return step


def against_loop(rounds: int) -> dict[str, Any]:
    """`Run`'s step of joint training against the plain loop, at both data sets' shapes."""
    out: dict[str, Any] = {}
    for name, shapes, goal, times in (("iemocap", IEMOCAP, 1.05, 1), ("mosi", MOSI, 1.25, 20)):
        data = dataset(shapes, 64, 4, masked=name == "mosi")
        made = run(name, data, *(UNMASKED if name == "iemocap" else ()))
        cases = {"Run": stepper(made, first(data)), "loop": loop(made, first(data))}
        found = interleave(cases, rounds * times, warm=2)
        out[name] = {
            **found,
            "ratio": _report(
                f"Run's step against a plain loop, {name}", found, "Run", "loop", goal
            ),
        }
    return out


def statistics_cost(rounds: int) -> dict[str, Any]:
    """A step, and a whole epoch, at MOSI's shapes and size with gradient statistics on and off."""
    data = dataset(MOSI, 1284, 2, masked=True)
    runs = {
        k: run("mosi", data, f"train.gradient_statistics={k}", "train.epochs=1000")
        for k in ("true", "false")
    }
    steps = interleave(
        {k: stepper(made, first(data)) for k, made in runs.items()}, rounds * 20, warm=2
    )
    epochs = interleave({k: made.epoch for k, made in runs.items()}, rounds)
    ratios = {
        "step": _report("gradient statistics, a step (mosi)", steps, "true", "false", 1.10),
        "epoch": _report(
            "gradient statistics, an epoch with its evaluation (mosi)",
            epochs,
            "true",
            "false",
            1.10,
        ),
    }
    return {"step": steps, "epoch": epochs, "ratios": ratios}


def _report(title: str, times: dict[str, Timing], one: str, other: str, goal: float) -> float:
    table(title, ("", "wall ms", "cpu ms"), [[k, *_cells(t, 1000)] for k, t in times.items()])
    ratio = times[one].wall / times[other].wall
    print(
        verdict("ratio", ratio, goal)
        + f" (processor time: {times[one].cpu / times[other].cpu:.2f})"
    )
    return ratio


def _cells(time: Timing, factor: float = 1.0) -> tuple[str, str]:
    return f"{time.wall * factor:.2f}", f"{time.cpu * factor:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of the heavy cases")
    parser.add_argument(
        "--memory", nargs=2, metavar=("CASE", "DROPOUT"), help="one process for one peak"
    )
    given = parser.parse_args()
    if given.memory:
        memory(*given.memory)
        return
    out: dict[str, Any] = {"transcription": against_transcription(given.rounds)}
    out["where"] = {attention: where(attention) for attention in GOALS}
    names = list(out["where"]["0.0"])
    rows = [[n, *(f"{100 * out['where'][a][n]:.0f} %" for a in GOALS)] for n in names]
    table("Where the time of our step goes", ("", *(f"dropout {a}" for a in GOALS)), rows)
    out["loop"] = against_loop(given.rounds)
    out["statistics"] = statistics_cost(given.rounds)
    save("step", out)


if __name__ == "__main__":
    main()
