"""PMR: prototypes, weights and both terms against plain arithmetic; windows; classes that are
absent.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core import build
from tune_mm.core.net import Net
from tune_mm.core.run import Run
from tune_mm.core.types import Clock
from tune_mm.methods import pmr

CLOCK = Clock(1, 0, 6, 100)
ALL = {"entropy_end": 1.0}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def make(fusion="concat", modalities=("text", "audio", "visual"), **settings):
    data = support.dataset(modalities)
    cfg = support.config("pmr", **settings)
    cfg = cfg if fusion == "transformer" else with_overrides(cfg, {"model.fusion": fusion})
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data)


def prototypes(net, known=(True, True, True), seed=0):
    """A state as after an epoch: prototypes drawn, of width 10 as the features."""
    generator = torch.Generator().manual_seed(seed)
    rows = {
        f"prototypes/{m}": torch.randn(3, 10, dtype=torch.float64, generator=generator)
        for m in net.modalities
    }
    return {**rows, "known": torch.tensor(known)}


def by_hand(net, batch, state, cfg):
    """L of the docstring, sample by sample, with the weights of Eq. 11."""
    features = net.encode(batch.inputs)
    total = float(F.cross_entropy(net.fuse(features), batch.target).detach())
    right, own, unsure = {}, {}, {}
    for m, f in features.items():
        steps = [row[: int(mask.sum())] for row, mask in zip(f.value.detach(), f.mask, strict=True)]
        right[m], own[m], unsure[m], count = 0.0, 0.0, 0.0, 0
        for h, y in zip([s.mean(0) for s in steps], batch.target.tolist(), strict=True):
            near = {
                k: math.exp(-math.dist(h.tolist(), state[f"prototypes/{m}"][k].tolist()))
                for k in range(3)
                if state["known"][k]
            }
            p = {k: v / sum(near.values()) for k, v in near.items()}
            unsure[m] -= sum(v * math.log(v) for v in p.values()) / 16
            if y in p:
                right[m], own[m], count = right[m] + p[y], own[m] - math.log(p[y]), count + 1
        own[m] /= max(count, 1)
    best = max(right.values())
    weights = {m: min(max(best / s - 1, 0.0), 1.0) for m, s in right.items()}
    if cfg.method.weights == "switch":
        weights = {m: float(s < best) for m, s in right.items()}
    lead = max(right, key=lambda m: right[m])
    total += cfg.method.alpha * sum(weights[m] * own[m] for m in weights)
    return total - cfg.method.entropy * max(weights.values()) * unsure[lead], weights


def test_similarity_by_hand():
    """|(0, 0) - (3, 4)| = 5; a class without a prototype is far from everything."""
    found = pmr.similarity(
        torch.stack([tensor(0, 0), tensor(3, 4)]),
        torch.stack([tensor(3, 4), tensor(0, 0), tensor(0, 1)]),
        torch.tensor([True, True, False]),
    )
    assert found.tolist() == [[-5.0, 0.0, pmr.FAR], [0.0, -5.0, pmr.FAR]]


@pytest.mark.parametrize(
    ("first", "second"), [(9.0, 6.0), (6.0, 9.0), (9.0, 3.0), (1.0, 1.0), (2.0, 1.0)]
)
def test_two_weights_are_equation_11(first, second):
    """rho = s_0 / s_1;  rho < 1: beta = clip(1/rho - 1), gamma = 0;  else beta = 0, gamma =
    clip(rho - 1).
    """
    rho = first / second
    beta = min(max(1 / rho - 1, 0.0), 1.0) if rho < 1 else 0.0
    gamma = min(max(rho - 1, 0.0), 1.0) if rho >= 1 else 0.0
    assert pmr.lag(tensor(first, second)).tolist() == pytest.approx([beta, gamma])


def test_more_weights_and_the_hard_switch():
    """0.9 / 0.6 - 1 = 0.5; 0.9 / 0.3 - 1 = 2, clipped; a score of 0 is clipped too, all 0 is no
    lag.
    """
    assert pmr.lag(tensor(0.9, 0.6, 0.3)).tolist() == pytest.approx([0.0, 0.5, 1.0])
    assert pmr.lag(tensor(0.9, 0.6, 0.3), hard=True).tolist() == [0.0, 1.0, 1.0]
    assert pmr.lag(tensor(0.4, 0.4), hard=True).tolist() == [0.0, 0.0]
    assert pmr.lag(tensor(0.5, 0.0)).tolist() == [0.0, 1.0]
    assert pmr.lag(tensor(0.0, 0.0)).tolist() == [0.0, 0.0]


def test_entropy_by_hand():
    """Uniform over 4: log 4; (1/2, 1/4, 1/4): 1.5 log 2; a class that is far counts for nothing."""
    assert float(pmr.entropy(tensor(1, 1, 1, 1)[None])) == pytest.approx(math.log(4))
    assert float(pmr.entropy(tensor(math.log(2), 0, 0)[None])) == pytest.approx(1.5 * math.log(2))
    assert float(pmr.entropy(tensor(0, 0, pmr.FAR)[None])) == pytest.approx(math.log(2))


def test_prototypes_by_hand():
    """Means (2, 2) and (5, 5), none for the third class; known ones move by 0.2 old + 0.8 new,
    absent ones stay.
    """
    features = torch.stack([tensor(1, 1), tensor(3, 3), tensor(5, 5)])
    now, present = pmr.means(features, torch.tensor([0, 0, 1]), 3)
    assert now.tolist() == [[2, 2], [5, 5], [0, 0]]
    assert present.tolist() == [True, True, False]
    old = torch.stack([tensor(7, 2), tensor(9, 9), tensor(4, 4)])
    found = pmr.moved(old, torch.tensor([True, False, True]), now, present, tensor(0.2)[0])
    torch.testing.assert_close(
        found, torch.stack([tensor(3.0, 2.0), tensor(5.0, 5.0), tensor(4.0, 4.0)])
    )


@pytest.mark.parametrize("known", [(True, True, True), (True, False, True)], ids=["all", "absent"])
@pytest.mark.parametrize("weights", ["clip", "switch"])
@pytest.mark.parametrize(
    "modalities", [("text", "audio"), ("text", "audio", "visual")], ids=["two", "three"]
)
def test_loss_written_out(known, weights, modalities):
    cfg, method, net, batch = make(
        modalities=modalities, alpha=1.5, entropy=0.3, weights=weights, **ALL
    )
    state = prototypes(net, known)
    found, logs = method.loss(net, batch, support.hp(cfg.method), state, CLOCK)
    expected, balance = by_hand(net, batch, state, cfg)
    assert float(found.detach()) == pytest.approx(expected, rel=1e-9)
    assert {m: float(logs[f"balance/{m}"]) for m in modalities} == pytest.approx(balance)
    assert max(balance.values()) > 0


def test_only_encoders_that_lag_get_a_prototype_gradient():
    cfg, method, net, batch = make(weights="switch", entropy=0.0)
    state, hp = prototypes(net), support.hp(cfg.method)
    found = method.grads(net, batch, hp, state, CLOCK)
    plain = method.grads(net, batch, hp, {}, CLOCK)
    for name, value in found.grads.items():
        behind = (
            name.startswith("encoders.") and float(found.logs[f"balance/{name.split('.')[1]}"]) > 0
        )
        if not behind:
            torch.testing.assert_close(
                value, plain.grads[name], rtol=1e-9, atol=1e-12, msg=support.named(name)
            )
    moved = {
        n.split(".")[1]
        for n in found.grads
        if n.startswith("encoders.") and not torch.allclose(found.grads[n], plain.grads[n])
    }
    assert moved == {m for m in net.modalities if float(found.logs[f"balance/{m}"]) > 0}
    assert len(moved) == 2


@pytest.mark.parametrize(
    ("epoch", "rebalanced", "held"),
    [
        (19, False, False),
        (20, True, True),
        (39, True, True),
        (40, True, False),
        (59, True, False),
        (60, False, False),
    ],
)
def test_windows_are_fractions_of_the_epochs(epoch, rebalanced, held):
    """start 0.2, end 0.6 and entropy_end 0.4 of 100 epochs."""
    cfg, method, net, batch = make(start=0.2, end=0.6, entropy_end=0.4, entropy=0.5)
    state, hp = prototypes(net), support.hp(cfg.method)
    clock = Clock(epoch, 0, 6, 100)
    joint = F.cross_entropy(net.fuse(net.encode(batch.inputs)), batch.target)
    without, _ = method.loss(net, batch, {**hp, "entropy": tensor(0.0)[0]}, state, clock)
    whole, _ = method.loss(net, batch, hp, state, clock)
    rounding = 1e-12  # the same terms, summed in another order
    assert bool(without - joint > rounding) is rebalanced
    assert bool(without - whole > rounding) is held


def test_released_variant_has_no_entropy_term():
    cfg, method, net, batch = make(weights="switch", entropy=0.0, end=0.67, **ALL)
    state = prototypes(net)
    expected, _ = by_hand(net, batch, state, cfg)
    assert float(
        method.loss(net, batch, support.hp(cfg.method), state, CLOCK)[0].detach()
    ) == pytest.approx(expected)


def test_prototypes_of_a_run_are_means_of_evaluated_features():
    """A tenth of 96 samples, evenly spread; the next epoch's with momentum 0.2."""
    run = Run(
        support.config("pmr", overrides={"model.encoder.dropout_residual": 0.3}), support.dataset()
    )
    previous: dict[str, torch.Tensor] = {}
    for epoch in range(2):
        run.epoch()
        index = torch.linspace(0, 95, 10).round().long()
        batch = run.splits["train"].batch(index)
        run.model.eval()
        with torch.no_grad():
            features = run.net.encode(batch.inputs)
        for m, f in features.items():
            lengths = f.mask.sum(1)
            for k in range(3):
                chosen = [i for i, y in enumerate(batch.target.tolist()) if y == k]
                rows = [f.value[i, : int(lengths[i])].mean(0) for i in chosen]
                now = torch.stack(rows).mean(0)
                expected = 0.8 * now + 0.2 * previous[f"{m}{k}"] if epoch else now
                torch.testing.assert_close(
                    run.state[f"prototypes/{m}"][k], expected, rtol=1e-4, atol=1e-5
                )
                previous[f"{m}{k}"] = expected
    assert run.samples == 2 * (96 + 10)


