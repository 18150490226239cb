"""What every fusion must satisfy: its formula, the ways of a modality alone, DGL's gradients, and
lanes under vmap.

A new file in tune_mm/models/fusions is covered by its formula in tests/models/formulas.
"""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tests.models.fusion_cases import (
    CASES,
    OUTPUTS,
    SHAPES,
    batch,
    encode,
    formula,
    fusion_section,
    literal,
    make,
    net_of,
    used,
    without_formula,
)
from tests.support import named
from tune_mm import plugins
from tune_mm.core.net import Net
from tune_mm.core.types import Clock, DataSpec, Padded, Task

PATHS = [(c, p) for c, (f, _) in CASES.items() for p in plugins.load("fusions", f).paths]


def has_own_parameters(case):
    """Beyond the head's."""
    return any(not name.startswith("head.") for name, _ in make(case, 2).fusion.named_parameters())


OWN_PARAMETERS = [case for case in CASES if has_own_parameters(case)]
MODALITIES = pytest.mark.parametrize("count", [2, 3])
CASE = pytest.mark.parametrize("case", CASES)
CASE_AND_PATH = pytest.mark.parametrize(("case", "path"), PATHS)
ALPHA, CLOCK = 1.5, Clock(0, 0, 1, 1)


def test_every_fusion_has_a_formula():
    """But for those that predict pixels, which have tests of their own."""
    assert without_formula() == [], "write tests/models/formulas/<fusion>.py"


@MODALITIES
@CASE_AND_PATH
def test_hidden_equals_the_formula(case, path, count):
    model, inputs = make(case, count), batch(count).inputs
    features = encode(model, inputs)
    hidden = model.hidden(features)
    assert hidden.shape == (5, model.fusion.head.in_features)
    torch.testing.assert_close(hidden, literal(model, case, features), rtol=0, atol=1e-13)
    torch.testing.assert_close(
        model(inputs), hidden @ model.fusion.head.weight.T + model.fusion.head.bias
    )
    found = model.unimodal(features, path)
    assert list(found) == list(features)
    for m, value in found.items():
        torch.testing.assert_close(
            value, literal(model, case, features, m, path), rtol=0, atol=1e-13
        )


@MODALITIES
@CASE
def test_without_is_the_formula_of_zeros(case, count):
    model = make(case, count)
    features = encode(model, batch(count).inputs)
    found = model.without(features, {"audio"})
    if CASES[case][0] == "mmtm":
        present = [m for m in features if m != "audio"]
        wanted = formula("mmtm").exchanged(model, features, fusion_section(case), present)
    else:
        wanted = literal(
            model, case, {m: f.zero() if m == "audio" else f for m, f in features.items()}
        )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-13)


@MODALITIES
@CASE_AND_PATH
def test_dgl_trains_the_fusion_jointly_and_each_encoder_alone(case, path, count):
    """d(fusion, head) = d L_multi, d encoder_m = alpha d L_m, each from its own graph of the
    formula.
    """
    model, data = make(case, count), batch(count)
    method = plugins.load("methods", "dgl")
    section = method.Config(alpha=ALPHA, unimodal_path=path)
    hp = {"alpha": torch.tensor(ALPHA, dtype=torch.float64)}
    net = net_of(model)
    found = method(section).grads(net, data, hp, {}, CLOCK).grads
    assert set(found) == set(net.params)
    head = model.fusion.head

    def loss(hidden):
        return torch.nn.functional.cross_entropy(hidden @ head.weight.T + head.bias, data.target)

    joint = loss(literal(model, case, encode(model, data.inputs)))
    wanted = dict(derivative(joint, net.group("fusion")))
    for m in model.encoders:
        alone = ALPHA * loss(literal(model, case, encode(model, data.inputs), m, path))
        wanted.update(derivative(alone, net.group(f"encoders.{m}")))
        others = {
            n: p
            for n, p in net.params.items()
            if n.startswith("encoders.") and n.split(".")[1] != m
        }
        own = model.unimodal(encode(model, data.inputs), path)[m]
        passed = torch.autograd.grad(loss(own), list(others.values()), allow_unused=True)
        assert all(g is None or not g.any() for g in passed)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12, msg=named(name))
        assert found[name].abs().sum() > 1e-9, name


def derivative(loss, params):
    return zip(params, torch.autograd.grad(loss, list(params.values())), strict=True)


@MODALITIES
@CASE_AND_PATH
def test_evaluation_does_not_depend_on_the_batch(case, path, count):
    net, inputs = net_of(used(make(case, count), count)), batch(count).inputs
    with torch.no_grad():
        features = net.encode(inputs)
        whole, alone = net.fuse(features), net.unimodal(features, path)
        for i in range(5):
            one = net.encode({m: x.take(torch.tensor([i])) for m, x in inputs.items()})
            torch.testing.assert_close(net.fuse(one)[0], whole[i], rtol=0, atol=1e-13)
            for m, logits in net.unimodal(one, path).items():
                torch.testing.assert_close(logits[0], alone[m][i], rtol=0, atol=1e-13)


