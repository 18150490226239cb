"""CGGM: coefficients by hand, the closed form against double backward, and what each switch does."""

import pytest
import torch

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.types import Clock
from tune_mm.methods import cggm

CLOCK = Clock(0, 0, 6, 2)


def make(fusion="transformer", task="classification", **settings):
    data = support.dataset(task=task)
    cfg = with_overrides(
        support.config("cggm", **settings),
        {} if fusion == "transformer" else {"model.fusion": fusion},
    )
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data)


def step(cfg, method, net, batch, state=None):
    return method.grads(
        net, batch, support.hp(cfg.method), state or method.init(net, support.start()), CLOCK
    )


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_balance_by_hand():
    """Eq. 7 with changes .1, .3, .2 (sum .6) and rho 1.2: B = 1.2 * (.5, .3, .4) / .6 = 1.0, 0.6,
    0.8.
    """
    b = cggm.balance(tensor(0.1, 0.3, 0.2), tensor(1.2)[0], tensor(0.0)[0])
    torch.testing.assert_close(b, tensor(1.0, 0.6, 0.8))
    assert float(b.sum()) == pytest.approx(1.2 * 2)  # sum_i B_i = rho (M - 1)


def test_balance_is_invariant_to_the_sign_of_the_metric():
    """An error metric (lower is better) flips every change; the ratio does not move."""
    change = tensor(0.1, -0.3, 0.05)
    a, b = (cggm.balance(s * change, tensor(1.3)[0], tensor(0.0)[0]) for s in (1, -1))
    torch.testing.assert_close(a, b)


def test_guards_by_hand():
    zero, rho = tensor(0.0)[0], tensor(1.5)[0]
    # the changes cancel: every coefficient is rho (M - 1) / M = 1.5 * 2 / 3
    torch.testing.assert_close(
        cggm.balance(tensor(0.1, -0.1, 0.0), rho, zero), tensor(1.0, 1.0, 1.0)
    )
    # clamped to [0, 2 rho]: S = .1, B = 1.5 * (.1 - D) / .1 = -13.5, 15, 3 -> 0, 3, 3
    found = cggm.balance(tensor(1.0, -0.9, 0.0 - 0.0), rho, zero, 2 * rho)
    torch.testing.assert_close(found, tensor(0.0, 3.0, 1.5))
    # floor .5 on |S| = .1: B = 1.5 * (.5 - D) / .5
    torch.testing.assert_close(
        cggm.balance(tensor(0.2, -0.1, 0.0), rho, tensor(0.5)[0]),
        1.5 * (0.5 - tensor(0.2, -0.1, 0.0)) / 0.5,
    )


def test_ema_by_hand():
    """e_t = .9 e_{t-1} + .1 a_t from e_0 = 0."""
    cfg, method, net, batch = make(ema=0.9)
    plain = make()[0]
    first = step(plain, method.__class__(plain.method), net, batch)
    accuracy = first.state["metric"]
    found = step(cfg, method, net, batch, {"metric": tensor(0.5, 0.2, 0.4)})
    torch.testing.assert_close(found.state["metric"], 0.9 * tensor(0.5, 0.2, 0.4) + 0.1 * accuracy)


def test_stable_variant_turns_the_guards_on():
    cfg, method, net, batch = make(variant="stable", rho=1.5)
    state = {"metric": tensor(0.9, 0.0, 0.0)}
    logs = step(cfg, method, net, batch, state).logs
    assert all(
        0 <= float(logs[f"balance/{m}"]) <= 1.5 * cggm.STABLE["clamp"] for m in net.modalities
    )


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("fusion", ["transformer", "concat", "sum"])
def test_direction_equals_double_backward(fusion, task):
    """The gradient of L_gm with the closed form equals that through autograd's create_graph, for
    every parameter.
    """
    cfg, method, net, batch = make(fusion, task, magnitude=False, lam=1.0)
    state = {"metric": tensor(0.1, 0.2, 0.0)}
    found = step(cfg, method, net, batch, state)
    without = step(cfg, method, net, batch, state).logs
    b = torch.stack([without[f"balance/{m}"] for m in net.modalities])

    features = net.encode(batch.inputs)
    task_loss = net.loss(net.fuse(features), batch.target)
    weight = net.params["fusion.head.weight"]
    (fused,) = torch.autograd.grad(task_loss, weight, create_graph=True)
    cosines, own = [], []
    for m, f in features.items():
        z = net.apply(f"aux.{m}", lambda c, f=f: c.head(c.hidden(f.detach())))
        own.append(net.loss(z, batch.target))
        (g,) = torch.autograd.grad(own[-1], net.params[f"aux.{m}.head.weight"], retain_graph=True)
        mine = fused[:, net.block(m)]
        cosines.append((mine * g).sum() / (mine.norm() * g.norm()))
    gm = (b.abs() - b * torch.stack(cosines)).mean()
    total = task_loss + gm + sum(own)
    for (name, param), expected in zip(
        net.params.items(), torch.autograd.grad(total, list(net.params.values())), strict=True
    ):
        assert param.shape == expected.shape
        torch.testing.assert_close(
            found.grads[name], expected, rtol=1e-7, atol=1e-10, msg=support.named(name)
        )


