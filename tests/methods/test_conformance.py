"""What every method must satisfy. A new file in tune_mm/methods is covered by existing (see tests/support.py)."""

import math
from itertools import product

import pytest
import torch

from tests import support
from tune_mm import config as C
from tune_mm import plugins
from tune_mm.core import grads
from tune_mm.core.net import Net
from tune_mm.core.run import Run
from tune_mm.core.types import Clock

METHODS = plugins.available("methods")
MODALITIES = (("text", "audio"), ("text", "audio", "visual"))
FUSIONS = ("transformer", "concat", "sum")
CLOCK = Clock(0, 0, 6, 2)


def make(name, modalities=MODALITIES[1], task="classification", fusion=None, seed=0, **settings):
    """fusion: None: that of `support.config`, which the method supports."""
    data = support.dataset(modalities, task)
    cfg = support.config(name, **settings)
    if fusion not in {None, cfg.model.fusion.name}:
        small = {"heads": 2, "layers": 1} if fusion == "transformer" else {}
        cfg = C.replace(cfg, {"model.fusion": {"name": fusion, **small}})
    support.skip_refused(cfg, data)
    method, net = support.bound(cfg, data, seed)
    return cfg, method, net, support.batch(data)


def update(cfg, method, net, batch, hp=None):
    hp = support.hp(cfg.method) if hp is None else hp
    return method.grads(net, batch, hp, method.init(net, support.start()), CLOCK)


def test_each_method_states_its_neutral_settings():
    assert set(METHODS) == set(support.NEUTRAL) | set(support.WITHOUT_NEUTRAL)


@pytest.mark.parametrize("name", METHODS)
def test_module_docstring_has_the_fixed_headings(name):
    text = __import__(f"tune_mm.methods.{name}", fromlist=["plugin"]).__doc__ or ""
    heads = [line for line in text.splitlines() if line and not line.startswith(" ")]
    assert heads[1:] == ["Paper", "Idea", "Equations", "Deviations", "Shapes"]


@pytest.mark.parametrize(("name", "fusion"), [*product(METHODS, FUSIONS)])
@pytest.mark.parametrize("modalities", MODALITIES, ids=["two", "three"])
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_every_trained_parameter_gets_a_finite_gradient(name, fusion, modalities, task):
    cfg, method, net, batch = make(name, modalities, task, fusion)
    found = update(cfg, method, net, batch)
    expected = set(net.group(*method.trained(net)))
    assert set(found.grads) == expected
    assert math.isfinite(float(found.loss))
    assert all(bool(torch.isfinite(g).all()) for g in found.grads.values())
    assert all(v.ndim == 0 and math.isfinite(float(v)) for v in found.logs.values())


@pytest.mark.parametrize("name", METHODS)
def test_nonzero_gradient_for_every_trained_parameter_within_an_epoch(name):
    data = support.dataset()
    cfg = support.config(name)
    run = Run(cfg, data)
    before = {n: p.detach().clone() for n, p in run.net.params.items()}
    run.epoch()
    trained = set(run.net.group(*run.method.trained(run.net)))
    moved = {n for n, p in run.net.params.items() if not torch.equal(p, before[n])}
    assert moved == trained


@pytest.mark.parametrize("name", METHODS)
def test_prefixes_of_optimizer_settings_own_parameters(name):
    cfg, method, net, _ = make(name)
    settings = method.optim(support.hp(cfg.method), support.hp(cfg.optim))
    owners = grads.groups(net.params)
    assert set(settings) <= set(owners)
    with pytest.raises(KeyError):
        net.group("encoders.nothing")
    with pytest.raises(KeyError):
        net.group("encoders.tex")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_loss_falls(name, task):
    cfg, data = support.config(name, overrides={"train.epochs": 6, "optim.lr": 3e-3}), support.dataset(task=task)
    support.skip_refused(cfg, data)
    run = Run(cfg, data)
    results = [run.epoch() for _ in range(6)]
    assert results[-1].metrics["train/loss"] < results[0].metrics["train/loss"]
    assert results[-1].metrics["val/loss"] < results[0].metrics["val/loss"]


@pytest.mark.parametrize(("name", "fusion"), [*product(METHODS, FUSIONS)])
def test_alone_equals_vmap(name, fusion):
    """Three trials with their own weights and hyperparameters in one vmapped call equal three calls, in float64."""
    runs = [make(name, fusion=fusion, seed=s, **support.DETERMINISTIC.get(name, {})) for s in range(3)]
    cfg, method, net, batch = runs[0]
    hps = [{k: v * (1 + 0.2 * s) for k, v in support.hp(cfg.method).items()} for s in range(3)]
    alone = [
        method.grads(r[2], batch, h, method.init(r[2], support.start()), CLOCK) for r, h in zip(runs, hps, strict=True)
    ]
    stacked = {n: torch.stack([r[2].params[n].detach() for r in runs]) for n in net.params}
    lanes = {k: torch.stack([h[k] for h in hps]) for k in hps[0]}

    def one(params, hp):
        found = method.grads(Net(net.model, net.task, params, {}), batch, hp, method.init(net, support.start()), CLOCK)
        return found.grads, found.loss, found.logs, found.state

    together = torch.func.vmap(one, randomness="different")(stacked, lanes)
    for s, expected in enumerate(alone):
        for theirs, mine in zip(
            (expected.grads, expected.logs, expected.state), (*together[:1], *together[2:]), strict=True
        ):
            assert set(theirs) == set(mine)
            for key, value in theirs.items():
                torch.testing.assert_close(mine[key][s], value, rtol=1e-9, atol=1e-10, msg=support.named(key))


@pytest.mark.parametrize(("name", "fusion"), [*product(sorted(support.NEUTRAL), FUSIONS)])
def test_neutral_settings_reduce_to_joint(name, fusion):
    cfg, method, net, batch = make(name, fusion=fusion, **support.NEUTRAL[name])
    joint_cfg, joint, _, _ = make("joint", fusion=fusion)
    plain = Net(net.model, net.task)
    expected = update(joint_cfg, joint, plain, batch)
    found = update(cfg, method, net, batch)
    for key, value in expected.grads.items():
        torch.testing.assert_close(found.grads[key], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", METHODS)
def test_state_survives_a_round_trip(name, tmp_path):
    """A run saved to disk after one epoch and resumed in a new object ends bit-equal to an uninterrupted one."""
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


@pytest.mark.parametrize("name", METHODS)
def test_prediction_is_independent_of_batch_size(name):
    _cfg, method, net, batch = make(name)
    state = method.init(net, support.start())
    net.model.eval()
    whole = method.predict(net, batch.inputs, state)
    parts = [
        method.predict(net, {m: x.take(torch.tensor([i])) for m, x in batch.inputs.items()}, state) for i in range(16)
    ]
    assert "joint" in whole
    own = [key.partition("/") for key in whole if "/" in key]  # of a method's own classifiers: kind/modality
    assert set(whole) - {"".join(parts) for parts in own} == {"joint", *net.modalities}
    assert all(kind and modality in net.modalities for kind, _, modality in own)
    for key, value in whole.items():
        torch.testing.assert_close(torch.cat([p[key] for p in parts]), value, rtol=1e-9, atol=1e-10)
