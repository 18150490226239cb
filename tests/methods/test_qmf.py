"""QMF: confidences, histories by sample and the ranking loss against plain arithmetic."""

import math

import pytest
import torch
from torch.nn import functional as F

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core import build
from tune_mm.core.method import Start
from tune_mm.core.run import Run
from tune_mm.core.types import Batch, Clock
from tune_mm.methods import qmf

CLOCK = Clock(0, 0, 6, 2)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def make(fusion="concat", modalities=("text", "audio", "visual"), **settings):
    data = support.dataset(modalities)
    cfg = with_overrides(support.config("qmf", **settings), {"model.fusion": fusion})
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data)


def blank(method, net, samples=96):
    return method.init(net, Start(samples, lambda changes: {}))


def test_confidence_and_weighted_sum_by_hand():
    """log(e^0 + e^log 3) / 2 = log 4 / 2 = log 2; 2 (1, 0) + 0.5 (4, 2) = (4, 1)."""
    assert float(qmf.confidence(tensor(0.0, math.log(3)), tensor(2.0)[0])) == pytest.approx(
        math.log(2)
    )
    logits = torch.stack([tensor(1.0, 0.0), tensor(4.0, 2.0)])[:, None]
    assert qmf.fused(logits, torch.stack([tensor(2.0), tensor(0.5)])).tolist() == [[4.0, 1.0]]


def test_histories_are_scaled_and_ties_stay_finite():
    """(x - min) / (max - min) by row; all equal: 0, where public code has 0/0."""
    found = qmf.scaled(torch.stack([tensor(2.0, 4.0, 3.0), tensor(5.0, 5.0, 5.0)]))
    assert found.tolist() == [[0.0, 1.0, 0.5], [0.0, 0.0, 0.0]]


def test_ranking_by_hand():
    """Pairs (0, 1), (1, 2), (2, 0) of c = 0.2, 0.5, 0.1 and k = 0, 1, 0.5:
    -(0.2 - 0.5) + 1 = 1.3;  (0.5 - 0.1) + 0.5 = 0.9;  (0.1 - 0.2) + 0.5 = 0.4;  their mean is 2.6 / 3.
    """
    c, k = tensor(0.2, 0.5, 0.1)[None], tensor(0.0, 1.0, 0.5)[None]
    assert qmf.ranking(c, k).tolist() == pytest.approx([2.6 / 3])
    # As a tolerance: 0.3 - 1, 0.4 - 0.5, -0.1 - 0.5 are all negative; with 10 c: 3 - 1, 4 - 0.5, -1
    # - 0.5.
    assert qmf.ranking(c, k, -1.0).tolist() == [0.0]
    assert qmf.ranking(10 * c, k, -1.0).tolist() == pytest.approx([(2 + 3.5) / 3])


def test_equal_histories_cost_nothing():
    assert qmf.ranking(tensor(0.3, -0.2, 0.9)[None], tensor(0.4, 0.4, 0.4)[None]).tolist() == [0.0]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_ranking_equals_torch_margin_ranking(sign):
    """Per pair margin_ranking_loss(c_i, c_j, y = -target, margin); released: c_j + margin / target,
    margin 0.
    """
    generator = torch.Generator().manual_seed(0)
    c, k = (torch.rand(50, dtype=torch.float64, generator=generator) for _ in range(2))
    total = 0.0
    for i in range(50):
        j = (i + 1) % 50
        gap, target = abs(float(k[i] - k[j])), 1.0 if k[i] > k[j] else -1.0
        y = torch.tensor([-target], dtype=torch.float64)
        if sign > 0:
            total += float(F.margin_ranking_loss(c[i : i + 1], c[j : j + 1], y, margin=gap))
        else:
            total += float(F.margin_ranking_loss(c[i : i + 1], c[j : j + 1] + gap / target, y))
    assert float(qmf.ranking(c[None], k[None], sign)) == pytest.approx(total / 50)