@pytest.mark.parametrize("direction", ["gradient", "weight"])
def test_lambda_changes_the_update(direction):
    results = []
    for lam in (0.0, 0.5):
        cfg, method, net, batch = make(direction=direction, magnitude=False, lam=lam)
        results.append(step(cfg, method, net, batch).grads)
    assert not torch.allclose(results[0]["fusion.head.weight"], results[1]["fusion.head.weight"])
    encoder = [n for n in results[0] if n.startswith("encoders.text.")]
    moved = any(not torch.allclose(results[0][n], results[1][n]) for n in encoder)
    assert moved == (
        direction == "gradient"
    )  # the weight variant reaches the fused head's weight alone


def test_weight_variant_by_hand():
    """Gradient of lambda (|B| - B cos(W, W_m)) added to the head's, W_m constant."""
    cfg, method, net, batch = make(
        direction="weight", magnitude=False, lam=0.5, rho_in_direction=False
    )
    state = {"metric": tensor(0.1, 0.2, 0.0)}
    found = step(cfg, method, net, batch, state)
    b = torch.stack([found.logs[f"balance/{m}"] for m in net.modalities]) / cfg.method.rho
    weight = net.params["fusion.head.weight"].detach().clone().requires_grad_()
    pulls = [
        -b[i]
        * torch.cosine_similarity(
            weight.flatten(), net.params[f"aux.{m}.head.weight"].detach().flatten(), 0
        )
        / 3
        for i, m in enumerate(net.modalities)
    ]
    (extra,) = torch.autograd.grad(0.5 * sum(pulls), weight)
    task = net.loss(net.fuse(net.encode(batch.inputs)), batch.target)
    (plain,) = torch.autograd.grad(task, net.params["fusion.head.weight"])
    torch.testing.assert_close(
        found.grads["fusion.head.weight"], plain + extra, rtol=1e-9, atol=1e-12
    )


def test_magnitude_scales_whole_encoders_and_nothing_else():
    state = {"metric": tensor(0.1, 0.2, 0.0)}
    cfg, method, net, batch = make(magnitude=True)
    found = step(cfg, method, net, batch, state)
    plain_cfg = with_overrides(cfg, {"method.magnitude": False})
    plain = step(plain_cfg, method.__class__(plain_cfg.method), net, batch, state)
    for name, gradient in plain.grads.items():
        owner = name.split(".")
        factor = found.logs[f"balance/{owner[1]}"] if owner[0] == "encoders" else 1.0
        torch.testing.assert_close(found.grads[name], gradient * factor, rtol=1e-9, atol=1e-12)


def test_classifiers_do_not_reach_the_encoders():
    """With lambda 0 and no magnitude, encoders and fusion get joint's gradient whatever the
    classifiers say.
    """
    cfg, method, net, batch = make(magnitude=False, lam=0.0)
    before = step(cfg, method, net, batch).grads
    with torch.no_grad():
        for name, param in net.params.items():
            if name.startswith("aux."):
                param.add_(1.0)
    after = step(cfg, method, net, batch).grads
    for name in before:
        if not name.startswith("aux."):
            torch.testing.assert_close(before[name], after[name])


@pytest.mark.parametrize("metric", ["accuracy", "mae", "loss"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_each_metric_is_finite_in_training(metric, task):
    from tune_mm.core.run import Run

    run = Run(support.config("cggm", metric=metric), support.dataset(task=task))
    result = run.epoch()
    assert not result.diverged
    for m in run.net.modalities:
        assert abs(result.metrics[f"balance/{m}"]) < 1e6
        assert 0 <= result.metrics[f"balance_negative/{m}"] <= 1


@pytest.mark.parametrize("fusion", ["gated", "bilinear"])
def test_heads_that_cannot_be_compared_are_refused_before_training(fusion):
    """The fused head must read as many columns as the classifier's: 10 here."""
    data = support.dataset(("text", "audio"))
    wide = {"model.fusion": {"name": fusion, "width": 7}}
    with pytest.raises(
        ValueError, match=r"method\.direction: must be off .* its head has 7 columns .* head 10"
    ):
        check(with_overrides(support.config("cggm"), wide), data.spec)
    check(with_overrides(support.config("cggm"), {"model.fusion": fusion}), data.spec)
    cfg = with_overrides(support.config("cggm", direction="off"), wide)
    check(cfg, data.spec)
    method, net = support.bound(cfg, data)
    assert not any(
        "cos" in key or "direction" in key
        for key in step(cfg, method, net, support.batch(data)).logs
    )
