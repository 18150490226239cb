"""DGL against its own two-pass algorithm and its four cells."""

from itertools import product

import pytest
import torch

from tests import support
from tests.methods import dense
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.types import Clock

CLOCK = Clock(0, 0, 6, 2)
FUSIONS = ("transformer", "concat", "sum")


def make(
    fusion="concat", modalities=("text", "audio", "visual"), task="classification", **settings
):
    data = support.dataset(modalities, task)
    cfg = with_overrides(
        support.config("dgl", **settings),
        {} if fusion == "transformer" else {"model.fusion": fusion},
    )
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data)


def autograd(loss, params):
    found = torch.autograd.grad(
        loss, list(params.values()), retain_graph=True, materialize_grads=True
    )
    return dict(zip(params, found, strict=True))


def losses_by_hand(net, batch, path):
    """L and L_m written out: features zeroed one by one, nothing stopped."""
    features = net.encode(batch.inputs)
    joint = net.loss(net.fuse(features), batch.target)
    if path == "mask":
        alone = {m: net.loss(z, batch.target) for m, z in net.unimodal(features, "mask").items()}
    else:
        alone = {
            m: net.loss(
                net.fuse({k: f if k == m else f.zero() for k, f in features.items()}), batch.target
            )
            for m in features
        }
    return joint, alone


@pytest.mark.parametrize(
    ("fusion", "path", "task"),
    [*product(FUSIONS, ["zero", "mask"], ["classification", "regression"])],
)
def test_equals_the_two_pass_algorithm(fusion, path, task):
    """Back-propagate alpha * sum L_m, clear the fusion's gradient, back-propagate L on detached
    features.
    """
    cfg, method, net, batch = make(fusion, task=task, unimodal_path=path, alpha=3.0)
    found = method.grads(net, batch, support.hp(cfg.method), {}, CLOCK)
    joint, alone = losses_by_hand(net, batch, path)
    by_unimodal = autograd(sum(alone.values()), net.params)
    by_joint = autograd(joint, net.params)
    for name, gradient in found.grads.items():
        expected = 3.0 * by_unimodal[name] if name.startswith("encoders.") else by_joint[name]
        torch.testing.assert_close(
            gradient, expected, rtol=1e-9, atol=1e-12, msg=support.named(name)
        )


@pytest.mark.parametrize(("mt", "ut"), [*product([False, True], repeat=2)])
def test_cells_of_table_3(mt, ut):
    """MT: encoders get no multimodal gradient. UT: the fusion gets no unimodal gradient."""
    cfg, method, net, batch = make(alpha=2.0, truncate_multimodal=mt, truncate_unimodal=ut)
    found = method.grads(net, batch, support.hp(cfg.method), {}, CLOCK)
    joint, alone = losses_by_hand(net, batch, "zero")
    by_unimodal, by_joint = (
        autograd(2.0 * sum(alone.values()), net.params),
        autograd(joint, net.params),
    )
    for name, gradient in found.grads.items():
        encoder = name.startswith("encoders.")
        keep_joint, keep_unimodal = not (encoder and mt), encoder or not ut
        expected = keep_joint * by_joint[name] + keep_unimodal * by_unimodal[name]
        torch.testing.assert_close(gradient, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_encoder_learns_from_its_own_loss_only(fusion):
    """With the target's information removed from the others' inputs nothing changes for an encoder."""
    cfg, method, net, batch = make(fusion)
    other = {
        m: x if m == "text" else type(x)(torch.randn_like(x.value), x.mask)
        for m, x in batch.inputs.items()
    }
    a = method.grads(net, batch, support.hp(cfg.method), {}, CLOCK).grads
    b = method.grads(
        net, type(batch)(other, batch.target, batch.index), support.hp(cfg.method), {}, CLOCK
    ).grads
    names = [n for n in a if n.startswith("encoders.text.")]
    assert names
    for name in names:
        torch.testing.assert_close(a[name], b[name], rtol=1e-9, atol=1e-12)


def test_alpha_scales_encoders_only():
    cfg, method, net, batch = make()
    hp = support.hp(cfg.method)
    one = method.grads(
        net, batch, {**hp, "alpha": torch.tensor(1.0, dtype=torch.float64)}, {}, CLOCK
    ).grads
    four = method.grads(
        net, batch, {**hp, "alpha": torch.tensor(4.0, dtype=torch.float64)}, {}, CLOCK
    ).grads
    for name, g in one.items():
        torch.testing.assert_close(
            four[name], g * (4 if name.startswith("encoders.") else 1), rtol=1e-9, atol=1e-12
        )


@pytest.mark.parametrize("path", ["zero", "mask"])
def test_a_path_that_leaves_no_gradient_is_refused_and_self_is_named(path):
    """x (outer) 0 = 0: with the other modalities zeroed no encoder would learn."""
    cfg = with_overrides(support.config("dgl", unimodal_path=path), {"model.fusion": "bilinear"})
    with pytest.raises(
        ValueError, match=rf"method\.unimodal_path: must be one of auto, self .*'{path}' .*use self"
    ):
        check(cfg, support.dataset().spec)
    for works in ("self", "auto"):
        check(with_overrides(cfg, {"method.unimodal_path": works}), support.dataset().spec)


def test_one_modality_moves_running_statistics_once():
    """One modality of images: nothing else is absent, and L_m's pass is still not the one that
    predicts.
    """
    data, cfg = dense.dataset(1), dense.config("dgl")
    (method, net), (_, plain) = support.bound(cfg, data), support.bound(cfg, data)
    batch = dense.batch(data)
    for one in (net, plain):
        one.model.train()
    method.grads(net, batch, support.hp(cfg.method), {}, CLOCK)
    plain.fuse(plain.encode(batch.inputs))
    counts = {n: int(b) for n, b in net.buffers.items() if n.endswith("num_batches_tracked")}
    assert counts and set(counts.values()) == {1}
    for name, value in plain.buffers.items():
        torch.testing.assert_close(
            net.buffers[name], value, rtol=1e-9, atol=1e-12, msg=support.named(name)
        )
