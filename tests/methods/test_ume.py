"""UME: as many trainings as modalities, none of which sees another, and the mean of their logits."""

import pytest
import torch

from tests import support
from tune_mm.config import with_overrides
from tune_mm.core.build import check
from tune_mm.core.run import Run
from tune_mm.core.types import Clock, Dataset, Padded, Split

MODALITIES = ("text", "audio", "visual")
HEAD = "fusion.head.weight"
CLOCK = Clock(0, 0, 6, 2)


def make(task="classification", **settings):
    data = support.dataset(MODALITIES, task)
    cfg = support.config("ume", **settings)
    method, net = support.bound(cfg, data)
    return cfg, method, net, support.batch(data), method.init(net, support.start())


def own_logits(net, batch):
    """W_m (mean feature over real steps) + b per modality, written out."""
    out = {}
    for m, (value, mask, _) in net.encode(batch.inputs).items():
        vector = torch.stack([v[real].mean(0) for v, real in zip(value, mask, strict=True)])
        out[m] = vector @ net.params[HEAD][:, net.block(m)].T + net.params["fusion.head.bias"]
    return out


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_each_gradient_is_that_of_the_modalitys_own_training(task):
    cfg, method, net, batch, state = make(task)
    found = method.grads(net, batch, support.hp(cfg.method), state, CLOCK)
    for m, z in own_logits(net, batch).items():
        params = net.group(f"encoders.{m}", HEAD)
        expected = dict(
            zip(
                params,
                torch.autograd.grad(net.loss(z, batch.target), list(params.values())),
                strict=True,
            )
        )
        for name, gradient in expected.items():
            block = (slice(None), net.block(m)) if name == HEAD else ...
            torch.testing.assert_close(
                found.grads[name][block], gradient[block], msg=support.named(name)
            )


def shuffled(data, modality):
    """The same data with one modality's training samples in another order, so that they say nothing
    of the target.
    """
    split = data.splits["train"]
    x = split.inputs[modality]
    inputs = {**split.inputs, modality: Padded(x.value.flip(0), x.mask.flip(0))}
    return Dataset(
        data.name, data.spec, {**data.splits, "train": Split(inputs, split.target, split.ids)}
    )


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_modality_trains_as_if_the_others_were_not_there(optimizer):
    cfg = support.config(
        "ume", overrides={"optim.name": optimizer, "optim.clip": None, "optim.weight_decay": 0.01}
    )
    data = support.dataset()
    one, two = Run(cfg, data), Run(cfg, shuffled(data, "audio"))
    for run in (one, two):
        run.epoch()
        run.epoch()
    same = {n for n, p in one.net.params.items() if torch.equal(p, two.net.params[n])}
    assert same == set(one.net.params) - set(one.net.group("encoders.audio")) - {HEAD}
    for m in MODALITIES:
        block = one.net.block(m)
        equal = torch.equal(one.net.params[HEAD][:, block], two.net.params[HEAD][:, block])
        assert equal == (m != "audio")


@pytest.mark.parametrize(
    ("weights", "expected"), [({}, (1, 1, 1)), ({"audio": 3.0, "visual": 0.5}, (1, 3, 0.5))]
)
def test_prediction_is_the_weighted_mean_of_the_logits(weights, expected):
    _cfg, method, net, batch, state = make(weights=weights)
    z = own_logits(net, batch)
    found = method.predict(net, batch.inputs, state)
    mean = sum(w * z[m] for w, m in zip(expected, MODALITIES, strict=True)) / sum(expected)
    torch.testing.assert_close(found["joint"], mean)
    for m in MODALITIES:
        torch.testing.assert_close(found[m], z[m])


def test_weights_are_the_trials_own():
    cfg, method, net, batch, state = make(weights={"text": 4.0})
    hp = {**support.hp(cfg.method), "weights.text": torch.tensor(2.0, dtype=torch.float64)}
    found = method.grads(net, batch, hp, state, CLOCK).state["weights"]
    torch.testing.assert_close(found, torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64))


def test_weights_are_searched_by_modality_and_kept_in_the_checkpoint():
    cfg = with_overrides(support.config("ume"), {"method.weights.audio": 2.0})
    run = Run(cfg, support.dataset())
    run.epoch()
    torch.testing.assert_close(
        run.state_dict()["method"]["weights"], torch.tensor([0.25, 0.5, 0.25])
    )


@pytest.mark.parametrize(
    ("changes", "modalities", "message"),
    [
        (
            {"model.fusion": "concat"},
            MODALITIES,
            r"model\.fusion: ume needs sum, got 'concat'",
        ),
        ({}, ("text",), r"ume needs 2 or more modalities, got 1 \(text\)"),
        ({"method.weights": {"adio": 2.0}}, MODALITIES, r"weights: no modality 'adio'.*'audio'"),
    ],
)
def test_refusals_name_what_is_supported(changes, modalities, message):
    with pytest.raises(ValueError, match=message):
        check(with_overrides(support.config("ume"), changes), support.dataset(modalities).spec)