@pytest.mark.parametrize("fusion", ["concat", "sum", "shared_head"])
@pytest.mark.parametrize(
    "modalities", [("text", "audio"), ("text", "audio", "visual")], ids=["two", "three"]
)
def test_loss_and_history_written_out(fusion, modalities):
    """Two steps, the second on samples that overlap with the first."""
    cfg, method, net, _ = make(fusion, modalities, temperature=4.0, rank=0.3)
    data, state, past = (
        support.dataset(modalities),
        blank(method, net),
        {m: [0.0] * 96 for m in modalities},
    )
    for start in (0, 8):
        whole = data.splits["train"].batch(torch.arange(start, start + 16))
        batch = Batch(
            {m: type(x)(x.value.double(), x.mask) for m, x in whole.inputs.items()},
            whole.target,
            whole.index,
        )
        alone = net.unimodal(net.encode(batch.inputs))
        expected, joint = 0.0, torch.zeros(16, 3, dtype=torch.float64)
        for m, z in alone.items():
            losses = F.cross_entropy(z, batch.target, reduction="none").tolist()
            trust = [math.log(sum(math.exp(v) for v in row)) / 4 for row in z.tolist()]
            joint += z.detach() * tensor(*trust)[:, None]
            for i, value in zip(batch.index.tolist(), losses, strict=True):
                past[m][i] += value
            low, span = min(past[m]), max(past[m]) - min(past[m])
            k = [(past[m][i] - low) / span for i in batch.index.tolist()]
            pairs = [(b, (b + 1) % 16) for b in range(16)]
            rank = sum(
                max(0.0, math.copysign(1, k[a] - k[b]) * (trust[a] - trust[b]) + abs(k[a] - k[b]))
                for a, b in pairs
            )
            expected += sum(losses) / 16 + 0.3 * rank / 16
        expected += float(F.cross_entropy(joint, batch.target))
        found = method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
        state = found.state
        assert float(found.loss) == pytest.approx(expected, rel=1e-9)
        torch.testing.assert_close(
            state["history"], torch.stack([tensor(*past[m]) for m in modalities])
        )


@pytest.mark.parametrize("detach", [True, False])
def test_gradient_through_the_confidences(detach):
    """Without the ranking loss: the weights of the prediction are constants, or not."""
    cfg, method, net, batch = make(rank=0.0, detach=detach)
    found = method.grads(net, batch, support.hp(cfg.method), blank(method, net), CLOCK).grads
    alone = net.unimodal(net.encode(batch.inputs))
    trust = {m: torch.logsumexp(z, -1, keepdim=True) / 10 for m, z in alone.items()}
    joint = sum((trust[m].detach() if detach else trust[m]) * z for m, z in alone.items())
    total = F.cross_entropy(joint, batch.target) + sum(
        F.cross_entropy(z, batch.target) for z in alone.values()
    )
    expected = torch.autograd.grad(total, [net.params[n] for n in found])
    for (name, value), wanted in zip(found.items(), expected, strict=True):
        torch.testing.assert_close(value, wanted, rtol=1e-9, atol=1e-12, msg=support.named(name))


def test_the_ranking_loss_trains_the_confidences():
    cfg, method, net, batch = make()
    state, hp = blank(method, net), support.hp(cfg.method)
    found = [
        method.grads(net, batch, {**hp, "rank": tensor(r)[0]}, state, CLOCK).grads
        for r in (0.0, 1.0)
    ]
    for m in net.modalities:
        names = [n for n in found[0] if n.startswith(f"encoders.{m}.")]
        assert not all(torch.allclose(found[0][n], found[1][n]) for n in names)


def test_one_sample_whose_history_ties_with_itself_is_finite():
    cfg, method, net, batch = make()
    one = Batch(
        {m: x.take(torch.tensor([0])) for m, x in batch.inputs.items()},
        batch.target[:1],
        batch.index[:1],
    )
    found = method.grads(net, one, support.hp(cfg.method), blank(method, net, 1), CLOCK)
    assert math.isfinite(float(found.loss))
    assert all(bool(torch.isfinite(g).all()) for g in found.grads.values())


def test_predicts_by_confidence():
    _cfg, method, net, batch = make(temperature=5.0)
    found = method.predict(net, batch.inputs, {})
    for b in range(16):
        expected = tensor(0.0, 0.0, 0.0)
        for m in net.modalities:
            row = found[m][b].detach()
            expected += row * math.log(sum(math.exp(v) for v in row.tolist())) / 5
        torch.testing.assert_close(
            found["joint"][b], expected, rtol=1e-9, atol=1e-12, check_stride=False
        )


def test_histories_are_part_of_a_checkpoint():
    run = Run(support.config("qmf"), support.dataset())
    run.epoch()
    stored = run.state_dict()["method"]["history"]
    assert stored.shape == (3, 96)
    assert bool((stored > 0).all()), "every sample was seen once"


@pytest.mark.parametrize(
    ("task", "fusion", "message"),
    [
        (
            "regression",
            "concat",
            r"^method\.name: qmf trains classification, and these data are regression$",
        ),
        (
            "classification",
            "film",
            r"^model\.fusion: qmf needs one of concat, sum, shared_head, got 'film'$",
        ),
    ],
)
def test_what_it_cannot_train_is_refused(task, fusion, message):
    with pytest.raises(ValueError, match=message):
        build.check(
            with_overrides(support.config("qmf"), {"model.fusion": fusion}),
            support.dataset(task=task).spec,
        )
