"""AGM against its formulae, computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests import support
from tests.methods import images
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.run import Run
from tune_mm.core.types import VOID, Clock, Task, Update
from tune_mm.methods import agm

TWO, THREE = ("text", "audio"), ("text", "audio", "visual")
CLOCK = Clock(0, 0, 6, 10)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make(
    fusion: str = "concat",
    modalities: tuple[str, ...] = TWO,
    task: str = "classification",
    **settings: Any,
):
    data = support.dataset(modalities, task)
    cfg = with_overrides(support.config("agm", **settings), {"model.fusion": {"name": fusion}})
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data)


def outputs(net, batch):
    """f(S) of two modalities by the names present, from zero-padded inputs."""
    a, v = net.modalities
    zero = {m: x.zero() for m, x in batch.inputs.items()}
    return {
        "av": net.fuse(net.encode(batch.inputs)),
        "a": net.fuse(net.encode({a: batch.inputs[a], v: zero[v]})),
        "v": net.fuse(net.encode({a: zero[a], v: batch.inputs[v]})),
    }


def test_shapley_values_of_two() -> None:
    """phi_a = (f(av) - f(v) + f(a)) / 2 with f(av) = 10, f(a) = 7, f(v) = 1: 8 and 2."""
    a, v = frozenset("a"), frozenset("v")
    found = agm.shapley({a: doubles(7.0), v: doubles(1.0), a | v: doubles(10.0)}, ("a", "v"))
    assert {m: float(x) for m, x in found.items()} == {"a": 8.0, "v": 2.0}


def test_shapley_values_of_three() -> None:
    """phi_t = (f(avt) - f(av) + f(t))/3 + (f(at) - f(a) + f(vt) - f(v))/6, and so on; they add up
    to f(avt).
    """
    f = {"a": 1.0, "v": 2.0, "t": 4.0, "av": 2.5, "at": 7.0, "vt": 5.0, "avt": 9.0}
    found = agm.shapley({frozenset(s): doubles(x) for s, x in f.items()}, ("a", "v", "t"))
    t = (f["avt"] - f["av"] + f["t"]) / 3 + (f["at"] - f["a"] + f["vt"] - f["v"]) / 6
    a = (f["avt"] - f["vt"] + f["a"]) / 3 + (f["at"] - f["t"] + f["av"] - f["v"]) / 6
    assert float(found["t"]) == pytest.approx(t)
    assert float(found["a"]) == pytest.approx(a)
    assert sum(float(x) for x in found.values()) == pytest.approx(9.0)


def test_the_ratio_is_the_right_way_up() -> None:
    """Mean losses 1 and 3: r = exp(2 (2 - 1)) = e^2 for the modality that is ahead
    (BalanceBenchmark: the reciprocal), so that it is slowed: kappa = exp(0.5 (1 - e^2)) at a
    reference of equals, the other's exp(0.5 (1 - e^-2)).
    """
    torch.testing.assert_close(agm.lead(doubles(1.0, 3.0)), doubles(math.exp(2), math.exp(-2)))
    kappa = agm.modulation(doubles(1.0, 3.0), doubles(2.0, 2.0), doubles(0.5)[0], doubles(10.0)[0])
    expected = doubles(math.exp(0.5 * (1 - math.exp(2))), math.exp(0.5 * (1 - math.exp(-2))))
    torch.testing.assert_close(kappa, expected)
    assert float(kappa[0]) < 1 < float(kappa[1])


def test_lead_of_three() -> None:
    """M/(M-1) = 1.5 and the mean 2: exp(1.5), 1, exp(-1.5)."""
    torch.testing.assert_close(
        agm.lead(doubles(1.0, 2.0, 3.0)), doubles(math.exp(1.5), 1.0, math.exp(-1.5))
    )


def test_cap_of_the_difference() -> None:
    """References e^4 and e^-4 against leads of 1: differences 53.6 and -0.98, of which the first is
    capped.
    """
    kappa = agm.modulation(doubles(2.0, 2.0), doubles(0.0, 4.0), doubles(0.3)[0], doubles(10.0)[0])
    torch.testing.assert_close(kappa, doubles(math.exp(3.0), math.exp(0.3 * (math.exp(-4) - 1))))


def test_score_has_a_floor_of_probability() -> None:
    """Softmax of (0, 50) at class 0 is e^-50, below 1e-8: 18.42 counts; the other sample has log 2."""
    task = Task("classification", 2)
    found = agm.score(task, doubles(0.0, 50.0, 1.0, 1.0).reshape(2, 2), torch.tensor([0, 1]))
    assert float(found) == pytest.approx((-math.log(1e-8) + math.log(2)) / 2)


def test_score_of_a_regression_is_the_mean_error() -> None:
    found = agm.score(Task("regression", 1), doubles(1.0, -2.0).reshape(2, 1), doubles(0.5, 0.0))
    assert float(found) == pytest.approx((0.5 + 2.0) / 2)


def test_score_of_pixels_is_the_mean_loss_without_a_floor() -> None:
    """Weights 1 and 3; two classes, Dice of the second with 1 added to either part. First image:
    class 0 at logits (0, 50), class 1 at (0, 0), one unknown: CE (50 + 3 ln 2) / 4, Dice (2/2 + 1)
    / (3/2 + 1 + 1). Second: class 0 at (0, 0) alone: CE ln 2, Dice 1 / (1/2 + 1). softmax(0, 50)[0]
    is e^-50, below 1e-8, and counts whole.
    """
    task = Task("segmentation", 2, weights=(1.0, 3.0), dice=0.5)
    second = doubles(50.0, 0.0, 4.0, 0.0, 4.0, 4.0).reshape(2, 1, 3)
    logits = torch.stack([torch.zeros_like(second), second], 1)
    target = torch.tensor([[0, 1, VOID], [0, VOID, VOID]])[:, None]
    first = (50 + 3 * math.log(2)) / 4 + 0.5 * (1 - 2 / 3.5)
    other = math.log(2) + 0.5 * (1 - 1 / 1.5)
    assert float(agm.score(task, logits, target)) == pytest.approx((first + other) / 2)


@pytest.mark.parametrize("fusion", ["concat", "film"])
def test_gradients_enter_each_contribution_times_kappa(fusion: str) -> None:
    """d/dtheta sum_m kappa_m phi_m . g with g = (softmax(f(av)) - onehot) / B held constant, phi
    written out.
    """
    cfg, method, net, batch = make(fusion, alpha=2.0)
    state = {"average": doubles(0.4, 1.5), "count": doubles(3.0)[0]}
    found = method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
    f = outputs(net, batch)
    phi = {"text": (f["av"] - f["v"] + f["a"]) / 2, "audio": (f["av"] - f["a"] + f["v"]) / 2}
    one_hot = torch.eye(3, dtype=torch.float64)[batch.target]
    scores = [float(-(z.detach().log_softmax(1) * one_hot).sum(1).mean()) for z in phi.values()]
    average = [(3 * old + s) / 4 for old, s in zip((0.4, 1.5), scores, strict=True)]
    kappa = [
        math.exp(
            2.0 * (math.exp(average[1 - i] - average[i]) - math.exp(scores[1 - i] - scores[i]))
        )
        for i in (0, 1)
    ]
    for i, m in enumerate(TWO):
        assert float(found.logs[f"balance/{m}"]) == pytest.approx(kappa[i], rel=1e-9)
    assert abs(kappa[0] - 1) > 0.01
    g = (f["av"].softmax(1) - one_hot).detach() / len(one_hot)
    surrogate = (g * (kappa[0] * phi["text"] + kappa[1] * phi["audio"])).sum()
    expected = torch.autograd.grad(surrogate, list(net.params.values()))
    for (name, mine), value in zip(found.grads.items(), expected, strict=True):
        torch.testing.assert_close(mine, value, rtol=1e-8, atol=1e-11, msg=support.named(name))
    torch.testing.assert_close(found.state["average"], doubles(*average))
    assert float(found.state["count"]) == 4


def test_reference_is_the_mean_over_all_steps() -> None:
    """Three batches from nothing: the mean of three scores; the first step has kappa = 1, its own
    reference.
    """
    cfg, method, net, batch = make()
    state, seen = method.init(net, support.start()), []
    for first in (0, 16, 32):
        part = support.dataset(TWO).splits["train"].batch(torch.arange(first, first + 16))
        part = type(batch)(
            {m: type(x)(x.value.double(), x.mask) for m, x in part.inputs.items()},
            part.target,
            part.index,
        )
        found = method.grads(net, part, support.hp(cfg.method), state, CLOCK)
        state = found.state
        seen.append([float(found.logs[f"train/score/{m}"]) for m in TWO])
        if first == 0:
            assert [float(found.logs[f"balance/{m}"]) for m in TWO] == pytest.approx([1.0, 1.0])
    assert state["average"].tolist() == pytest.approx(
        [sum(column) / 3 for column in zip(*seen, strict=True)]
    )


@pytest.mark.parametrize(("modalities", "cap"), [(TWO, 10.0), (THREE, 7.0)])
def test_cap_by_the_number_of_modalities(modalities: tuple[str, ...], cap: float) -> None:
    """A reference of e^(M/(M-1) (mean - 0)) far above 10 for the first modality: kappa = exp(0.1
    cap).
    """
    cfg, method, net, batch = make(modalities=modalities, alpha=0.1)
    average = torch.full((len(modalities),), 20.0, dtype=torch.float64)
    average[0] = 0.0
    state = {"average": average, "count": doubles(1e9)[0]}
    found = method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
    assert float(found.logs[f"balance/{modalities[0]}"]) == pytest.approx(math.exp(0.1 * cap))


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_outside_the_window_it_is_joint_training_and_the_reference_goes_on(task: str) -> None:
    cfg, method, net, batch = make(modalities=THREE, task=task, start=0.5, alpha=3.0)
    state = {"average": doubles(0.1, 2.0, 1.0), "count": doubles(2.0)[0]}
    joint = net.loss(net.fuse(net.encode(batch.inputs)), batch.target)
    expected = torch.autograd.grad(joint, list(net.params.values()))
    found = method.grads(net, batch, support.hp(cfg.method), state, CLOCK._replace(epoch=4))
    for mine, value in zip(found.grads.values(), expected, strict=True):
        torch.testing.assert_close(mine, value, rtol=1e-9, atol=1e-12)
    assert float(found.state["count"]) == 3
    inside = method.grads(net, batch, support.hp(cfg.method), state, CLOCK._replace(epoch=5))
    assert not torch.allclose(inside.grads["fusion.head.weight"], found.grads["fusion.head.weight"])


@pytest.mark.parametrize(("size", "clipped"), [(0.9, False), (-1.1, True)])
def test_head_clip_acts_where_the_heads_gradient_is_steep(size: float, clipped: bool) -> None:
    """All gradients to norm 0.5 if an element of the head's exceeds 1 in magnitude; else as they
    are.
    """
    cfg, method, net, batch = make(head_clip=0.5)
    given = {n: torch.ones_like(p) for n, p in net.params.items()}
    given["fusion.head.weight"] = torch.full_like(net.params["fusion.head.weight"], size)
    logs = {f"train/score/{m}": doubles(1.0)[0] for m in TWO}
    update = Update(given, doubles(0.0)[0], logs, {})
    found = method.edit(
        net, batch, support.hp(cfg.method), method.init(net, support.start()), CLOCK, update
    ).grads
    norm = math.sqrt(sum(float(g.square().sum()) for g in given.values()))
    for name, g in given.items():
        torch.testing.assert_close(found[name], g * (0.5 / norm if clipped else 1.0))


@pytest.mark.parametrize("fusion", ["concat", "mmtm"])
def test_zero_inputs_leave_batchnorm_as_joint_training_does(fusion: str) -> None:
    data = images.dataset()
    buffers = []
    for name in ("joint", "agm"):
        method, net = support.bound(images.config(name, fusion), data)
        net.model.train()
        state = method.init(net, support.start())
        method.grads(net, support.batch(data), support.hp(method.section), state, CLOCK)
        assert net.model.training
        buffers.append({n: b.clone() for n, b in net.model.named_buffers()})
    assert buffers[0]
    for name, value in buffers[0].items():
        assert torch.equal(value, buffers[1][name]), name


def test_the_reference_is_in_checkpoints() -> None:
    """96 samples in batches of 16: six steps."""
    run = Run(support.config("agm"), support.dataset())
    run.epoch()
    state = run.state_dict()["method"]
    assert float(state["count"]) == 6
    assert state["average"].shape == (3,)
    assert bool((state["average"] > 0).all())


def test_one_modality_is_refused() -> None:
    with pytest.raises(ValueError, match=r"agm needs 2 or more modalities, got 1 \(text\)"):
        check(support.config("agm"), support.dataset(("text",)).spec)


@pytest.mark.parametrize("fusion", ["concat", "mmtm"])
def test_zeros_are_encoded_once_where_samples_have_no_mask(fusion: str) -> None:
    """f(S) of images against zeros of the whole batch, in evaluation mode, where BatchNorm looks at
    no other sample.
    """
    data = images.dataset()
    method, net = support.bound(images.config("agm", fusion), data)
    batch = support.batch(data)
    net.model.eval()
    state = {"average": doubles(0.5, 0.5), "count": doubles(1.0)[0]}
    logs = method.grads(net, batch, support.hp(method.section), state, CLOCK).logs
    f = outputs(net, batch)
    for m, phi in {
        "a": (f["av"] - f["v"] + f["a"]) / 2,
        "b": (f["av"] - f["a"] + f["v"]) / 2,
    }.items():
        assert float(logs[f"train/score/{m}"]) == pytest.approx(
            float(net.loss(phi, batch.target).detach())
        )
