"""What every method must satisfy. A new file in tune_mm/methods is covered by existing.

Collected is what the product trains; what it refuses is in test_refusals.py.
"""

import math
from itertools import product

import pytest
import torch

from tests import support
from tests.methods import combinations
from tests.methods.combinations import sequences
from tune_mm import plugins
from tune_mm.config import with_overrides
from tune_mm.core import grads
from tune_mm.core.net import Net
from tune_mm.core.run import Run
from tune_mm.core.types import Clock

METHODS = combinations.METHODS
MODALITIES = combinations.MODALITIES
TRAINED = combinations.methods_on_sequences()
FUSIONS = ("transformer", "concat", "sum")


def fusions(name):
    """Those that a method is tried with: all that it supports, where it names them."""
    return plugins.load("methods", name).support.fusions or FUSIONS


PAIRS = [sequences(name, fusion) for name in METHODS for fusion in fusions(name)]
CASES = combinations.params(PAIRS, "method", "fusion")
NEUTRAL = [case for case in PAIRS if plugins.load("methods", case.method).neutral is not None]


def on_all_data():
    """Every method and fusion on two and three sequences of each task."""
    cases = []
    for pair in PAIRS:
        for modalities, task in product(MODALITIES, combinations.TASKS):
            cases.append(sequences(pair.method, pair.fusion, modalities, task))
    return combinations.params(cases, "method", "fusion", "modalities", "task")


def make(name, modalities=MODALITIES[1], task="classification", fusion=None, seed=0, **settings):
    """fusion: None: that of `support.config`, which the method supports."""
    data = support.dataset(modalities, task)
    cfg = support.config(name, fusion=fusion, **settings)
    method, net = support.bound(cfg, data, seed)
    return cfg, method, net, support.batch(data)


def first_state(cfg, method, net, modalities=MODALITIES[1], task="classification"):
    return method.init(net, support.start(cfg, support.dataset(modalities, task)))


def clocks(method, modalities):
    """The first step of every epoch in which something else may be trained, and each of its
    substeps.
    """
    epochs = support.turns(method, modalities)
    return [
        Clock(e, 0, 6, max(epochs, 2), sub)
        for e in range(epochs)
        for sub in range(method.substeps(modalities))
    ]


def updates(cfg, method, net, batch, state, hp=None):
    """What the method makes of the batch at each of `clocks`, one after the other."""
    hp = support.hp(cfg.method) if hp is None else hp
    out = []
    for clock in clocks(method, net.modalities):
        out.append(method.grads(net, batch, hp, state, clock))
        state = out[-1].state
    return out


def test_each_method_states_its_neutral_settings():
    for name in METHODS:
        method = plugins.load("methods", name)
        assert (method.neutral is None) == bool(method.why_not_neutral), name


@pytest.mark.parametrize("name", METHODS)
def test_module_docstring_has_the_fixed_headings(name):
    text = __import__(f"tune_mm.methods.{name}", fromlist=["plugin"]).__doc__ or ""
    heads = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert heads[1:] == ["Paper", "Idea", "Equations", "Deviations", "Shapes"]


@pytest.mark.parametrize(("name", "fusion", "modalities", "task"), on_all_data())
def test_every_trained_parameter_gets_a_finite_gradient(name, fusion, modalities, task):
    cfg, method, net, batch = make(name, modalities, task, fusion)
    all_found = updates(cfg, method, net, batch, first_state(cfg, method, net, modalities, task))
    assert {n for found in all_found for n in found.grads} == set(net.group(*method.trained(net)))
    for found in all_found:
        assert math.isfinite(float(found.loss))
        assert all(bool(torch.isfinite(g).all()) for g in found.grads.values())
        assert all(v.ndim == 0 and math.isfinite(float(v)) for v in found.logs.values())


@pytest.mark.parametrize("name", TRAINED)
def test_nonzero_gradient_for_every_trained_parameter_within_an_epoch(name):
    """A method of stages has as many epochs as it takes for each part to have its turn."""
    data = support.dataset()
    cfg = support.config(name)
    epochs = support.turns(Run(cfg, data).method, data.spec.modalities)
    run = Run(with_overrides(cfg, {"train.epochs": max(epochs, 2)}), data)
    before = {n: p.detach().clone() for n, p in run.net.params.items()}
    for _ in range(epochs):
        run.epoch()
    trained = set(run.net.group(*run.method.trained(run.net)))
    moved = {n for n, p in run.net.params.items() if not torch.equal(p, before[n])}
    assert moved == trained


@pytest.mark.parametrize("name", TRAINED)
def test_prefixes_of_optimizer_settings_own_parameters(name):
    cfg, method, net, _ = make(name)
    settings = method.optim(support.hp(cfg.method), support.hp(cfg.optim))
    owners = grads.groups(net.params)
    assert set(settings) <= set(owners)
    with pytest.raises(KeyError):
        net.group("encoders.nothing")
    with pytest.raises(KeyError):
        net.group("encoders.tex")


