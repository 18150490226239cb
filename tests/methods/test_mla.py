"""MLA against its formulae: the projection that really runs, turns within a batch, weights of the
prediction.
"""

import math

import pytest
import torch
from torch.nn import functional as F

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.run import Run
from tune_mm.core.types import Clock
from tune_mm.methods.mla import HEAD, advance, certainty

MODALITIES = ("text", "audio", "visual")


def make(modalities=MODALITIES, task="classification", **settings):
    data = support.dataset(modalities, task)
    cfg = support.config("mla", **settings)
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data), method.init(net, support.start())


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def vector(net, batch, modality):
    """The mean feature over real steps, written out."""
    value, mask, _ = net.encode_one(modality, batch.inputs[modality])
    return torch.stack([v[m].mean(0) for v, m in zip(value, mask, strict=True)])


def plain(net, batch, modality):
    """Gradient of one modality's own loss with respect to the head's weight."""
    loss = F.cross_entropy(net.head(vector(net, batch, modality)), batch.target)
    return torch.autograd.grad(loss, net.params[HEAD])[0]


def test_projection_by_hand():
    """P = I, r = (1, 2), a = 0.5: k = (1, 2), a + r k = 5.5; a + k r^T = [[1.5, 2.5], [2.5, 4.5]]."""
    found = advance(torch.eye(2, dtype=torch.float64), tensor(1, 2), tensor(0.5)[0])
    torch.testing.assert_close(found, tensor([1 - 1 / 5.5, -2 / 5.5], [-2 / 5.5, 1 - 4 / 5.5]))
    found = advance(
        torch.eye(2, dtype=torch.float64), tensor(1, 2), tensor(0.5)[0], elementwise=True
    )
    torch.testing.assert_close(found, tensor([1 - 1 / 1.5, -2 / 2.5], [-2 / 2.5, 1 - 4 / 4.5]))


