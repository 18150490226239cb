"""What every method that predicts pixels must satisfy, on a small U-Net, and where BatchNorm inside
encoders or the decoder's scales matter on a small ESANet too; the others refuse and say what they
train.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests import support
from tests.methods import dense
from tune_mm import plugins
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.net import Net
from tune_mm.core.run import Run
from tune_mm.core.types import VOID, Clock
from tune_mm.data.base import ENV_CACHE

CLOCK = Clock(0, 0, 3, 4)
DENSE = dense.methods()
NATIVE = {"joint", "unimodal", "dgl", "cggm", "g_blending", "mmpareto", "mslr", "mrd", "umt"}
EXTENDED = {"ogm", "agm"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))


def make(name, count=3, seed=0, network="unet", **settings):
    data = dense.dataset(count)
    cfg = dense.config(name, network, **settings)
    method, net = support.bound(cfg, data, seed)
    net.model.train()
    return cfg, method, net, dense.batch(data), method.init(net, support.start(cfg, data, 24))


def test_the_methods_that_the_summary_matrix_names_predict_pixels():
    """methods.md, 2.18: native or extended; and greedy and ume, whose fusions do not."""
    assert set(DENSE) == NATIVE | EXTENDED


@pytest.mark.parametrize("name", sorted(set(plugins.available("methods")) - set(DENSE)))
def test_others_refuse_and_say_what_they_train(name):
    with pytest.raises(
        ValueError,
        match=rf"method\.name: {name} (trains .*, and these data are segmentation|needs 2 mo)",
    ):
        check(dense.config(name), dense.dataset().spec)


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("count", [2, 3])
def test_every_trained_parameter_gets_a_finite_gradient(name, count):
    cfg, method, net, batch, state = make(name, count)
    found = method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
    assert set(found.grads) == set(net.group(*method.trained(net)))
    assert math.isfinite(float(found.loss))
    assert all(bool(torch.isfinite(g).all()) for g in found.grads.values())
    assert all(v.ndim == 0 and math.isfinite(float(v)) for v in found.logs.values())


@pytest.mark.parametrize(
    "name", [n for n in DENSE if plugins.load("methods", n).neutral is not None]
)
def test_neutral_settings_reduce_to_joint(name):
    cfg, method, net, batch, state = make(name, **plugins.load("methods", name).neutral)
    joint_cfg, joint, *_ = make("joint")
    expected = joint.grads(Net(net.model, net.task), batch, support.hp(joint_cfg.method), {}, CLOCK)
    found = method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
    for key, value in expected.grads.items():
        torch.testing.assert_close(
            found.grads[key], value, rtol=1e-8, atol=1e-11, msg=support.named(key)
        )


@pytest.mark.parametrize("name", DENSE)
def test_alone_equals_vmap(name):
    """Two trials with their own weights and hyperparameters in one vmapped call equal two calls, in
    float64.
    """
    runs = [make(name, 2, s, **plugins.load("methods", name).deterministic) for s in range(2)]
    cfg, method, net, batch, _ = runs[0]
    hps = [{k: v * (1 + 0.2 * s) for k, v in support.hp(cfg.method).items()} for s in range(2)]
    # Before the passes below change the running statistics.
    buffers = {n: torch.stack([r[2].buffers[n] for r in runs]) for n in net.buffers}
    alone = [method.grads(r[2], batch, h, r[4], CLOCK) for r, h in zip(runs, hps, strict=True)]

    def one(params, buffers, hp, state):
        found = method.grads(Net(net.model, net.task, params, buffers), batch, hp, state, CLOCK)
        return found.grads, found.logs

    stacked = {n: torch.stack([r[2].params[n].detach() for r in runs]) for n in net.params}
    lanes = {k: torch.stack([h[k] for h in hps]) for k in hps[0]}
    states = {k: torch.stack([r[4][k] for r in runs]) for k in runs[0][4]}
    together = torch.func.vmap(one, randomness="different")(stacked, buffers, lanes, states)
    for s, expected in enumerate(alone):
        for theirs, mine in zip((expected.grads, expected.logs), together, strict=True):
            for key, value in theirs.items():
                torch.testing.assert_close(
                    mine[key][s], value, rtol=1e-8, atol=1e-10, msg=support.named(key)
                )


@pytest.mark.parametrize("name", DENSE)
def test_a_run_learns_and_is_the_same_after_a_resume(name, tmp_path):
    """Three epochs; saved after one and resumed in a new object, bit for bit."""
    cfg, data = with_overrides(dense.config(name), {"train.epochs": 3}), dense.dataset()
    whole, first = Run(cfg, data), Run(cfg, data)
    expected = [whole.epoch() for _ in range(3)]
    assert expected[-1].metrics["val/loss"] < expected[0].metrics["val/loss"]
    first.epoch()
    torch.save(first.state_dict(), tmp_path / "run.pt")
    second = Run(cfg, data)
    second.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    found = [second.epoch() for _ in range(2)]
    for theirs, mine in zip(expected[1:], found, strict=True):
        keys = theirs.metrics.keys() - {"time/epoch"}
        assert {k: theirs.metrics[k] for k in keys} == {k: mine.metrics[k] for k in keys}
    assert whole.test() == second.test()
    assert {
        "test/miou",
        "test/iou_b",
        "test/dice_any",
        "test/dice",
        "test/loss",
    } <= whole.test().keys()


@pytest.mark.parametrize("network", ["unet", "esanet"])
@pytest.mark.parametrize("name", DENSE)
def test_prediction_is_independent_of_batch_size(name, network):
    """In evaluation mode, with running statistics that a training pass has moved."""
    _, method, net, batch, state = make(name, network=network)
    with torch.no_grad():
        net.fuse(net.encode(batch.inputs))
    net.model.eval()
    whole = method.predict(net, batch.inputs, state)
    parts = [
        method.predict(net, {m: x.take(torch.tensor([i])) for m, x in batch.inputs.items()}, state)
        for i in range(6)
    ]
    for key, value in whole.items():
        assert value.shape == (6, 3, dense.SIZE, dense.SIZE)
        torch.testing.assert_close(torch.cat([p[key] for p in parts]), value, rtol=1e-9, atol=1e-10)


def test_dgl_gives_encoders_their_own_losses_and_the_decoder_the_multimodal_one():
    """Encoders: alpha times the gradient of their loss with the other maps at 0; the decoder: that
    of the multimodal loss on features without a gradient.
    """
    cfg, method, net, batch, state = make("dgl", alpha=3.0)
    found = method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
    features = net.encode(batch.inputs)
    for m in net.modalities:
        alone = net.loss(
            net.fuse({k: f if k == m else f.zero() for k, f in features.items()}), batch.target
        )
        params = net.group(f"encoders.{m}")
        own = torch.autograd.grad(3.0 * alone, list(params.values()), retain_graph=True)
        for key, value in zip(params, own, strict=True):
            torch.testing.assert_close(found.grads[key], value, rtol=1e-8, atol=1e-11)
    params = net.group("fusion")
    multi = net.loss(net.fuse({m: f.detach() for m, f in features.items()}), batch.target)
    for key, value in zip(params, torch.autograd.grad(multi, list(params.values())), strict=True):
        torch.testing.assert_close(found.grads[key], value, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("network", ["unet", "esanet"])
@pytest.mark.parametrize("functional", [False, True])
@pytest.mark.parametrize("name", ["dgl", "agm", "ogm", "mmpareto", "g_blending"])
def test_running_statistics_are_those_of_the_multimodal_pass(name, functional, network):
    """After a step: what one multimodal training pass leaves, however many passes of modalities
    alone there were. ESANet's encoders run stages in these passes, with BatchNorm.
    """
    settings = {"heads": "fusion"} if name in {"mmpareto", "g_blending"} else {}
    cfg, method, net, batch, state = make(name, network=network, **settings)
    if functional:
        own = {n: b.clone() for n, b in net.buffers.items()}
        net = Net(net.model, net.task, {n: p.detach() for n, p in net.params.items()}, own)
    method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
    _, _, plain, _, _ = make(name, network=network, **settings)
    plain.fuse(plain.encode(batch.inputs))
    assert set(net.buffers) == set(plain.buffers)
    for key, value in plain.buffers.items():
        torch.testing.assert_close(
            net.buffers[key], value, rtol=1e-9, atol=1e-12, msg=support.named(key)
        )


@pytest.mark.parametrize("network", ["unet", "esanet"])
@pytest.mark.parametrize("name", DENSE)
def test_a_batch_of_unknown_pixels_alone_moves_nothing_to_nan(name, network):
    """No pixel is known, so that there is nothing to learn: loss and gradients are finite."""
    cfg, method, net, batch, state = make(name, network=network)
    void = replace(batch, target=torch.full_like(batch.target, VOID))
    found = method.grads(net, void, support.hp(cfg.method), state, CLOCK)
    assert math.isfinite(float(found.loss))
    assert all(bool(torch.isfinite(g).all()) for g in found.grads.values())
    assert all(bool(torch.isfinite(t).all()) for t in (*found.logs.values(), *found.state.values()))


def test_cggm_scales_every_encoder_by_dice():
    """B of Eq. 7 from the first step's Dice of each light decoder (before it 0), hard, over known
    pixels; every parameter of an encoder is scaled by it, finest stage included.
    """
    cfg, method, net, batch, state = make("cggm", lam=0.0, rho=1.3)
    found = method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
    joint = make("joint")[1].grads(Net(net.model, net.task), batch, {}, {}, CLOCK)
    features, known, scores = net.encode(batch.inputs), batch.target < 3, []
    for m in net.modalities:
        guess = net.apply(f"aux.{m}", lambda part, x: part(x), features[m]).argmax(1)
        mine, theirs = (guess > 0) & known, (batch.target > 0) & known
        scores.append(2 * float((mine & theirs).sum()) / float(mine.sum() + theirs.sum()))
    for m, score in zip(net.modalities, scores, strict=True):
        b = 1.3 * (sum(scores) - score) / sum(scores)
        assert float(found.logs[f"balance/{m}"]) == pytest.approx(b)
        for key in net.group(f"encoders.{m}"):
            torch.testing.assert_close(
                found.grads[key], b * joint.grads[key], rtol=1e-7, atol=1e-10
            )


def test_cggm_direction_is_a_cosine_of_the_1x1_convolutions_gradients():
    cfg, method, net, batch, state = make("cggm")
    found = method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
    features = net.encode(batch.inputs)
    (fused,) = torch.autograd.grad(
        net.loss(net.fuse(features), batch.target), [net.params["fusion.head.weight"]]
    )
    for m in net.modalities:
        logits = net.apply(f"aux.{m}", lambda part, x: part(x), features[m].detach())
        (own,) = torch.autograd.grad(
            net.loss(logits, batch.target), [net.params[f"aux.{m}.head.weight"]]
        )
        cosine = torch.cosine_similarity(fused.flatten(), own.flatten(), 0)
        torch.testing.assert_close(found.logs[f"train/cos/{m}"], cosine, rtol=1e-8, atol=1e-10)
