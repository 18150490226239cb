"""A batch in parts has the whole batch's gradient; memory that runs out for real makes parts of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests import support
from tests.methods import dense
from tune_mm.core import micro
from tune_mm.core.run import Run
from tune_mm.core.types import Clock

CLOCK = Clock(0, 0, 6, 2)
ROOM = 60  # MiB; the whole batch takes more than 100 with `joint`, more than 150 with `cggm`
SEPARABLE = ("joint", "unimodal", "dgl")


@pytest.mark.parametrize("parts", [2, 3, 16])
@pytest.mark.parametrize("name", SEPARABLE)
def test_parts_have_the_gradient_of_the_whole(name: str, parts: int) -> None:
    data = support.dataset()
    cfg = support.config(name)
    method, net = support.bound(cfg, data)
    batch, hp = support.batch(data), support.hp(cfg.method)
    state = method.init(net, support.start())
    whole = method.grads(net, batch, hp, state, CLOCK)
    found = micro.update(method, net, batch, hp, state, CLOCK, parts)
    assert set(found.grads) == set(whole.grads) and set(found.logs) == set(whole.logs)
    for key, value in whole.grads.items():
        torch.testing.assert_close(found.grads[key], value, rtol=1e-9, atol=1e-12)
    for key, value in whole.logs.items():
        torch.testing.assert_close(found.logs[key], value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.loss, whole.loss, rtol=1e-9, atol=0)


def test_parts_of_images_have_the_gradient_of_the_whole() -> None:
    """DGL's losses of pixels one after the other, in parts too; with the running statistics, which
    no part changes.
    """
    data, cfg = dense.dataset(), dense.config("dgl")
    method, net = support.bound(cfg, data)
    batch, hp = dense.batch(data), support.hp(cfg.method)
    with net.evaluating():
        whole = method.grads(net, batch, hp, {}, CLOCK)
        found = micro.update(method, net, batch, hp, {}, CLOCK, 4)
    assert set(found.grads) == set(whole.grads)
    for key, value in whole.grads.items():
        torch.testing.assert_close(found.grads[key], value, rtol=1e-9, atol=1e-12)
    for key, value in whole.logs.items():
        torch.testing.assert_close(found.logs[key], value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.loss, whole.loss, rtol=1e-9, atol=0)


def test_parts_are_nearly_equal_and_in_order() -> None:
    batch = support.batch(support.dataset())
    pieces = micro.split(batch, 3)
    assert [len(p.target) for p in pieces] == [6, 5, 5]
    assert torch.equal(torch.cat([p.index for p in pieces]), batch.index)
    assert len(micro.split(batch, 40)) == 16


def test_the_number_of_parts_goes_with_the_checkpoint() -> None:
    cfg, data = support.config("joint"), support.dataset()
    run = Run(cfg, data)
    run.parts.count = 4
    run.epoch()
    again = Run(cfg, data)
    again.load_state_dict(run.state_dict())
    assert again.parts.count == 4
    assert again.epoch().metrics["train/loss"] == run.epoch().metrics["train/loss"]


LIMITED = """
import resource, sys
import torch
from tests import support
from tune_mm.core.run import Run

torch.set_num_threads(1)
name, room, batch, steps = sys.argv[1], *map(int, sys.argv[2:])
support.SHAPES = {m: (steps, 8) for m in support.SHAPES}
cfg = support.config(name, overrides={
    "train.batch_size": batch, "train.eval_batch_size": min(16, batch), "train.gradient_statistics": False
})
run = Run(cfg, support.dataset(count=batch))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + room * 2**20,) * 2)
try:
    result = run.epoch()
except RuntimeError as error:
    print("failed:", error)
else:
    print(run.parts.count, *result.notes, sep="\\n")
"""


def limited(name: str, room: int, batch: int = 256, steps: int = 128) -> list[str]:
    """What one epoch prints that may take `room` MiB of address space more than it has before."""
    root = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", LIMITED, name, str(room), str(batch), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()


def test_memory_that_runs_out_makes_parts() -> None:
    assert limited("joint", 8192) == ["1"]
    count, note = limited("joint", ROOM)
    assert int(count) > 1
    assert note.startswith(
        f"out of memory with a batch of 256: from epoch 1 on it is computed in {count} parts, whose"
    )


def test_a_method_that_looks_at_the_whole_batch_fails_by_name() -> None:
    (told,) = limited("cggm", ROOM)
    assert told.startswith(
        "failed: out of memory with a batch of 256, which 'cggm' cannot compute in parts: give a"
    )
    assert "can't allocate memory" in told


def test_memory_that_is_not_enough_for_one_sample_fails() -> None:
    # The batch takes less than 1 MiB to read, the attention scores of a single sample 128 (2 heads,
    # 4096 x 4096).
    (told,) = limited("joint", ROOM, batch=2, steps=4096)
    assert told.startswith(
        "failed: out of memory with a batch of 2, which cannot be split further: give a smaller"
    )