@MODALITIES
@CASE_AND_PATH
def test_a_modality_alone_does_not_see_the_others(case, path, count):
    net = net_of(used(make(case, count), count))
    here, there = (net.encode(batch(count, seed=s).inputs) for s in (1, 2))
    with torch.no_grad():
        assert not torch.allclose(net.fuse({**there, "audio": here["audio"]}), net.fuse(here))
        for m in net.modalities:
            mixed = {k: here[k] if k == m else there[k] for k in net.modalities}
            own, again = (net.unimodal(f, path)[m] for f in (here, mixed))
            assert torch.equal(own, again)
            assert not torch.allclose(own, net.unimodal(there, path)[m])


@MODALITIES
@CASE
def test_lanes_equal_single_models(case, count):
    """Gradients and BatchNorm's statistics of three models stacked under vmap, against one at a
    time, in training.
    """
    data, path = batch(count), plugins.load("fusions", CASES[case][0]).paths[0]
    method = plugins.load("methods", "dgl")
    trainer = method(method.Config(unimodal_path=path))
    alphas = torch.tensor([0.5, 1.5, 3.0], dtype=torch.float64)
    nets = [net_of(make(case, count, seed)) for seed in range(3)]
    params, buffers = (
        {n: torch.stack([tensors(net)[n].detach() for net in nets]) for n in tensors(nets[0])}
        for tensors in (lambda net: net.params, lambda net: net.buffers)
    )

    def one(own, statistics, alpha):
        net = Net(nets[0].model, nets[0].task, own, statistics)
        update = trainer.grads(net, data, {"alpha": alpha}, {}, CLOCK)
        return update.grads, update.loss, net.buffers

    found, losses, moved = torch.func.vmap(one)(params, buffers, alphas)
    for lane, net in enumerate(nets):
        wanted = trainer.grads(net, data, {"alpha": alphas[lane]}, {}, CLOCK)
        torch.testing.assert_close(losses[lane], wanted.loss, rtol=1e-10, atol=0)
        for name, value in wanted.grads.items():
            torch.testing.assert_close(
                found[name][lane], value, rtol=1e-8, atol=1e-11, msg=named(name)
            )
        for name, value in net.model.named_buffers():
            torch.testing.assert_close(
                moved[name][lane], value, rtol=1e-10, atol=1e-12, msg=named(name)
            )
            assert not torch.equal(value, buffers[name][lane]), name


@CASE
def test_blocks(case):
    """A modality's own columns lie side by side in order; where hidden is shared, each has all of
    them.
    """
    model = make(case, 3)
    columns = {m: list(range(model.fusion.head.in_features))[model.fusion.block(m)] for m in SHAPES}
    every = list(range(model.fusion.head.in_features))
    if CASES[case][0] in ("concat", "sum", "mmtm") or case.endswith("symmetric"):
        assert [c for own in columns.values() for c in own] == every
        size = 5 if case == "gated-symmetric" else 6
        assert [len(c) for c in columns.values()] == [size] * 3
    else:
        assert all(c == every for c in columns.values())


@pytest.mark.parametrize("case", OWN_PARAMETERS)
def test_one_modality_is_a_model_too(case):
    """The method `unimodal` builds it: where there is nothing to fuse, its features pass as they
    are.
    """
    model, data = make(case, 1), batch(1)
    features = encode(model, data.inputs)
    if CASES[case][0] in ("film", "gated", "bilinear"):
        assert torch.equal(model.hidden(features), features["audio"].value)
        assert torch.equal(
            model.unimodal(features, model.fusion.paths[0])["audio"], features["audio"].value
        )
    net = net_of(model)
    loss = net.loss(net.fuse(net.encode(data.inputs)), data.target)
    assert all(g.any() for _, g in derivative(loss, net.params))


SEQUENCES = {"text": ((4, 7), 5), "audio": ((6, 3), 4), "visual": ((2, 8), 3)}


@pytest.mark.parametrize(
    "case", ["film", "film-visual", "film-symmetric", "gated", "gated-visual", "gated-symmetric"]
)
@pytest.mark.parametrize("pool", ["mean", "first"])
def test_sequences_of_unequal_widths(case, pool):
    """Late fusions take the mean over real steps, or the first step, of features of any width."""
    widths = {m: width for m, (_, width) in SEQUENCES.items()}
    fusion_name, fields = CASES[case]
    cls = plugins.load("fusions", fusion_name)
    spec = DataSpec(
        {m: shape for m, (shape, _) in SEQUENCES.items()}, Task("classification", OUTPUTS)
    )
    torch.manual_seed(0)
    fusion = cls.build(cls.Config(**fields, pool=pool), spec, widths).double()
    lengths = torch.tensor([[1], [2]])
    features = {
        m: Padded(torch.randn(2, steps, width).double(), torch.arange(steps) < lengths)
        for m, ((steps, _), width) in SEQUENCES.items()
    }
    count = torch.ones_like(lengths) if pool == "first" else lengths
    h = {
        m: torch.stack([f.value[i, : count[i]].mean(0) for i in range(2)])
        for m, f in features.items()
    }
    torch.testing.assert_close(fusion.hidden(features), formula(fusion_name).hidden(fusion, h))
    alone = fusion.unimodal(features, "zero")["audio"]
    only = {m: v if m == "audio" else 0 * v for m, v in h.items()}
    torch.testing.assert_close(alone, formula(fusion_name).hidden(fusion, only))
    with pytest.raises(
        ValueError, match="'text' takes the place of 'audio', which needs equal widths, got 5 and 4"
    ):
        fusion.unimodal(features, "self")


