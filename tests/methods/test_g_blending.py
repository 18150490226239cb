"""G-Blending: weights by hand, estimates against a loop written out, when they come, and what each
mode trains on.
"""

import math
from types import SimpleNamespace

import pytest
import torch

from tests import support
from tests.models import fusion_cases
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.net import Net
from tune_mm.core.run import Run
from tune_mm.core.types import Clock, Dataset, DataSpec, Split, Task
from tune_mm.methods import g_blending
from tune_mm.models.multimodal import build

CLOCK = Clock(0, 0, 6, 10)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def make(fusion="concat", task="classification", **settings):
    data = support.dataset(task=task)
    cfg = with_overrides(support.config("g_blending", **settings), {"model.fusion": fusion})
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data)


def test_weights_by_hand():
    """G = .6 .2 .1, O = .2 -.1 .5: G/O^2 = 15, 20, .4, of a sum of 35.4."""
    found = g_blending.blend(tensor(0.6, 0.2, 0.1), tensor(0.2, -0.1, 0.5), tensor(0.01)[0])
    torch.testing.assert_close(found, tensor(15 / 35.4, 20 / 35.4, 0.4 / 35.4))


def test_a_zero_denominator_stays_finite():
    """|O| = 0 counts as the floor .1: G/O^2 = 30, 10 / 1, so 30/40 and 10/40."""
    found = g_blending.blend(tensor(0.3, 10.0), tensor(0.0, 1.0), tensor(0.1)[0])
    torch.testing.assert_close(found, tensor(0.75, 0.25))
    assert g_blending.blend(tensor(0.3, 0.1), tensor(0.0, 0.0), tensor(1e-6)[0]).isfinite().all()


def test_what_gains_nothing_weighs_nothing_and_if_none_gains_all_are_equal():
    floor = tensor(0.01)[0]
    torch.testing.assert_close(
        g_blending.blend(tensor(-0.5, 0.2), tensor(0.1, 0.1), floor), tensor(0.0, 1.0)
    )
    torch.testing.assert_close(
        g_blending.blend(tensor(-0.5, 0.0), tensor(0.1, 0.0), floor), tensor(0.5, 0.5)
    )
    broken = g_blending.blend(
        tensor(-math.inf, math.nan, 0.2), tensor(math.inf, math.nan, 0.1), floor
    )
    torch.testing.assert_close(broken, tensor(0.0, 0.0, 1.0))


def test_the_denominator_is_the_change_not_the_end_value():
    """A large gap that training did not widen is no overfitting: O = 0, not the gap (a bug of
    public code).
    """
    data, cfg = support.dataset(), support.config("g_blending", floor=1e-9)
    run = Run(cfg, data)
    probe, method = run._probe(1.0), run.method
    assert isinstance(method, g_blending.GBlending)
    objective = method._unimodal("text")
    assert float(g_blending._change(probe, "val", objective, run.net)) == 0.0
    assert float(probe.loss("val", objective)) > 0.1


@pytest.mark.parametrize(
    ("mode", "start", "epochs", "expected"),
    [
        ("fixed", 0.0, 10, {}),
        ("offline", 0.0, 10, {1: 3}),  # a super-epoch of .3 x 10 after the warm-up's one epoch
        ("offline", 0.5, 10, {5: 3}),
        ("online", 0.0, 10, {1: 3, 4: 3, 7: 3}),
        ("online", 0.2, 10, {2: 3, 5: 3, 8: 2}),  # the last has two epochs left
        ("online", 0.0, 1, {}),  # nothing left to weigh for
    ],
)
def test_when_weights_are_estimated(mode, start, epochs, expected):
    method = g_blending.GBlending(
        g_blending.GBlendingConfig(mode=mode, super_epoch=0.3, start=start)
    )
    assert method.estimates(epochs) == expected
    assert method.dips(epochs) == tuple((e + 1, e + 1) for e in expected)


