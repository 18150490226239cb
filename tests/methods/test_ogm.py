"""OGM-GE against its formulae, computed by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests import support
from tests.methods import dense, images
from tune_mm.config import ConfigError, with_overrides
from tune_mm.core.build import check
from tune_mm.core.types import VOID, Clock, Task, Update
from tune_mm.methods import ogm

TWO, THREE = ("text", "audio"), ("text", "audio", "visual")
CLOCK = Clock(0, 0, 6, 10)


def make(
    fusion: str = "concat",
    modalities: tuple[str, ...] = TWO,
    task: str = "classification",
    **settings: Any,
):
    data = support.dataset(modalities, task)
    cfg = with_overrides(support.config("ogm", **settings), {"model.fusion": fusion})
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data)


def joint_gradients(net, batch):
    loss = net.loss(net.fuse(net.encode(batch.inputs)), batch.target)
    return dict(zip(net.params, torch.autograd.grad(loss, list(net.params.values())), strict=True))


def test_ratios_of_two_and_three() -> None:
    """3/2 and 2/3; of three the mean over the others: (6/3 + 6/2)/2, (3/6 + 3/2)/2, (2/6 + 2/3)/2."""
    two = ogm.ratios(torch.tensor([3.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(two, torch.tensor([1.5, 2 / 3], dtype=torch.float64))
    three = ogm.ratios(torch.tensor([6.0, 3.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(three, torch.tensor([2.5, 1.0, 0.5], dtype=torch.float64))


def test_ratios_stay_finite_where_a_modality_scores_nothing() -> None:
    assert bool(torch.isfinite(ogm.ratios(torch.tensor([16.0, 0.0]))).all())


def test_score_of_pixels_is_the_mean_probability_of_their_classes() -> None:
    """Two classes, logits (ln k, 0): softmax k / (k + 1) and 1 / (k + 1). First image: known pixels
    of class 0 at k = 3 and of class 1 at k = 1, (3/4 + 1/2) / 2; second: class 1 at k = 9, 1/10;
    third: nothing is known, 0. Neither class weights nor Dice count.
    """
    task = Task("segmentation", 2, weights=(1.0, 5.0), dice=1.0)
    first = torch.tensor(
        [[3.0, 1.0, 7.0], [9.0, 7.0, 7.0], [2.0, 2.0, 2.0]], dtype=torch.float64
    ).log()
    logits = torch.stack([first, torch.zeros_like(first)], 1)[:, :, None]
    target = torch.tensor([[0, 1, VOID], [1, VOID, VOID], [VOID, VOID, VOID]])[:, None]
    expected = torch.tensor([0.625, 0.1, 0.0], dtype=torch.float64)
    torch.testing.assert_close(ogm.score(task, logits, target), expected)
    batched = torch.func.vmap(lambda z: ogm.score(task, z, target))(torch.stack([logits, logits]))
    torch.testing.assert_close(batched, torch.stack([expected, expected]))


def test_pixels_slow_the_modality_whose_classes_are_likelier() -> None:
    """The coefficient from probabilities at every known pixel, added up one by one; a batch of
    nothing known: 1.
    """
    data, cfg = dense.dataset(2), dense.config("ogm", noise=False, alpha=0.6)
    method, net = support.bound(cfg, data)
    net.model.eval()
    batch = dense.batch(data, 3)
    found = method.grads(net, batch, support.hp(cfg.method), {}, CLOCK)
    totals = {}
    for m, z in net.unimodal(net.encode(batch.inputs)).items():
        chances = (z.detach().exp() / z.detach().exp().sum(1, keepdim=True)).tolist()
        totals[m] = 0.0
        for image, mask in zip(chances, batch.target.tolist(), strict=True):
            own = [
                image[y][i][j] for i, row in enumerate(mask) for j, y in enumerate(row) if y != VOID
            ]
            totals[m] += sum(own) / len(own)
    (a, b), (first, second) = net.modalities, totals.values()
    for m, rho in ((a, first / second), (b, second / first)):
        k = 1 - math.tanh(0.6 * rho) if rho > 1 else 1.0
        assert float(found.logs[f"balance/{m}"]) == pytest.approx(k, rel=1e-9)
    void = replace(batch, target=torch.full_like(batch.target, VOID))
    logs = method.grads(net, void, support.hp(cfg.method), {}, CLOCK).logs
    assert [float(logs[f"balance/{m}"]) for m in (a, b)] == [1.0, 1.0]


def test_only_the_modality_ahead_is_slowed() -> None:
    """k = 1 - tanh(0.8 x 1.5) with tanh x = (e^2x - 1)/(e^2x + 1): 1 - 10.0232/12.0232 = 0.16635."""
    found = ogm.coefficients(
        torch.tensor([1.5, 2 / 3, 1.0], dtype=torch.float64), torch.tensor(0.8)
    )
    tanh = (math.exp(2.4) - 1) / (math.exp(2.4) + 1)
    torch.testing.assert_close(found, torch.tensor([1 - tanh, 1.0, 1.0], dtype=torch.float64))
    assert float(found[0]) == pytest.approx(0.16635, abs=1e-5)


@pytest.mark.parametrize("task", ["classification", "regression"])
@pytest.mark.parametrize("modalities", [TWO, THREE])
def test_encoders_get_k_times_the_joint_gradient(modalities: tuple[str, ...], task: str) -> None:
    """Scores from the concat head by hand: W_m h_m + b, softmax at the target; regression: exp(-|z
    - y|).
    """
    cfg, method, net, batch = make(modalities=modalities, task=task, noise=False, alpha=0.6)
    found = method.grads(net, batch, support.hp(cfg.method), {}, CLOCK)
    features, scores = net.encode(batch.inputs), {}
    weight, bias = net.params["fusion.head.weight"], net.params["fusion.head.bias"]
    for m, f in features.items():
        mask = f.mask[..., None].double()
        z = (f.value * mask).sum(1) / mask.sum(1) @ weight[:, net.block(m)].T + bias
        z = z.detach()
        if task == "classification":
            scores[m] = sum(
                float(z[i].exp()[y] / z[i].exp().sum()) for i, y in enumerate(batch.target.tolist())
            )
        else:
            scores[m] = sum(
                math.exp(-abs(float(z[i, 0]) - y)) for i, y in enumerate(batch.target.tolist())
            )
    expected = joint_gradients(net, batch)
    slowed = 0
    for m in modalities:
        rho = sum(scores[m] / scores[k] for k in modalities if k != m) / (len(modalities) - 1)
        k = 1 - math.tanh(0.6 * rho) if rho > 1 else 1.0
        slowed += k < 1
        assert float(found.logs[f"balance/{m}"]) == pytest.approx(k, rel=1e-9)
        for name in net.group(f"encoders.{m}"):
            torch.testing.assert_close(found.grads[name], k * expected[name], rtol=1e-9, atol=1e-12)
    assert 0 < slowed < len(modalities)
    for name in net.group("fusion"):
        torch.testing.assert_close(found.grads[name], expected[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("start", "end", "inside"),
    [(0.0, 0.5, range(5)), (0.2, 0.7, range(2, 7)), (0.0, 1.0, range(10))],
)
def test_modulation_and_noise_keep_to_the_window(start: float, end: float, inside: range) -> None:
    cfg, method, net, batch = make(start=start, end=end)
    expected = joint_gradients(net, batch)
    for epoch in range(10):
        found = method.grads(
            net, batch, support.hp(cfg.method), {}, CLOCK._replace(epoch=epoch)
        ).grads
        same = all(torch.allclose(found[n], g, rtol=1e-9, atol=1e-12) for n, g in expected.items())
        assert same is (epoch not in inside), epoch


def test_noise_is_as_large_as_the_gradients_spread_for_every_encoder_and_nothing_else() -> None:
    """400 draws of 64 elements around k g: mean 0 and the standard deviation of g, with k = 1 too."""
    cfg, method, net, batch = make(noise=True)
    generator = torch.Generator().manual_seed(1)
    names = ("encoders.text.w", "encoders.audio.w", "fusion.w")
    given = {
        n: torch.randn(64, generator=generator, dtype=torch.float64) * (i + 1)
        for i, n in enumerate(names)
    }
    k = {
        "text": torch.tensor(0.25, dtype=torch.float64),
        "audio": torch.tensor(1.0, dtype=torch.float64),
    }
    update = Update(given, torch.tensor(0.0), {f"balance/{m}": v for m, v in k.items()}, {})
    torch.manual_seed(2)
    draws = [
        method.edit(net, batch, support.hp(cfg.method), {}, CLOCK, update).grads for _ in range(400)
    ]
    for m, factor in k.items():
        g = given[f"encoders.{m}.w"]
        noise = torch.stack([d[f"encoders.{m}.w"] for d in draws]) - factor * g
        spread = math.sqrt(float((g - g.mean()).square().sum()) / 63)
        assert float(noise.std()) == pytest.approx(spread, rel=0.03)
        assert abs(float(noise.mean())) < 0.03 * spread
    assert torch.equal(draws[0]["fusion.w"], given["fusion.w"])


def test_a_gradient_of_one_element_has_no_spread() -> None:
    assert float(ogm.spread(torch.tensor([3.0]))) == 0.0


def test_conv_only_touches_weights_of_convolutions() -> None:
    data = images.dataset()
    method, net = support.bound(images.config("ogm", noise=False, conv_only=True), data)
    names = list(net.group("encoders.a"))
    update = Update({n: torch.ones_like(net.params[n]) for n in names}, torch.tensor(0.0), {}, {})
    update.logs.update({f"balance/{m}": torch.tensor(0.5) for m in "ab"})
    found = method.edit(
        net, support.batch(data), support.hp(method.section), {}, CLOCK, update
    ).grads
    scaled = {n for n, g in found.items() if bool((g == 0.5).all())}
    assert scaled == {f"encoders.a.stages.{i}.0.weight" for i in range(2)}
    assert all(bool((found[n] == 1).all()) for n in set(names) - scaled)


def test_conv_only_without_convolutions_is_refused() -> None:
    with pytest.raises(
        ValueError,
        match=r"method\.conv_only: must be false, got true: .*'text' has no convolutions",
    ):
        check(support.config("ogm", conv_only=True), support.dataset().spec)


def test_one_modality_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ogm needs 2 or more modalities, got 1 \(text\)"):
        check(support.config("ogm"), support.dataset(("text",)).spec)


def test_an_empty_window_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"end must be greater than start \(0\.6\), got 0\.5"):
        support.config("ogm", start=0.6)


def test_scores_leave_batchnorm_as_joint_training_does() -> None:
    """With MMTM a modality alone passes later stages, whose running statistics must not see zeroed
    modalities.
    """
    data = images.dataset()
    buffers = []
    for name in ("joint", "ogm"):
        method, net = support.bound(images.config(name, "mmtm"), data)
        net.model.train()
        method.grads(net, support.batch(data), support.hp(method.section), {}, CLOCK)
        assert net.model.training
        buffers.append({n: b.clone() for n, b in net.model.named_buffers()})
    assert buffers[0]
    for name, value in buffers[0].items():
        assert torch.equal(value, buffers[1][name]), name


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0.0, 0.5, ((51, 55),)),
        (0.1, 1.0, ((11, 15),)),
        (0.1, 0.98, ((11, 15), (99, 100))),
        (0.0, 1.0, ()),
    ],
)
def test_metrics_may_dip_after_an_edge_of_the_window(
    start: float, end: float, expected: Any
) -> None:
    """5 of 100 epochs from the first one on the other side, counted from 1."""
    method = ogm.OGM(ogm.OGMConfig(start=start, end=end))
    assert method.dips(100) == expected
