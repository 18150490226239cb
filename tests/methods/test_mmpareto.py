"""MMPareto against one backward pass per loss, and its closed form against a search."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.types import Clock
from tune_mm.methods import mmpareto

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
    cfg = support.config("mmpareto", **settings)
    if fusion != "transformer":
        cfg = with_overrides(cfg, {"model.fusion": fusion})
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data)


def test_weights_of_gradients_in_conflict() -> None:
    """g = (1, 0), u = (-1, 1): (u - g) . u / |u - g|^2 = (2 + 1) / (4 + 1) = 3/5; the point (0.2,
    0.4) is at right angles to g - u = (2, -1).
    """
    g, u = doubles(1.0, 0.0), doubles(-1.0, 1.0)
    a = float(mmpareto.min_norm(g, u))
    assert a == pytest.approx(0.6)
    assert float((a * g + (1 - a) * u) @ (g - u)) == pytest.approx(0.0, abs=1e-12)


def test_weights_of_gradients_that_agree_are_equal() -> None:
    assert float(mmpareto.min_norm(doubles(5.0, 0.0), doubles(0.1, 1.0))) == 0.5
    assert float(mmpareto.min_norm(doubles(1.0, 0.0), doubles(0.0, 3.0))) == 0.5  # at right angles


def test_closed_form_is_the_shortest_of_all() -> None:
    generator = np.random.default_rng(0)
    grid, conflicts = np.linspace(0, 1, 10_001)[:, None], 0
    for _ in range(40):
        g, u = generator.normal(size=(2, 3)) * generator.uniform(0.2, 5, size=(2, 1))
        if g @ u < 0:
            conflicts += 1
            best = float(grid[np.square(grid * g + (1 - grid) * u).sum(1).argmin(), 0])
            assert float(mmpareto.min_norm(torch.tensor(g), torch.tensor(u))) == pytest.approx(
                best, abs=1e-4
            )
    assert conflicts > 10


def test_direction_in_conflict_gets_the_plain_sums_length() -> None:
    """d = 2 (0.2, 0.4) of length 0.894 becomes as long as g + u = (0, 1), times gamma: 1.5 (1,
    2)/sqrt 5.
    """
    found = mmpareto.rescaled(doubles(0.4, 0.8), doubles(0.0, 1.0), doubles(1.5)[0])
    torch.testing.assert_close(found, doubles(1.5 / math.sqrt(5), 3.0 / math.sqrt(5)))


def test_a_longer_direction_is_not_shortened() -> None:
    found = mmpareto.rescaled(doubles(3.0, 4.0), doubles(1.0, 0.0), doubles(2.0)[0])
    torch.testing.assert_close(found, doubles(6.0, 8.0))


def test_opposite_and_vanishing_gradients_stay_finite_and_do_not_grow() -> None:
    """g = (1, 2)/3 and u = -7 g: the shortest combination is 0, whose rounding error has no
    direction to follow.
    """
    g = doubles(1.0, 2.0) / 3
    for u in (-7 * g, -g, 0 * g):
        a = mmpareto.min_norm(g, u)
        assert 0 <= float(a) <= 1
        d = 2 * a * g + 2 * (1 - a) * u
        found = mmpareto.rescaled(d, g + u, doubles(1.5)[0])
        assert bool(torch.isfinite(found).all())
        if bool((u != 0).any()):
            assert float(found.norm()) < 1e-9
    nothing = mmpareto.rescaled(0 * g, 0 * g, doubles(1.5)[0])
    assert torch.equal(nothing, 0 * g)


def backward(net, loss):
    given = list(net.params.values())
    values = torch.autograd.grad(loss, given, retain_graph=True, materialize_grads=True)
    return dict(zip(net.params, values, strict=True))


def losses_apart(method, net, batch):
    """L and the L_m, each of a forward pass of its own."""
    joint = net.loss(net.fuse(net.encode(batch.inputs)), batch.target)
    features, own = net.encode(batch.inputs), {}
    for m, f in features.items():
        if method.config.heads == "own":
            mask = f.mask[..., None].double()
            vector = (f.value * mask).sum(1) / mask.sum(1)
            logits = F.linear(vector, net.params[f"aux.{m}.weight"], net.params[f"aux.{m}.bias"])
        else:
            logits = net.fuse({k: x if k == m else x.zero() for k, x in features.items()})
        own[m] = net.loss(logits, batch.target)
    return joint, own


def by_hand(g: np.ndarray, u: np.ndarray, parts: list[slice], gamma: float) -> np.ndarray:
    """d of one encoder, rescaled over each of `parts` of the flat gradient."""
    a = 0.5 if g @ u >= 0 else float(np.clip(((u - g) @ u) / np.square(u - g).sum(), 0, 1))
    d = 2 * a * g + 2 * (1 - a) * u
    for part in parts:
        plain, length = np.linalg.norm((g + u)[part]), np.linalg.norm(d[part])
        d[part] *= gamma * max(1.0, plain / length if length else 1.0)
    return d


@pytest.mark.parametrize("rescale", ["encoder", "tensor"])
@pytest.mark.parametrize(
    ("fusion", "modalities", "task", "heads", "conflict"),
    [
        ("concat", TWO, "classification", "own", False),
        ("concat", TWO, "classification", "own", True),
        ("concat", THREE, "regression", "own", False),
        ("concat", THREE, "classification", "own", True),
        ("concat", THREE, "classification", "fusion", False),
        ("film", TWO, "classification", "own", False),
        ("transformer", TWO, "regression", "fusion", False),
    ],
)
def test_gradients_of_encoders_fusion_and_heads(
    fusion: str, modalities: tuple[str, ...], task: str, heads: str, conflict: bool, rescale: str
) -> None:
    """Against separate backward passes and numpy. conflict: each modality's own head is the fused
    one turned round, so that the two losses pull the encoders apart and a leaves 1/2.
    """
    cfg, method, net, batch = make(
        fusion, modalities, task, heads=heads, rescale=rescale, gamma=1.7
    )
    for m in modalities if conflict else ():
        with torch.no_grad():
            net.params[f"aux.{m}.weight"].copy_(-net.params["fusion.head.weight"][:, net.block(m)])
    found = method.grads(net, batch, support.hp(cfg.method), {}, CLOCK)
    joint, own = losses_apart(method, net, batch)
    multi, unimodal = backward(net, joint), {m: backward(net, loss) for m, loss in own.items()}
    for m in modalities:
        names = list(net.group(f"encoders.{m}"))
        g, u = (np.concatenate([x[n].numpy().ravel() for n in names]) for x in (multi, unimodal[m]))
        assert (g @ u < 0) or not conflict
        ends = np.cumsum([multi[n].numel() for n in names])
        parts = [slice(e - multi[n].numel(), e) for n, e in zip(names, ends, strict=True)]
        expected = by_hand(g, u, parts if rescale == "tensor" else [slice(0, len(g))], 1.7)
        mine = np.concatenate([found.grads[n].numpy().ravel() for n in names])
        np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-10)
    for name in net.group("fusion", *(("aux",) if heads == "own" else ())):
        expected_sum = multi[name] + torch.stack([unimodal[m][name] for m in modalities]).sum(0)
        torch.testing.assert_close(
            found.grads[name], expected_sum, rtol=1e-9, atol=1e-12, msg=support.named(name)
        )
    assert float(found.loss) == pytest.approx(float(sum(own.values(), joint).detach()))


def test_own_heads_are_predicted_apart_from_the_fusion() -> None:
    _, method, net, batch = make()
    found = method.predict(net, batch.inputs, {})
    assert set(found) == {"joint", "text", "audio", "classifier/text", "classifier/audio"}
    _, method, net, batch = make(heads="fusion")
    assert set(method.predict(net, batch.inputs, {})) == {"joint", "text", "audio"}


def test_one_modality_is_refused() -> None:
    with pytest.raises(ValueError, match=r"mmpareto needs 2 or more modalities, got 1 \(text\)"):
        check(support.config("mmpareto"), support.dataset(("text",)).spec)
