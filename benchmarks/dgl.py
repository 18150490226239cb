"""What DGL's step costs beside joint training's, at MOSI's shapes, by fusion and by the way a
modality runs alone.

    python benchmarks/dgl.py [--rounds 100]

Shapes: batch 64, three modalities of 8 steps (100/73/100 channels) with masks; 5 encoder layers
and, in the transformer fusion, 3 fusion layers of width 40; published dropout. Steps of all cases
are interleaved in one process. Prints a table and writes benchmarks/results/dgl.json.
"""

from __future__ import annotations

import argparse
from typing import Any

from _measure import MOSI, dataset, first, interleave, run, save, stepper, table, verdict

GOAL = 1.15
CASES = {
    "transformer": ("mask", "zero"),
    "concat": ("zero",),
    "sum": ("zero",),
}


def measure(fusion: str, paths: tuple[str, ...], rounds: int) -> dict[str, Any]:
    """Times of the joint step and of DGL's by path, and DGL's ratios to joint."""
    data = dataset(MOSI, 64, 2, masked=True)
    chosen = () if fusion == "transformer" else (f"model.fusion={fusion}",)
    methods = {"joint": ("method=joint",)} | {
        p: ("method=dgl", f"method.unimodal_path={p}") for p in paths
    }
    cases = {
        k: stepper(run("mosi", data, *chosen, *given), first(data)) for k, given in methods.items()
    }
    times = interleave(cases, rounds, warm=3)
    ratios = {path: times[path].wall / times["joint"].wall for path in paths}
    return {
        "times": times,
        "ratios": ratios,
        "cpu_ratios": {p: times[p].cpu / times["joint"].cpu for p in paths},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=100)
    given = parser.parse_args()
    out = {fusion: measure(fusion, paths, given.rounds) for fusion, paths in CASES.items()}
    rows, lines = [], []
    for fusion, found in out.items():
        for path, ratio in found["ratios"].items():
            times = [f"{1000 * found['times'][k].wall:.1f}" for k in ("joint", path)]
            rows.append(
                [f"{fusion}, {path}", *times, f"{ratio:.2f}", f"{found['cpu_ratios'][path]:.2f}"]
            )
            lines.append(verdict(f"{fusion}, {path}", ratio, GOAL))
    table(
        "DGL step at MOSI's shapes",
        ("fusion, path", "joint ms", "DGL ms", "ratio", "cpu ratio"),
        rows,
    )
    print(*lines, sep="\n")
    save("dgl", {"goal": GOAL, "cases": out})


if __name__ == "__main__":
    main()