def test_classes_absent_from_the_part_stay_finite():
    """One sample makes the prototypes: two of three classes have none, which is 0/0 in public code."""
    run = Run(
        support.config("pmr", overrides={"train.epochs": 3}, fraction=0.01, **ALL),
        support.dataset(),
    )
    for _ in range(3):
        result = run.epoch()
        assert not result.diverged
        assert all(math.isfinite(v) for v in result.metrics.values())
    assert run.state["known"].sum() == 1
    assert all(bool(torch.isfinite(p).all()) for p in run.net.params.values())


def test_a_feature_on_its_prototype_has_a_finite_gradient():
    h = torch.stack([tensor(1.0, 2.0), tensor(0.0, 0.0)]).requires_grad_()
    logits = pmr.similarity(
        h, torch.stack([tensor(1.0, 2.0), tensor(5.0, 5.0)]), torch.tensor([True, True])
    )
    (gradient,) = torch.autograd.grad(F.cross_entropy(logits, torch.tensor([0, 1])), h)
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("fusion", ["transformer", "concat"])
def test_lanes_equal_trials_with_prototypes(fusion):
    cfg, method, net, batch = make(fusion, entropy=0.2, **ALL)
    states = [prototypes(net, (True, s != 1, True), s) for s in range(3)]
    hps = [{k: v * (1 + 0.1 * s) for k, v in support.hp(cfg.method).items()} for s in range(3)]

    def one(hp, state):
        bound = Net(net.model, net.task, {n: p.detach() for n, p in net.params.items()}, {})
        return method.grads(bound, batch, hp, state, CLOCK).grads

    alone = [one(h, s) for h, s in zip(hps, states, strict=True)]
    together = torch.func.vmap(one)(
        *({k: torch.stack([x[k] for x in xs]) for k in xs[0]} for xs in (hps, states))
    )
    for lane, expected in enumerate(alone):
        for name, value in expected.items():
            torch.testing.assert_close(
                together[name][lane], value, rtol=1e-9, atol=1e-11, msg=support.named(name)
            )


def test_regression_is_refused():
    with pytest.raises(
        ValueError,
        match=r"^method\.name: pmr trains classification, and these data are regression$",
    ):
        build.check(support.config("pmr"), support.dataset(task="regression").spec)
