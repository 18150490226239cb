"""Methods on ESANet: what they train, DGL's groups of parameters and shared passes, vmap, and a run
that learns.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch

from tests import support
from tests.methods import dense
from tune_mm.config import with_overrides
from tune_mm.core.net import Net
from tune_mm.core.run import Run
from tune_mm.core.types import Clock

ALPHA, CLOCK = 3.0, Clock(0, 0, 3, 4)

config = partial(dense.config, network="esanet")


@pytest.mark.parametrize("name", dense.methods())
def test_every_method_trains_every_parameter(name):
    """Side outputs included; a modality's own classifier reads the first stage's maps."""
    data, cfg = dense.dataset(2), config(name)
    method, net = support.bound(cfg, data)
    net.model.train()
    state = method.init(net, support.start(cfg, data, 24))
    found = method.grads(net, dense.batch(data), support.hp(cfg.method), state, CLOCK)
    assert set(found.grads) == set(net.group(*method.trained(net)))
    assert all(bool(torch.isfinite(g).all()) for g in found.grads.values())
    if name != "unimodal":
        assert all(found.grads[n].any() for n in found.grads if ".side." in n)


def test_dgl_learns_by_groups_of_parameters():
    """Encoders: alpha times the gradient of the loss over scales of each alone; all else: that of
    the multimodal loss over scales, whose gradient does not reach the encoders.
    """
    data, cfg = dense.dataset(2), config("dgl", alpha=ALPHA)
    method, net = support.bound(cfg, data)
    net.model.train()
    given = dense.batch(data)
    found = method.grads(net, given, support.hp(cfg.method), {}, CLOCK)
    features = net.encode(given.inputs)
    for m, logits in net.unimodal(features).items():
        params = net.group(f"encoders.{m}")
        own = torch.autograd.grad(
            ALPHA * net.loss(logits, given.target), list(params.values()), retain_graph=True
        )
        for key, value in zip(params, own, strict=True):
            torch.testing.assert_close(
                found.grads[key], value, rtol=1e-8, atol=1e-11, msg=support.named(key)
            )
    params = net.group("fusion")
    multi = torch.autograd.grad(net.loss(net.fuse(features), given.target), list(params.values()))
    for key, value in zip(params, multi, strict=True):
        torch.testing.assert_close(
            found.grads[key], value, rtol=1e-8, atol=1e-11, msg=support.named(key)
        )


def test_a_stream_that_sees_no_other_runs_once_for_all_passes():
    """DGL's passes: the first modality's last stage fused and alone, the second one's for both at
    once.
    """
    data, cfg = dense.dataset(2), config("dgl")
    method, net = support.bound(cfg, data)
    net.model.train()
    calls = dict.fromkeys(net.modalities, 0)

    def count(m, *_):
        calls[m] += 1

    for m in net.modalities:
        net.model.get_submodule(f"encoders.{m}.layer4.0").register_forward_hook(partial(count, m))
    method.grads(net, dense.batch(data), support.hp(cfg.method), {}, CLOCK)
    first, second = net.modalities
    assert calls == {first: 2, second: 1}


def test_alone_equals_vmap():
    data, cfg = dense.dataset(2), config("dgl")
    nets = [support.bound(cfg, data, seed) for seed in range(2)]
    given, hp = dense.batch(data), support.hp(cfg.method)
    for _, net in nets:
        net.model.train()
    buffers = {n: torch.stack([net.buffers[n] for _, net in nets]) for n in nets[0][1].buffers}
    alone = [method.grads(net, given, hp, {}, CLOCK).grads for method, net in nets]
    method, net = nets[0]

    def one(params, own):
        return method.grads(Net(net.model, net.task, params, own), given, hp, {}, CLOCK).grads

    stacked = {n: torch.stack([other.params[n].detach() for _, other in nets]) for n in net.params}
    together = torch.func.vmap(one, randomness="different")(stacked, buffers)
    for lane, expected in enumerate(alone):
        for key, value in expected.items():
            torch.testing.assert_close(
                together[key][lane], value, rtol=1e-8, atol=1e-10, msg=support.named(key)
            )


def test_a_run_learns():
    cfg = with_overrides(config("dgl"), {"train.epochs": 4})
    run = Run(cfg, dense.dataset(2))
    found = [run.epoch().metrics["val/loss"] for _ in range(4)]
    assert found[-1] < found[0]
    assert {"test/miou", "test/miou/radar", "test/miou/optical"} <= run.test().keys()
