"""MMCosine: logits written out, what they do not depend on, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.run import Run
from tune_mm.core.types import Clock, Padded
from tune_mm.methods import mmcosine

TWO, THREE = ("text", "audio"), ("text", "audio", "visual")
CLOCK = Clock(0, 0, 6, 10)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def make(fusion: Any = "concat", modalities: tuple[str, ...] = THREE, **settings: Any):
    data = support.dataset(modalities)
    cfg = with_overrides(support.config("mmcosine", **settings), {"model.fusion": fusion})
    check(cfg, data.spec)
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data)


def logits_by_hand(net, hidden: np.ndarray, scale: float) -> np.ndarray:
    """s times the sum of W_{c,m} . h_m / |W_{c,m}| |h_m|, entry by entry."""
    weight = net.params["fusion.head.weight"].detach().numpy()
    out = np.zeros((len(hidden), len(weight)))
    for i, h in enumerate(hidden):
        for c, w in enumerate(weight):
            for m in net.modalities:
                block = net.block(m)
                length = np.linalg.norm(w[block]) * np.linalg.norm(h[block])
                out[i, c] += scale * (w[block] @ h[block] / length) if length else 0.0
    return out


def test_cosines_by_hand() -> None:
    """Blocks (3, 4 | 1) and (4, 3 | -2): cos 24/25 and -1; with (0, 0 | 5): 0 and 1."""
    weight = doubles(4.0, 3.0, -2.0).reshape(1, 3)
    hidden = doubles(3.0, 4.0, 1.0, 0.0, 0.0, -5.0).reshape(2, 3)
    found = mmcosine.cosines(hidden, weight, [slice(0, 2), slice(2, 3)])
    torch.testing.assert_close(found, doubles(24 / 25 - 1, 1.0).reshape(2, 1))


@pytest.mark.parametrize("modalities", [TWO, THREE])
@pytest.mark.parametrize(
    "fusion",
    ["concat", "sum", {"name": "film", "symmetric": True}, {"name": "gated", "symmetric": True}],
)
def test_loss_is_the_cross_entropy_of_scaled_cosines(
    fusion: Any, modalities: tuple[str, ...]
) -> None:
    cfg, method, net, batch = make(fusion, modalities, scale=7.0)
    z = logits_by_hand(net, net.hidden(net.encode(batch.inputs)).detach().numpy(), 7.0)
    expected = np.mean(
        [
            math.log(np.exp(row).sum()) - row[y]
            for row, y in zip(z, batch.target.tolist(), strict=True)
        ]
    )
    state = method.init(net, support.start())
    found = method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
    assert float(found.loss) == pytest.approx(float(expected), rel=1e-10)
    predicted = method.predict(net, batch.inputs, state)
    np.testing.assert_allclose(predicted["joint"].detach().numpy(), z, rtol=1e-10, atol=1e-12)


def test_a_modality_alone_has_its_own_cosines() -> None:
    _, method, net, batch = make(scale=10.0)
    found = method.predict(net, batch.inputs, method.init(net, support.start()))
    hidden = net.hidden(net.encode(batch.inputs)).detach().numpy()
    for m in THREE:
        own = np.zeros_like(hidden)
        own[:, net.block(m)] = hidden[:, net.block(m)]
        np.testing.assert_allclose(
            found[m].detach().numpy(), logits_by_hand(net, own, 10.0), rtol=1e-10, atol=1e-12
        )
    total = torch.stack([found[m] for m in THREE]).sum(0)
    torch.testing.assert_close(total, found["joint"])


def test_no_modality_wins_by_length() -> None:
    """A head's block 100 times as long, and a bias, change nothing."""
    _, method, net, batch = make()
    state = method.init(net, support.start())
    before = method.predict(net, batch.inputs, state)["joint"]
    with torch.no_grad():
        net.params["fusion.head.weight"][:, net.block("text")] *= 100
        net.params["fusion.head.bias"] += doubles(5.0, -3.0, 1.0)
    torch.testing.assert_close(method.predict(net, batch.inputs, state)["joint"], before)