@pytest.mark.parametrize(
    ("name", "task"),
    combinations.params(
        [sequences(name, task=task) for name, task in product(METHODS, combinations.TASKS)],
        "method",
        "task",
    ),
)
def test_loss_falls(name, task):
    cfg = support.config(name, overrides={"train.epochs": 6, "optim.lr": 3e-3})
    run = Run(cfg, support.dataset(task=task))
    results = [run.epoch() for _ in range(6)]
    assert results[-1].metrics["train/loss"] < results[0].metrics["train/loss"]
    assert results[-1].metrics["val/loss"] < results[0].metrics["val/loss"]


@pytest.mark.parametrize(("name", "fusion"), CASES)
def test_alone_equals_vmap(name, fusion):
    """Three trials with their own weights and hyperparameters in one vmapped call equal three
    calls, in float64.
    """
    runs = [
        make(name, fusion=fusion, seed=s, **plugins.load("methods", name).deterministic)
        for s in range(3)
    ]
    cfg, method, net, batch = runs[0]
    states = [first_state(cfg, method, r[2]) for r in runs]
    hps = [{k: v * (1 + 0.2 * s) for k, v in support.hp(cfg.method).items()} for s in range(3)]
    stacked = {n: torch.stack([r[2].params[n].detach() for r in runs]) for n in net.params}
    lanes = {k: torch.stack([h[k] for h in hps]) for k in hps[0]}
    for clock in clocks(method, net.modalities):
        alone = [
            method.grads(r[2], batch, h, s, clock)
            for r, h, s in zip(runs, hps, states, strict=True)
        ]

        def one(params, hp, state, clock=clock):
            found = method.grads(Net(net.model, net.task, params, {}), batch, hp, state, clock)
            return found.grads, found.logs, found.state, found.rates

        given = {k: torch.stack([s[k] for s in states]) for k in states[0]}
        together = torch.func.vmap(one, randomness="different")(stacked, lanes, given)
        for s, expected in enumerate(alone):
            for theirs, mine in zip(
                (expected.grads, expected.logs, expected.state, expected.rates),
                together,
                strict=True,
            ):
                assert set(theirs) == set(mine)
                for key, value in theirs.items():
                    torch.testing.assert_close(
                        mine[key][s], value, rtol=1e-9, atol=1e-10, msg=support.named(key)
                    )
        states = [found.state for found in alone]


@pytest.mark.parametrize(("name", "fusion"), combinations.params(NEUTRAL, "method", "fusion"))
def test_neutral_settings_reduce_to_joint(name, fusion):
    cfg, method, net, batch = make(name, fusion=fusion, **plugins.load("methods", name).neutral)
    joint_cfg, joint, _, _ = make("joint", fusion=fusion)
    plain = Net(net.model, net.task)
    (expected,) = updates(joint_cfg, joint, plain, batch, {})
    for found in updates(cfg, method, net, batch, first_state(cfg, method, net)):
        for key, value in expected.grads.items():
            torch.testing.assert_close(found.grads[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TRAINED)
def test_state_survives_a_round_trip(name, tmp_path):
    """A run saved to disk after one epoch and resumed in a new object ends bit-equal to an
    uninterrupted one.
    """
    cfg = support.config(name, overrides={"train.epochs": 3, "model.encoder.dropout_residual": 0.2})
    data = support.dataset()
    whole, first = Run(cfg, data), Run(cfg, data)
    expected = [whole.epoch() for _ in range(3)]
    first.epoch()
    torch.save(first.state_dict(), tmp_path / "run.pt")
    second = Run(cfg, data)
    second.load_state_dict(torch.load(tmp_path / "run.pt", weights_only=True))
    found = [second.epoch() for _ in range(2)]
    for theirs, mine in zip(expected[1:], found, strict=True):
        times = {"time/epoch"}
        assert {k: v for k, v in theirs.metrics.items() if k not in times} == {
            k: v for k, v in mine.metrics.items() if k not in times
        }
    assert all(torch.equal(p, second.net.params[n]) for n, p in whole.net.params.items())
    assert all(torch.equal(t, second.state[n]) for n, t in whole.state.items())
    assert whole.test() == second.test()
    assert (whole.best_epoch, whole.best_value) == (second.best_epoch, second.best_value)


@pytest.mark.parametrize("name", TRAINED)
def test_prediction_is_independent_of_batch_size(name):
    cfg, method, net, batch = make(name)
    state = first_state(cfg, method, net)
    net.model.eval()
    whole = method.predict(net, batch.inputs, state)
    parts = [
        method.predict(net, {m: x.take(torch.tensor([i])) for m, x in batch.inputs.items()}, state)
        for i in range(16)
    ]
    assert "joint" in whole
    own = [
        key.partition("/") for key in whole if "/" in key
    ]  # of a method's own classifiers: kind/modality
    assert set(whole) - {"".join(parts) for parts in own} == {"joint", *net.modalities}
    assert all(kind and modality in net.modalities for kind, _, modality in own)
    for key, value in whole.items():
        torch.testing.assert_close(torch.cat([p[key] for p in parts]), value, rtol=1e-9, atol=1e-10)