def test_projection_is_recursive_least_squares():
    """At a constant a, n updates give the inverse of I + (1 / a) sum r r^T (Sherman and Morrison)."""
    torch.manual_seed(0)
    seen, a = torch.randn(6, 4, dtype=torch.float64), tensor(0.3)[0]
    found = torch.eye(4, dtype=torch.float64)
    for r in seen:
        found = advance(found, r, a)
    torch.testing.assert_close(
        found, torch.linalg.inv(torch.eye(4, dtype=torch.float64) + seen.T @ seen / 0.3)
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_the_projection_fires_from_the_second_step_on(normalize):
    """Public code never executes it. Here step 2 of 6 has a = 0.1^(1 + 2/6), and the head's
    gradient is g P^T.
    """
    cfg, method, net, batch, state = make(normalize=normalize)
    hp = support.hp(cfg.method)
    first = method.grads(net, batch, hp, state, Clock(0, 0, 6, 2, 0))
    torch.testing.assert_close(first.grads[HEAD], plain(net, batch, "text"))
    assert torch.equal(first.state["projection"], torch.eye(10, dtype=torch.float64))
    found = method.grads(net, batch, hp, first.state, Clock(0, 2, 6, 2, 1))
    r = vector(net, batch, "audio").mean(0)
    p = torch.eye(10, dtype=torch.float64) - torch.outer(r, r) / (0.1 ** (1 + 2 / 6) + r @ r)
    p = p / p.square().sum().sqrt() if normalize else p
    g = plain(net, batch, "audio")
    torch.testing.assert_close(found.grads[HEAD], g @ p.T)
    torch.testing.assert_close(found.state["projection"], p)
    assert not torch.allclose(found.grads[HEAD], g)
    ratio = found.logs["train/projection/audio"]
    torch.testing.assert_close(ratio, (g @ p.T).norm() / g.norm())


def test_without_projection_the_head_gets_the_gradient_as_it_is():
    cfg, method, net, batch, state = make(project="off")
    found = method.grads(net, batch, support.hp(cfg.method), state, Clock(1, 2, 6, 2, 2))
    torch.testing.assert_close(found.grads[HEAD], plain(net, batch, "visual"))


def test_a_turn_moves_its_own_encoder_and_the_head_only():
    """Neither weight decay nor momentum reaches the others, which public code lets them."""
    run = Run(support.config("mla", overrides={"optim.weight_decay": 0.1}), support.dataset())
    batch = run.splits["train"].batch(torch.arange(16))
    for step in range(2):
        for i, modality in enumerate(MODALITIES):
            before = {n: p.detach().clone() for n, p in run.net.params.items()}
            run.step(batch, Clock(0, step, 6, 2, i))
            moved = {n for n, p in run.net.params.items() if not torch.equal(p, before[n])}
            assert moved == set(run.net.group(f"encoders.{modality}", "fusion"))


def test_logs_of_a_turn_are_averaged_over_the_turns():
    """Each modality has as many steps as the others, so the loss is the mean of theirs."""
    found = Run(support.config("mla"), support.dataset()).epoch().metrics
    own = [found[f"train/loss/{m}"] for m in MODALITIES]
    assert found["train/loss"] == pytest.approx(sum(own) / 3, rel=1e-5)
    assert min(own) > 0.1
    assert 0 < found["train/projection/text"] < 1


def test_certainty_by_hand_and_over_classes():
    """p = (1/4, 3/4): H = 2 ln 2 - 3/4 ln 3; uniform: ln 2. The weights of one sample are those it
    has in any batch: a softmax over a batch of one would give an entropy of 0 to every modality,
    and equal weights.
    """
    logits = tensor([[0, math.log(3)]], [[2, 2]])
    sure, unsure = 2 * math.log(2) - 0.75 * math.log(3), math.log(2)
    weights = [math.exp(unsure - sure), math.exp(unsure - unsure)]
    found = certainty(logits)
    torch.testing.assert_close(found[:, 0], tensor(*weights) / sum(weights))
    assert found[0, 0] > 0.53


def test_prediction_by_entropy_or_by_weights():
    _cfg, method, net, batch, state = make(
        inference="fixed", weights={"text": 0.35, "audio": 0.25, "visual": 0.4}
    )
    z = {m: net.head(vector(net, batch, m)) for m in MODALITIES}
    found = method.predict(net, batch.inputs, state)
    torch.testing.assert_close(
        found["joint"], 0.35 * z["text"] + 0.25 * z["audio"] + 0.4 * z["visual"]
    )
    torch.testing.assert_close(found["audio"], z["audio"])
    _cfg, method, net, batch, state = make()
    entropy = {m: torch.distributions.Categorical(logits=z[m]).entropy() for m in z}
    highest = torch.stack(list(entropy.values())).max(0).values
    weight = {m: torch.exp(highest - h) for m, h in entropy.items()}
    total = sum(weight.values())
    expected = sum((weight[m] / total)[:, None] * z[m] for m in z)
    torch.testing.assert_close(method.predict(net, batch.inputs, state)["joint"], expected)


def test_weights_are_the_trials_own():
    """2 for text and 1 for the others: 1/2, 1/4, 1/4. Trials of one program may differ in them."""
    cfg, method, net, batch, state = make(inference="fixed", weights={"text": 4.0})
    torch.testing.assert_close(state["weights"], tensor(4, 1, 1) / 6)
    hp = {**support.hp(cfg.method), "weights.text": tensor(2)[0]}
    found = method.grads(net, batch, hp, state, Clock(0, 0, 6, 2, 0))
    torch.testing.assert_close(found.state["weights"], tensor(0.5, 0.25, 0.25))


def test_regression_has_fixed_weights():
    _cfg, method, net, batch, state = make(task="regression")
    z = [net.head(vector(net, batch, m)) for m in MODALITIES]
    torch.testing.assert_close(method.predict(net, batch.inputs, state)["joint"], sum(z) / 3)


def test_the_projection_is_in_the_checkpoint():
    run = Run(support.config("mla"), support.dataset())
    run.epoch()
    kept = run.state_dict()["method"]["projection"]
    assert not torch.allclose(kept, torch.eye(10))
    torch.testing.assert_close(kept.norm(), torch.tensor(1.0))


@pytest.mark.parametrize(
    ("changes", "modalities", "task", "message"),
    [
        (
            {"model.fusion": "concat"},
            MODALITIES,
            "classification",
            r"model\.fusion: mla needs shared_head",
        ),
        ({}, ("text",), "classification", r"mla needs 2 or more modalities, got 1 \(text\)"),
        (
            {"method.inference": "entropy"},
            MODALITIES,
            "regression",
            r"method\.inference: must be auto or fixed",
        ),
        (
            {"method.weights": {"vissual": 2.0}},
            MODALITIES,
            "classification",
            r"weights: no modality .*'visual'",
        ),
    ],
)
def test_refusals_name_what_is_supported(changes, modalities, task, message):
    cfg = with_overrides(support.config("mla"), changes)
    with pytest.raises(ValueError, match=message):
        check(cfg, support.dataset(modalities, task).spec)