def test_dips_are_a_fifth_of_a_super_epoch():
    method = g_blending.GBlending(g_blending.GBlendingConfig(super_epoch=0.5))
    assert method.dips(40) == (
        (2, 5),
        (22, 25),
    )  # super-epochs of 20 from 1 and 21; 19 left in the second


@pytest.mark.parametrize("heads", ["own", "fusion"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_the_loss_is_the_weighted_sum(heads, task):
    """weights .1 .2 .3 .4 of the three unimodal losses and the fused one, features zeroed one by
    one by hand.
    """
    cfg, method, net, batch = make(task=task, heads=heads)
    state = {"weights": tensor(0.1, 0.2, 0.3, 0.4)}
    found, _ = method.loss(net, batch, support.hp(cfg.method), state, CLOCK)
    features = net.encode(batch.inputs)
    parts = []
    for m, feature in features.items():
        if heads == "fusion":
            logits = net.fuse({k: f if k == m else f.zero() for k, f in features.items()})
        else:
            head, real = net.model.aux[m], feature.mask.double()[..., None]
            logits = (feature.value * real).sum(1) / real.sum(1) @ head.weight.T + head.bias
        parts.append(net.loss(logits, batch.target))
    joint = net.loss(net.fuse(features), batch.target)
    expected = 0.1 * parts[0] + 0.2 * parts[1] + 0.3 * parts[2] + 0.4 * joint
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_the_fixed_mode_is_table_4_of_dgl():
    """L_multi + alpha sum L_m, not normalised; own heads get alpha times their loss's gradient and
    nothing else.
    """
    cfg, method, net, batch = make(mode="fixed", alpha=3.0)
    found = method.grads(net, batch, support.hp(cfg.method), {}, CLOCK)
    features = net.encode(batch.inputs)
    alone = sum(net.loss(z, batch.target) for z in method.alone(net, features).values())
    total = net.loss(net.fuse(features), batch.target) + 3 * alone
    names = list(net.params)
    for name, g in zip(
        names, torch.autograd.grad(total, [net.params[n] for n in names]), strict=True
    ):
        torch.testing.assert_close(
            found.grads[name], g, rtol=1e-9, atol=1e-12, msg=support.named(name)
        )


def written_out(run, modality, number, epochs, lr):
    """G and O of the loss `number` (from 0), a modality's own: plain SGD on a copy, batches of the
    probe's stream.
    """
    from tune_mm.core import batches
    from tune_mm.core.probe import STREAM

    before = {n: p.detach().clone() for n, p in run.net.params.items()}
    trained = dict(before)

    def loss(params, batch):
        net = Net(run.model, run.spec.task, params, dict(run.net.buffers))
        hidden = net.encode_one(modality, batch.inputs[modality])
        real = hidden.mask.to(hidden.value.dtype)[..., None]
        vector = (hidden.value * real).sum(1) / real.sum(1)
        return net.loss(
            vector @ params[f"aux.{modality}.weight"].T + params[f"aux.{modality}.bias"],
            batch.target,
        )

    mine = [n for n in before if n.startswith((f"encoders.{modality}.", f"aux.{modality}."))]
    train, val = run.splits["train"], run.splits["val"]
    for epoch in range(epochs):
        stream = batches.key(run.config.seed * STREAM + number, epoch)  # in epoch 0 of the run
        for index in batches.order(len(train), run.config.train.batch_size, stream):
            given = {n: trained[n].clone().requires_grad_() for n in mine}
            grads = torch.autograd.grad(
                loss({**trained, **given}, train.batch(index)), list(given.values())
            )
            trained |= {n: (given[n] - lr * g).detach() for n, g in zip(mine, grads, strict=True)}
    run.model.eval()
    with torch.no_grad():
        all_of = {
            s: split.batch(torch.arange(len(split)))
            for s, split in (("train", train), ("val", val))
        }
        one, two = ({s: float(loss(p, b)) for s, b in all_of.items()} for p in (before, trained))
    return one["val"] - two["val"], (two["val"] - two["train"]) - (one["val"] - one["train"])


def test_an_estimate_equals_copies_trained_by_hand():
    plain = {
        "optim": {"name": "sgd", "lr": 0.05, "momentum": 0.0, "weight_decay": 0.0, "clip": None}
    }
    cfg = with_overrides(support.config("g_blending", {"train.epochs": 6}, super_epoch=0.34), plain)
    run = Run(cfg, support.dataset())
    by_hand = [written_out(run, m, k, 2, 0.05) for k, m in enumerate(("text", "audio"))]
    end = run.method.epoch_end(run._probe(1.0), run.hp, run.state, Clock(0, 6, 6, 6))
    for m, (gain, overfit) in zip(("text", "audio"), by_hand, strict=True):
        assert gain > 0
        assert float(end.logs[f"overfitting/{m}"]) == pytest.approx(overfit, rel=1e-3, abs=1e-5)
    weights = end.state["weights"]
    text, audio = (gain / max(abs(overfit), 0.01) ** 2 for gain, overfit in by_hand)
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float(weights[0] / weights[1]) == pytest.approx(text / audio, rel=1e-2)
    # 4 copies by 2 epochs of 96 samples, and 4 losses measured over them before and after
    assert end.samples == 4 * 2 * 96 + 2 * 4 * 96


def test_an_estimate_leaves_the_run_as_it_was_and_counts_its_samples():
    run = Run(support.config("g_blending", {"train.epochs": 4}, super_epoch=0.5), support.dataset())
    before = {n: p.detach().clone() for n, p in run.net.params.items()}
    run.method.epoch_end(run._probe(1.0), run.hp, run.state, Clock(0, 6, 6, 4))
    assert all(torch.equal(p, before[n]) for n, p in run.net.params.items())
    first, second = run.epoch(), run.epoch()
    assert first.metrics["samples"] == 96 + 4 * 2 * 96 + 2 * 4 * 96
    assert second.metrics["samples"] == first.metrics["samples"] + 96
    assert first.metrics["balance/text"] == pytest.approx(0.25)
    assert second.metrics["balance/text"] != pytest.approx(0.25)


def staged():
    """Two modalities of images through MMTM."""
    shapes = dict(list(fusion_cases.SHAPES.items())[:2])
    spec = DataSpec(shapes, Task("classification", fusion_cases.OUTPUTS))
    splits = {}
    for s, name in enumerate(("train", "val", "test")):
        some = fusion_cases.batch(2, 12, s)
        inputs = {m: type(x)(x.value.float(), x.mask) for m, x in some.inputs.items()}
        splits[name] = Split(inputs, some.target)
    return Dataset("images", spec, splits)


def test_mmtm_needs_the_fusion_s_own_head():
    small = {
        "encoder": {"name": "cnn", "channels": [4, 6], "width": 6},
        "fusion": {"name": "mmtm", "stages": [1, 2]},
    }
    data = staged()
    base = support.config("g_blending", {"train.epochs": 3}, heads="own")
    cfg = with_overrides(base, {"model": small})
    with pytest.raises(
        ValueError,
        match=r"method\.heads: must be fusion where .* got 'own' \(method\.name: g_blending, model\.fusion: mmtm\)",
    ):
        check(cfg, data.spec)
    run = Run(with_overrides(cfg, {"method.heads": "fusion"}), data)
    found = run.epoch().metrics
    assert found["samples"] == 12 * (1 + 3 + 2 * 3)
    assert math.isfinite(found["train/loss"])
    assert not hasattr(run.model, "aux")


def test_own_heads_are_predicted_too():
    _, method, net, batch = make()
    found = method.predict(net, batch.inputs, {})
    assert set(found) == {"joint", *net.modalities, *(f"classifier/{m}" for m in net.modalities)}
    plain = build(
        SimpleNamespace(encoder=make()[0].model.encoder, fusion=make()[0].model.fusion),
        support.dataset().spec,
    )
    assert (
        len(list(net.model.parameters())) == len(list(plain.parameters())) + 2 * 3
    )  # a weight and a bias each