def test_largest_probability_is_bounded_by_the_scale() -> None:
    """Two classes with opposite weights, features along the first: 1 / (1 + exp(-2 s M)) with s =
    0.5 and M = 2.
    """
    weight = doubles(1.0, 2.0, 3.0, -1.0, -2.0, -3.0).reshape(2, 3)
    z = 0.5 * mmcosine.cosines(7 * weight[:1], weight, [slice(0, 1), slice(1, 3)])
    assert float(z.softmax(1)[0, 0]) == pytest.approx(1 / (1 + math.exp(-2)))


def test_a_feature_of_length_zero_adds_nothing_and_passes_no_gradient() -> None:
    x = doubles(0.0, 0.0, 3.0, 4.0).reshape(2, 2).requires_grad_()
    found = mmcosine.unit(x)
    torch.testing.assert_close(found.detach(), doubles(0.0, 0.0, 0.6, 0.8).reshape(2, 2))
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), x)
    assert bool((gradient[0] == 0).all())
    # d (x / |x|) / d x = 1/|x| - x^2/|x|^3 = 1/5 - 9/125, and -x y/|x|^3 = -12/125
    torch.testing.assert_close(gradient[1], doubles(16 / 125, -12 / 125))


@pytest.mark.parametrize("fusion", ["concat", {"name": "film", "symmetric": True}])
def test_all_but_the_heads_bias_is_trained(fusion: Any) -> None:
    cfg, method, net, batch = make(fusion)
    found = method.grads(
        net, batch, support.hp(cfg.method), method.init(net, support.start()), CLOCK
    )
    assert set(net.params) - set(found.grads) == {"fusion.head.bias"}


def test_prediction_uses_the_scale_of_the_last_step() -> None:
    """A trial among others of one program has a scale of its own, which `hp` holds."""
    cfg, method, net, batch = make(scale=10.0)
    state = method.init(net, support.start())
    first = method.predict(net, batch.inputs, state)["joint"]
    state = method.grads(
        net, batch, {**support.hp(cfg.method), "scale": doubles(4.0)[0]}, state, CLOCK
    ).state
    torch.testing.assert_close(method.predict(net, batch.inputs, state)["joint"], 0.4 * first)


def test_no_statistics_of_a_head_that_does_not_predict() -> None:
    run = Run(
        support.config("mmcosine", overrides={"train.gradient_vectors": 2}), support.dataset()
    )
    found = run.epoch().metrics
    assert "grad/norm/text" in found
    assert not any(
        k.startswith(("grad/norm_", "grad/cos", "grad/suppression", "probe/")) for k in found
    )
    assert run.gradient_vectors() == {}


def test_parts_of_a_batch_add_up() -> None:
    """The loss is a mean over samples: half the sum of two halves' gradients."""
    cfg, method, net, batch = make()
    hp, state = support.hp(cfg.method), method.init(net, support.start())

    def part(rows: slice):
        inputs = {m: Padded(x.value[rows], x.mask[rows]) for m, x in batch.inputs.items()}
        return method.grads(
            net, type(batch)(inputs, batch.target[rows], batch.index[rows]), hp, state, CLOCK
        ).grads

    whole, left, right = (
        method.grads(net, batch, hp, state, CLOCK).grads,
        part(slice(0, 8)),
        part(slice(8, 16)),
    )
    assert method.separable
    for name, g in whole.items():
        torch.testing.assert_close((left[name] + right[name]) / 2, g, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("fusion", "task", "message"),
    [
        ("concat", "regression", r"mmcosine trains classification, and these data are regression"),
        (
            "transformer",
            "classification",
            r"mmcosine needs one of concat, sum, film, gated, mmtm, got 'transformer'",
        ),
        ("bilinear", "classification", r"mmcosine needs one of .*, got 'bilinear'"),
        ("film", "classification", r"set model\.fusion\.symmetric=true .*model\.fusion: film"),
        ("gated", "classification", r"set model\.fusion\.symmetric=true .*model\.fusion: gated"),
    ],
)
def test_what_is_refused(fusion: str, task: str, message: str) -> None:
    cfg = with_overrides(support.config("mmcosine"), {"model.fusion": {"name": fusion}})
    with pytest.raises(ValueError, match=message):
        check(cfg, support.dataset(task=task).spec)
