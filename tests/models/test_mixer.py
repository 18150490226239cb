"""The MLP-Mixer fusion on sequences: time bins, padding, the ways of a modality alone, and every
method on it.

What all fusions have in common is held by test_fusions.py, on vectors.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor
from torch.func import functional_call, grad_and_value, vmap

from tests import support
from tests.models.mixer_formula import mixer
from tune_mm import plugins
from tune_mm.config import Config, with_overrides
from tune_mm.core.build import check
from tune_mm.core.run import Run
from tune_mm.core.types import Clock, DataSpec, Features, Padded, Task, UnimodalPath
from tune_mm.models.fusions.mixer import MixerConfig, MixerFusion, binned
from tune_mm.tune.space import space

SHAPES = {"text": (4, 6), "audio": (9, 6), "visual": (6,)}
SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "long": {"length": 7, "factor": 2.5, "blocks": 1},
    "narrow": {"width": 4, "hidden": (5, 2, 3), "readout": "concat"},
    "flatten": {"length": 2, "readout": "flatten"},
}
PATHS: tuple[UnimodalPath, ...] = ("zero", "mask")
EVERY = pytest.mark.parametrize("setting", SETTINGS)
COUNTS = pytest.mark.parametrize("count", [2, 3])


def make(
    setting: str = "defaults", shapes: Any = SHAPES, seed: int = 0, dropout: float = 0.0
) -> MixerFusion:
    """A float64 fusion of 4 outputs, whose norms are away from 1 and 0."""
    torch.manual_seed(seed)
    config = MixerConfig(**SETTINGS[setting], dropout=dropout)
    widths = {m: shape[-1] for m, shape in shapes.items()}
    fusion = MixerFusion.build(config, DataSpec(shapes, Task("classification", 4)), widths).double()
    with torch.no_grad():
        for name, p in fusion.named_parameters():
            if ".norm." in name:
                p.add_(torch.randn_like(p) / 3)
    return fusion


def some(shapes: Any = SHAPES, count: int = 5, masked: bool = True, seed: int = 1) -> Features:
    """Features with gradients. Padded steps hold numbers too."""
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for m, shape in shapes.items():
        value = torch.randn(
            count, *shape, generator=generator, dtype=torch.float64
        ).requires_grad_()
        lengths = torch.randint(1, shape[0] + 1, (count, 1), generator=generator)
        out[m] = Padded(
            value, torch.arange(shape[0]) < lengths if masked and len(shape) == 2 else None
        )
    return out


def first(count: int) -> dict[str, tuple[int, ...]]:
    return dict(list(SHAPES.items())[:count])


def rows(features: Features, length: int) -> dict[str, Tensor]:
    """Bin l of a sample: the mean of those steps t with l T / L - 1 < t < (l + 1) T / L that are
    real, one by one.
    """
    out = {}
    for m, feature in features.items():
        value, mask = (
            feature.value if feature.value.ndim == 3 else feature.value[:, None],
            feature.mask,
        )
        steps, samples = value.shape[1], []
        for i, sample in enumerate(value):
            means = []
            for b in range(length):
                inside = [
                    t for t in range(steps) if b * steps / length - 1 < t < (b + 1) * steps / length
                ]
                real = [sample[t] for t in inside if mask is None or mask[i, t]]
                means.append(sum(real) / len(real) if real else torch.zeros_like(sample[0]))
            samples.append(torch.stack([torch.as_tensor(x) for x in means]))
        out[m] = torch.stack(samples)
    return out


def test_bins_are_those_of_adaptive_average_pooling() -> None:
    for steps in (1, 3, 8, 11):
        value = torch.randn(2, steps, 3, dtype=torch.float64)
        for length in (1, 2, 3, 8, 13):
            wanted = F.adaptive_avg_pool1d(value.transpose(1, 2), length).transpose(1, 2)
            torch.testing.assert_close(binned(Padded(value), length), wanted, rtol=0, atol=1e-14)


@COUNTS
@pytest.mark.parametrize("masked", [True, False])
@EVERY
def test_hidden_equals_the_formula(setting: str, masked: bool, count: int) -> None:
    fusion, features = make(setting, first(count)), some(first(count), masked=masked)
    length = SETTINGS[setting].get("length", 4)
    assert fusion.length == length
    binned_rows = rows(features, length)
    torch.testing.assert_close(
        fusion.hidden(features), mixer(fusion, binned_rows), rtol=0, atol=1e-13
    )
    for path in fusion.paths:
        for m, found in fusion.unimodal(features, path).items():
            torch.testing.assert_close(
                found, mixer(fusion, binned_rows, m, path), rtol=0, atol=1e-13
            )
    for m in features:
        without = {k: Padded(0 * x.value, x.mask) if k == m else x for k, x in features.items()}
        wanted = mixer(fusion, rows(without, length))
        torch.testing.assert_close(fusion.without(features, {m}), wanted, rtol=0, atol=1e-13)


def test_length_is_that_of_the_shortest_sequence_and_one_for_vectors() -> None:
    assert make().length == 4
    assert make(shapes={"a": (9, 6), "b": (1, 8, 8)}).length == 9, (
        "an image's features are a vector"
    )
    assert make(shapes={"a": (6,), "b": (5,)}).length == 1


def test_sizes() -> None:
    """Hidden units: the factor times the axis, rounded and at least one, or as given; the widest
    features give D.
    """
    shapes = {"text": (4, 6), "audio": (9, 3)}
    found = {s: make(s, shapes) for s in SETTINGS}
    sizes = {s: [mix.up.out_features for mix in fusion.mixes[:3]] for s, fusion in found.items()}
    assert sizes == {
        "defaults": [4, 2, 6],
        "long": [18, 5, 15],
        "narrow": [5, 2, 3],
        "flatten": [2, 2, 6],
    }
    assert {s: len(fusion.mixes) for s, fusion in found.items()} == {
        "defaults": 6,
        "long": 3,
        "narrow": 6,
        "flatten": 6,
    }
    assert {s: fusion.head.in_features for s, fusion in found.items()} == {
        "defaults": 6,
        "long": 6,
        "narrow": 2 * 4,
        "flatten": 2 * 2 * 6,
    }
    assert set(found["defaults"].project) == {"audio"}
    assert set(found["narrow"].project) == {"text", "audio"}
    assert found["narrow"].block("audio") == slice(0, 8)


@EVERY
def test_what_lies_behind_the_mask_is_not_read(setting: str) -> None:
    fusion, features = make(setting), some()
    spoilt = {
        m: f
        if f.mask is None
        else Padded(f.value.masked_fill(~f.mask[..., None], math.nan), f.mask)
        for m, f in features.items()
    }
    assert any(f.value.isnan().any() for f in spoilt.values())
    assert torch.equal(fusion.hidden(spoilt), fusion.hidden(features))
    for path in PATHS:
        for m, found in fusion.unimodal(spoilt, path).items():
            assert torch.equal(found, fusion.unimodal(features, path)[m])
    values = {m: f.value for m, f in features.items() if f.mask is not None}
    for m, grad in zip(
        values,
        torch.autograd.grad(fusion.hidden(features).sum(), list(values.values())),
        strict=True,
    ):
        mask = features[m].mask
        assert mask is not None and grad[mask].abs().min() > 0
        assert not grad[~mask].any()


@EVERY
def test_evaluation_does_not_depend_on_the_batch(setting: str) -> None:
    fusion, features = make(setting, dropout=0.5).eval(), some()
    whole, alone = fusion.hidden(features), {p: fusion.unimodal(features, p) for p in PATHS}
    for i in range(5):
        one = {m: f.take(torch.tensor([i])) for m, f in features.items()}
        torch.testing.assert_close(fusion.hidden(one)[0], whole[i], rtol=0, atol=1e-13)
        for path in PATHS:
            for m, found in fusion.unimodal(one, path).items():
                torch.testing.assert_close(found[0], alone[path][m][i], rtol=0, atol=1e-13)


@pytest.mark.parametrize("path", PATHS)
@EVERY
def test_a_modality_alone_sees_itself_only(setting: str, path: UnimodalPath) -> None:
    fusion, features = make(setting), some()
    for m, found in fusion.unimodal(features, path).items():
        values = [f.value for f in features.values()]
        grads = torch.autograd.grad((found**2).sum(), values, retain_graph=True, allow_unused=True)
        for k, grad in zip(features, grads, strict=True):
            assert bool(grad is not None and grad.abs().sum() > 1e-3) == (k == m)


@pytest.mark.parametrize("path", PATHS)
def test_lanes_equal_single_fusions(path: UnimodalPath) -> None:
    """Three fusions stacked under vmap, on masked sequences, against one at a time: values and
    gradients.
    """
    features, fusions = some(), [make("long", seed=s) for s in range(3)]

    def loss(params: dict[str, Tensor]) -> Tensor:
        hidden = functional_call(
            Whole(fusions[0], path), {f"fusion.{n}": p for n, p in params.items()}, (features,)
        )
        return (hidden**2).sum()

    params = [dict(f.named_parameters()) for f in fusions]
    stacked = {n: torch.stack([p[n].detach() for p in params]) for n in params[0]}
    grads, values = vmap(grad_and_value(loss))(stacked)
    for lane, fusion in enumerate(fusions):
        wanted = (Whole(fusion, path)(features) ** 2).sum()
        torch.testing.assert_close(values[lane], wanted, rtol=1e-12, atol=0)
        used = {n: p for n, p in params[lane].items() if not n.startswith("head.")}
        for name, grad in zip(used, torch.autograd.grad(wanted, list(used.values())), strict=True):
            torch.testing.assert_close(
                grads[name][lane], grad, rtol=1e-9, atol=1e-11, msg=support.named(name)
            )


class Whole(torch.nn.Module):
    """What a fusion makes of features: jointly, and each modality alone."""

    def __init__(self, fusion: MixerFusion, path: UnimodalPath) -> None:
        super().__init__()
        self.fusion, self.path = fusion, path

    def forward(self, features: Features) -> Tensor:
        return torch.stack(
            [self.fusion.hidden(features), *self.fusion.unimodal(features, self.path).values()]
        )


def test_the_order_of_steps_matters() -> None:
    """Reversed in time the same steps give another hidden: the fusion is no pooling."""
    fusion, features = make(), some(masked=False)
    text = features["text"].value
    assert not torch.allclose(
        fusion.hidden({**features, "text": Padded(text.flip(1))}), fusion.hidden(features)
    )


def test_dropout_acts_in_training_only() -> None:
    fusion, features = make(dropout=0.5), some()
    assert not torch.equal(fusion.hidden(features), fusion.hidden(features))
    fusion.eval()
    torch.testing.assert_close(
        fusion.hidden(features), mixer(fusion, rows(features, 4)), rtol=0, atol=1e-13
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden": (1, 2)}, "hidden"),
        ({"hidden": (1, 2, 0)}, "hidden"),
        ({"hidden": (1, 2, 3), "factor": 2.0}, "factor has no meaning with hidden"),
        ({"factor": 0.0}, "factor"),
        ({"blocks": 0}, "blocks"),
        ({"length": 0}, "length"),
        ({"width": 0}, "width"),
        ({"dropout": 1.0}, "dropout"),
        ({"readout": "first"}, "readout"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MixerConfig(**settings)


def test_the_baseline_of_the_dgl_space_searches_the_same_fusion() -> None:
    dgl, joint = (
        space.build(name, space.read(name), {}) for name in ("dgl_mosi_mixer", "joint_mosi_mixer")
    )
    assert dgl.spec.finals.baseline == "joint_mosi_mixer"
    assert dgl.base.model == joint.base.model
    assert isinstance(dgl.base.model.fusion, MixerConfig)
    ours, theirs = ({k: d for k, d in s.domains.items() if k != "optim.clip"} for s in (dgl, joint))
    assert {k: d for k, d in ours.items() if not k.startswith("method.")} == theirs
    assert set(ours) - set(theirs) == {"method.alpha", "method.unimodal_path"}


# Methods

DATA = support.dataset(count=16)  # one batch
METHODS = plugins.available("methods")
MIXER = {"name": "mixer", "dropout": 0.0}


def config(method: str, **settings: Any) -> Config:
    return with_overrides(support.config(method, **settings), {"model.fusion": MIXER})


def test_self_is_no_way() -> None:
    with pytest.raises(
        ValueError, match=r"unimodal_path: must be one of auto, zero, mask .*got 'self'"
    ):
        check(config("dgl", unimodal_path="self"), DATA.spec)


@pytest.mark.parametrize("name", METHODS)
def test_one_step_of_every_method_or_its_refusal(name: str) -> None:
    allowed, cfg = plugins.load("methods", name).support, config(name)
    if allowed.most is not None or allowed.fusions is not None:
        why = (
            "needs 2 modalities, got 3 .*" if allowed.most is not None else "needs .*, got 'mixer'"
        )
        with pytest.raises(ValueError, match=rf"^(method.name|model.fusion): {name} {why}$"):
            check(cfg, DATA.spec)
        return
    run = Run(cfg, DATA)
    before = {n: p.detach().clone() for n, p in run.net.params.items()}
    metrics = run.epoch().metrics
    moved = {n for n, p in run.net.params.items() if not torch.equal(p, before[n])}
    assert moved == set(run.net.group(*run.method.trained(run.net)))
    assert math.isfinite(metrics["train/loss"])
    assert 0 <= metrics["val/accuracy"] <= 1


@pytest.mark.parametrize("path", PATHS)
def test_dgl_keeps_its_two_graphs_apart(path: UnimodalPath) -> None:
    """d fusion = d L_multi, d encoder_m = alpha d L_m, on masked sequences of three modalities."""
    method, net = support.bound(config("dgl", alpha=1.5, unimodal_path=path), DATA)
    batch, fusion = support.batch(DATA), net.model.get_submodule("fusion")
    assert isinstance(fusion, MixerFusion)
    found = method.grads(
        net, batch, {"alpha": torch.tensor(1.5, dtype=torch.float64)}, {}, Clock(0, 0, 1, 1)
    ).grads

    def loss(alone: str | None = None) -> Tensor:
        hidden = mixer(fusion, rows(net.encode(batch.inputs), fusion.length), alone, path)
        return F.cross_entropy(hidden @ fusion.head.weight.T + fusion.head.bias, batch.target)

    for prefix, value in {
        "fusion": loss(),
        **{f"encoders.{m}": 1.5 * loss(m) for m in net.modalities},
    }.items():
        params = net.group(prefix)
        for name, wanted in zip(
            params, torch.autograd.grad(value, list(params.values())), strict=True
        ):
            torch.testing.assert_close(
                found[name], wanted, rtol=1e-8, atol=1e-12, msg=support.named(name)
            )
            assert wanted.any(), name
