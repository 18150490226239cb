"""Activation checkpointing: the same gradients and statistics as without, whatever passes a method
makes of a step.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests import support
from tests.methods import dense
from tune_mm.config import with_overrides
from tune_mm.core.types import Clock
from tune_mm.data.base import ENV_CACHE
from tune_mm.models.encoders._recompute import recomputed

CLOCK = Clock(0, 0, 3, 4)
SIZES = {"esanet": 16, "deeplab": 24}
ONE_PASS = {
    "joint",
    "unimodal",
    "mslr",
    "mrd",
}  # of the encoders, the multimodal one: left out of the larger network
CASES = [(n, k) for k in SIZES for n in dense.methods() if k == "esanet" or n not in ONE_PASS]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))


def block() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
    ).double()


def gradients(layer: nn.Module, loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(loss, list(layer.parameters()))


@pytest.mark.parametrize("modes", [(True, True), (False, False), (False, True)])
def test_the_second_pass_is_in_the_modes_of_the_first(modes):
    """Each BatchNorm in its own mode, all changed before the backward pass, and restored after it."""
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = []
    for again in (False, True):
        layer: Any = block()
        layer(x)  # running statistics of their own
        layer[1].training, layer[4].training = modes
        out = recomputed(layer, x) if again else layer(x)
        for part, mode in zip((layer[1], layer[4]), modes, strict=True):
            part.training = not mode
        found.append([*gradients(layer, out.square().sum()), *layer.buffers()])
        assert (layer[1].training, layer[4].training) == tuple(not mode for mode in modes)
        assert layer.training
    for plain, other in zip(*found, strict=True):
        torch.testing.assert_close(other, plain)


def test_statistics_that_move_before_the_backward_pass_do_not_reach_it():
    """An evaluation pass, then a training pass, then the backward pass of the first: running
    statistics by value.
    """
    x = torch.randn(5, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plain, again = block().eval(), block().eval()
    expected = gradients(plain, plain(x).square().sum())
    out = recomputed(again, x)
    again.train()(3 * x + 1)
    assert bool(again.get_buffer("1.running_mean").any())
    for mine, theirs in zip(gradients(again, out.square().sum()), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def step(name: str, network: str, checkpoint: bool) -> dict[str, torch.Tensor]:
    """Gradients of a method's first step, its logs, and the statistics that it leaves."""
    data = dense.dataset(2, size=SIZES[network])
    cfg = with_overrides(dense.config(name, network), {"model.encoder.checkpoint": checkpoint})
    method, net = support.bound(cfg, data)
    net.model.train()
    state = method.init(net, support.start(cfg, data, 24))
    torch.manual_seed(7)
    update = method.grads(net, dense.batch(data, 3), support.hp(cfg.method), state, CLOCK)
    assert net.model.training
    return {**update.grads, **update.logs, **dict(net.model.named_buffers())}


@pytest.mark.parametrize(("name", "network"), CASES)
def test_checkpointing_changes_no_gradient_and_no_statistic(name, network):
    """Also where a stage runs with the other modality and alone, in evaluation mode, or on zeros."""
    plain, again = (step(name, network, checkpoint) for checkpoint in (False, True))
    assert plain.keys() == again.keys()
    for key, value in plain.items():
        torch.testing.assert_close(again[key], value, rtol=1e-8, atol=1e-11, msg=support.named(key))
