"""MRD: which modalities stay, how often, and what the loss then sees."""

import pytest
import torch

from tests import support
from tune_mm.config import ConfigError, with_overrides
from tune_mm.core import build
from tune_mm.core.net import Net
from tune_mm.core.types import Clock, Padded
from tune_mm.methods import mrd

CLOCK = Clock(0, 0, 6, 2)
SEED = 3


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def make(
    fusion="concat", modalities=("text", "audio", "visual"), task="classification", **settings
):
    data = support.dataset(modalities, task)
    cfg = support.config("mrd", **settings)
    cfg = cfg if fusion == "transformer" else with_overrides(cfg, {"model.fusion": fusion})
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data)


def drawn(rows, p):
    """Which modalities stay [rows][M] after the test's seed, by the rule written out sample by
    sample.
    """
    torch.manual_seed(SEED)
    out = []
    for row in torch.rand(rows, len(p), dtype=torch.float64).tolist():
        stays = [u >= q for u, q in zip(row, p, strict=True)]
        if not any(stays):
            order = [u / q for u, q in zip(row, p, strict=True)]
            stays[order.index(max(order))] = True
        out.append(stays)
    return out


def loss(cfg, method, net, batch):
    torch.manual_seed(SEED)
    return method.loss(net, batch, support.hp(cfg.method), {}, CLOCK)


def test_kept_by_hand():
    """Both dropped: 0.4 / 0.5 > 0.1 / 0.25, so the first stays; 0.1 / 0.5 < 0.2 / 0.25, so the
    second does.
    """
    draws = torch.stack(
        [tensor(0.6, 0.1), tensor(0.1, 0.9), tensor(0.9, 0.9), tensor(0.4, 0.1), tensor(0.1, 0.2)]
    )
    assert mrd.kept(draws, tensor(0.5, 0.25)).tolist() == [
        [True, False],
        [False, True],
        [True, True],
        [True, False],
        [False, True],
    ]
    assert mrd.kept(tensor(0.0, 0.0)[None], tensor(0.0, 0.0)).tolist() == [[True, True]]