def test_condition_and_gate_choose_the_source():
    for case, field in (("film-visual", "condition"), ("gated-visual", "gate")):
        assert make(case, 3).fusion.sources == {"audio": ("visual",), "depth": ("visual",)}
        cls = plugins.load("fusions", CASES[case][0])
        spec = DataSpec(SHAPES, Task("classification", OUTPUTS))
        message = f"{field}: no modality 'visal'; nearest 'visual'; available: audio, visual, depth"
        with pytest.raises(ValueError, match=message):
            cls.build(cls.Config(**{field: "visal"}), spec, dict.fromkeys(SHAPES, 6))
        with pytest.raises(ValidationError, match=f"{field} has no meaning with symmetric"):
            cls.Config(symmetric=True, **{field: "visual"})


@pytest.mark.parametrize("path", ["zero", "mask"])
def test_bilinear_refuses_zeros(path):
    with pytest.raises(
        ValueError,
        match=rf"unimodal_path: must be one of auto, self .*got '{path}' \(.*; use self\)",
    ):
        net_of(make("bilinear", 2)).path(path)


@pytest.mark.parametrize("name", ["bilinear", "shared_head"])
def test_unequal_widths_are_refused(name):
    cls, spec = plugins.load("fusions", name), DataSpec(SHAPES, Task("classification", OUTPUTS))
    with pytest.raises(
        ValueError, match=rf"the {name} fusion takes features of one width.*'visual': 7"
    ):
        cls.build(cls.Config(), spec, {"audio": 6, "visual": 7})


def test_mmtm_checks_its_encoders():
    cls = plugins.load("fusions", "mmtm")
    spec = DataSpec({"audio": SHAPES["audio"]}, Task("classification", OUTPUTS))
    cnn, mlp = (plugins.load("encoders", n) for n in ("cnn", "mlp"))
    with pytest.raises(ValueError, match=r"needs encoders in stages .* that of 'audio' is not"):
        cls.build(cls.Config(), spec, {"audio": mlp.build(mlp.Config(), (5,))})
    staged = {"audio": cnn.build(cnn.Config(), SHAPES["audio"])}
    with pytest.raises(ValueError, match="no stage 4; the encoder of 'audio' has stages 1 to 3"):
        cls.build(cls.Config(), spec, staged)
    with pytest.raises(
        ValueError, match="ratio: must be at most 32 with 16 channels at a stage, got 33"
    ):
        cls.build(cls.Config(stages=(1, 2), ratio=33), spec, staged)
    assert staged["audio"].until is None
    for stages in ((2, 2), (3, 1), (), (0, 1)):
        with pytest.raises(ValidationError, match="stages"):
            cls.Config(stages=stages)


def test_mmtm_runs_no_stage_of_an_absent_modality():
    """One pass for the features, then later stages once jointly and once alone, which running
    statistics do not see.
    """
    model = make("mmtm", 3)
    net = net_of(model)
    norms = [m for m in model.encoders.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    passes = dict.fromkeys(norms, 0)
    for norm in norms:
        norm.register_forward_hook(lambda own, *_: passes.update({own: passes[own] + 1}))
    features = net.encode(batch(3).inputs)
    net.fuse(features)
    jointly = [norm.state_dict()["running_mean"].clone() for norm in norms]
    net.unimodal(features)
    assert list(passes.values()) == [1, 2] * 3
    assert [norm.num_batches_tracked.item() for norm in norms] == [1, 1] * 3
    for norm, before in zip(norms, jointly, strict=True):
        assert torch.equal(norm.state_dict()["running_mean"], before)


def test_bilinear_starts_like_a_linear_layer():
    """Uniform within 1 / sqrt(inputs), inputs = the products of all pairs, not of one feature."""
    weight = make("bilinear", 3).fusion.product.weight
    bound = (3 * 6 * 6) ** -0.5
    assert weight.shape == (5, 108)
    assert 0.9 * bound < weight.abs().max() <= bound


@pytest.mark.parametrize(
    "case", ["concat", "sum", "film", "gated-symmetric", "bilinear", "shared_head", "mmtm"]
)
def test_builds_without_memory(case):
    """The check before a run builds on the meta device."""
    with torch.device("meta"):
        model = make(case, 3)
    assert all(p.is_meta for p in model.parameters())