@pytest.mark.parametrize("p", [(0.5, 0.25), (0.9, 0.9), (0.6, 0.3, 0.8), (0.5, 0.0, 0.5)])
def test_shares_are_those_of_the_docstring_and_never_all(p):
    """P(m dropped) = p_m - (p_1 ... p_M) / M, over 200,000 draws (standard error below 0.0012)."""
    draws = torch.rand(
        200_000, len(p), dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    stays = mrd.kept(draws, tensor(*p))
    assert bool(stays.any(-1).all())
    product = 1.0
    for q in p:
        product *= q
    expected = [q - product / len(p) for q in p]
    assert (~stays).double().mean(0).tolist() == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("fusion", ["concat", "transformer"])
@pytest.mark.parametrize("per", ["sample", "batch"])
@pytest.mark.parametrize("level", ["feature", "input"])
def test_loss_is_joint_training_on_what_stays(fusion, per, level):
    cfg, method, net, batch = make(fusion, p=0.5, per=per, level=level)
    rows = 16 if per == "sample" else 1
    stays = drawn(rows, [0.5] * 3) * (16 // rows)
    assert len({tuple(row) for row in stays}) > 1 or per == "batch"

    def zeroed(values):
        out = {}
        for i, m in enumerate(net.modalities):
            rows = [
                x if stays[b][i] else torch.zeros_like(x) for b, x in enumerate(values[m].value)
            ]
            out[m] = Padded(torch.stack(rows), values[m].mask)
        return out

    if level == "feature":
        logits = net.fuse(zeroed(net.encode(batch.inputs)))
    else:
        logits = net.fuse(net.encode(zeroed(batch.inputs)))
    found, logs = loss(cfg, method, net, batch)
    torch.testing.assert_close(found, net.loss(logits, batch.target), rtol=1e-12, atol=1e-12)
    for i, m in enumerate(net.modalities):
        assert float(logs[f"train/dropped/{m}"]) == pytest.approx(
            sum(not row[i] for row in stays) / 16
        )


@pytest.mark.parametrize("level", ["feature", "input"])
def test_masked_tokens_are_not_attended_to(level):
    """Each sample alone, with the dropped modalities' steps marked as padding, gives the same mean
    loss.
    """
    cfg, method, net, batch = make("transformer", p=0.6, tokens="mask", level=level)
    stays = drawn(16, [0.6] * 3)
    single = []
    for b, row in enumerate(stays):
        inputs = {m: x.take(torch.tensor([b])) for m, x in batch.inputs.items()}
        if level == "input":
            inputs = {
                m: inputs[m] if s else inputs[m].zero()
                for m, s in zip(net.modalities, row, strict=True)
            }
        features = net.encode(inputs)
        if level == "feature":
            features = {
                m: features[m] if s else features[m].zero()
                for m, s in zip(net.modalities, row, strict=True)
            }
        masked = {
            m: features[m]
            if s
            else Padded(features[m].value, torch.zeros(1, features[m].value.shape[1]).bool())
            for m, s in zip(net.modalities, row, strict=True)
        }
        single.append(net.loss(net.fuse(masked), batch.target[b : b + 1]))
    found, _ = loss(cfg, method, net, batch)
    torch.testing.assert_close(found, torch.stack(single).mean(), rtol=1e-9, atol=1e-12)
    zero_cfg, zero_method, _, _ = make("transformer", p=0.6, tokens="zero", level=level)
    assert not torch.isclose(loss(zero_cfg, zero_method, net, batch)[0], found)


def test_a_vector_has_no_steps_to_mask():
    x = mrd.drop(Padded(torch.ones(2, 3)), torch.tensor([True, False]), True)
    assert x.mask is None
    assert x.value.tolist() == [[1, 1, 1], [0, 0, 0]]


def test_rescaled_features_keep_the_scale_of_the_sum():
    """Two of three stay: times 1.5; one: times 3."""
    cfg, method, net, batch = make("sum", p=0.5, rescale=True)
    features, stays = net.encode(batch.inputs), drawn(16, [0.5] * 3)
    factors = torch.tensor([[s * 3 / sum(row) for s in row] for row in stays], dtype=torch.float64)
    assert {1.5, 3.0} <= set(factors.flatten().tolist())
    scaled = {
        m: Padded(features[m].value * factors[:, i, None, None], features[m].mask)
        for i, m in enumerate(net.modalities)
    }
    found, _ = loss(cfg, method, net, batch)
    torch.testing.assert_close(
        found, net.loss(net.fuse(scaled), batch.target), rtol=1e-12, atol=1e-12
    )


def test_a_probability_of_its_own():
    cfg, method, net, batch = make(p=0.0, p_of={"audio": 0.9})
    _, logs = loss(cfg, method, net, batch)
    shares = [float(logs[f"train/dropped/{m}"]) for m in net.modalities]
    stays = drawn(16, [1e-300, 0.9, 1e-300])
    assert shares == pytest.approx([0.0, sum(not row[1] for row in stays) / 16, 0.0])
    assert shares[1] > 0.5


def test_evaluation_drops_nothing():
    _cfg, method, net, batch = make(p=0.9)
    joint, _ = support.bound(support.config("joint"), support.dataset())
    expected = joint.predict(net, batch.inputs, {})
    for key, value in method.predict(net, batch.inputs, {}).items():
        assert torch.equal(value, expected[key])


@pytest.mark.parametrize("per", ["sample", "batch"])
def test_lanes_draw_as_a_single_trial_does(per):
    """vmap with one random stream for all lanes, against three calls from the same seed, each with
    its own p.
    """
    cfg, method, net, batch = make(p=0.4, per=per)
    ps = [0.1, 0.4, 0.8]
    hps = [{**support.hp(cfg.method), "p": tensor(p)[0]} for p in ps]

    def one(hp):
        bound = Net(net.model, net.task, {n: p.detach() for n, p in net.params.items()}, {})
        return method.grads(bound, batch, hp, {}, CLOCK).grads

    alone = []
    for hp in hps:
        torch.manual_seed(SEED)
        alone.append(one(hp))
    torch.manual_seed(SEED)
    together = torch.func.vmap(one, randomness="same")(
        {k: torch.stack([h[k] for h in hps]) for k in hps[0]}
    )
    for lane, expected in enumerate(alone):
        for name, value in expected.items():
            torch.testing.assert_close(together[name][lane], value, rtol=1e-9, atol=1e-11)


def test_only_draws_by_sample_may_be_computed_in_parts():
    assert [make(per=per)[1].separable for per in ("sample", "batch")] == [True, False]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"p": 1.0}, r"method\.p: must be < 1, got 1"),
        ({"p_of": {"audio": -0.1}}, r"method\.p_of\.audio: must be >= 0, got -0\.1"),
        ({"rescale": True, "level": "input"}, "rescale must be false with level: input"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        support.config("mrd", **settings)


def test_what_the_data_do_not_have_is_refused():
    with pytest.raises(ValueError, match=r"^method\.p_of: no modality 'vidual'; nearest 'visual'"):
        build.check(support.config("mrd", p_of={"vidual": 0.2}), support.dataset().spec)
    with pytest.raises(
        ValueError, match=r"^method\.name: mrd needs 2 or more modalities, got 1 \(text\)$"
    ):
        build.check(support.config("mrd"), support.dataset(("text",)).spec)
