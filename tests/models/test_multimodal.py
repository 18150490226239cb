"""The whole model: shapes, padding, batch independence, unimodal paths, names, gradients, vmap."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.func import functional_call, stack_module_state, vmap

from tune_mm import plugins
from tune_mm.core.features import pooled
from tune_mm.core.types import DataSpec, Padded, Task
from tune_mm.models.classifier import Classifier
from tune_mm.models.fusions.transformer import TransformerFusion
from tune_mm.models.multimodal import build

SEQUENCES = {"text": (4, 6), "audio": (9, 5), "visual": (3, 8)}
MIXED = {"text": (4, 6), "audio": (5,), "visual": (3, 8)}
VECTORS = {"rgb": (6,), "depth": (5,)}
DROPOUTS = ("attention", "relu", "embed", "residual")


def section(kind, name, **fields):
    return plugins.load(kind, name).Config(name=name, **fields)


def make(
    shapes,
    encoder="transformer",
    fusion="transformer",
    dropout=0.0,
    mask=True,
    seed=0,
    aux=None,
    layers=2,
    **more,
):
    torch.manual_seed(seed)
    sizes = {f"dropout_{d}": dropout for d in DROPOUTS}
    encoders = {
        "transformer": {"width": 10, "heads": 2, "layers": layers, "padding_mask": mask, **sizes}
    }
    fusions = {
        "transformer": {
            "heads": 2,
            "layers": layers,
            "padding_mask": mask,
            "dropout_output": dropout,
            **sizes,
            **more,
        }
    }
    config = SimpleNamespace(
        encoder=section(
            "encoders", encoder, **encoders.get(encoder, {"width": 10, "dropout": dropout})
        ),
        fusion=section("fusions", fusion, **fusions.get(fusion, more)),
    )
    return build(config, DataSpec(shapes, Task("classification", 4)), aux).double()


def inputs(shapes, count=6, masked=True, seed=1):
    generator = torch.Generator().manual_seed(seed)
    out = {}
    for m, shape in shapes.items():
        value = torch.randn(count, *shape, generator=generator, dtype=torch.float64)
        steps = torch.randint(1, shape[0] + 1, (count, 1), generator=generator)
        out[m] = Padded(
            value, torch.arange(shape[0]) < steps if masked and len(shape) == 2 else None
        )
    return out


def encode(model, x):
    return {m: e(x[m]) for m, e in model.encoders.items()}


FUSIONS = ["transformer", "concat", "sum"]
TWO = {m: SEQUENCES[m] for m in ("audio", "visual")}
ALL_SHAPES = pytest.mark.parametrize(
    "shapes", [SEQUENCES, TWO, MIXED, VECTORS], ids=["three", "two", "mixed", "vectors"]
)


@ALL_SHAPES
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("masked", [True, False])
def test_shapes_and_head(shapes, fusion, masked):
    model, x = make(shapes, fusion=fusion), inputs(shapes, masked=masked)
    features = encode(model, x)
    for m, f in features.items():
        assert f.value.shape == (6, *shapes[m][:-1], 10)
        assert f.mask is x[m].mask
    hidden = model.fusion.hidden(features)
    assert hidden.shape == (6, model.fusion.head.in_features)
    torch.testing.assert_close(model(x), model.fusion.head(hidden))
    assert model(x).shape == (6, 4)
    for path in ("zero", "mask"):
        alone = model.fusion.unimodal(features, path)
        assert list(alone) == list(shapes)
        assert all(h.shape == hidden.shape for h in alone.values())


@pytest.mark.parametrize("fusion", [*FUSIONS, "concat-first"])
def test_padding_never_reaches_the_output(fusion):
    more = {"pool": "first"} if fusion == "concat-first" else {}
    model, x = make(SEQUENCES, fusion=fusion.split("-")[0], **more).eval(), inputs(SEQUENCES)
    noisy = {m: Padded(torch.where(v.mask[..., None], v.value, 1e3), v.mask) for m, v in x.items()}
    assert torch.equal(model(x), model(noisy))
    for path in ("zero", "mask"):
        a, b = (model.fusion.unimodal(encode(model, y), path) for y in (x, noisy))
        assert all(torch.equal(a[m], b[m]) for m in a)


def test_padding_attends_when_the_mask_is_off():
    model, x = make(SEQUENCES, mask=False).eval(), inputs(SEQUENCES)
    bare = {m: Padded(v.value) for m, v in x.items()}
    assert torch.equal(model(x), model(bare))
    noisy = {m: Padded(torch.where(v.mask[..., None], v.value, 1e3), v.mask) for m, v in x.items()}
    assert not torch.allclose(model(x), model(noisy))


@ALL_SHAPES
@pytest.mark.parametrize("fusion", FUSIONS)
def test_evaluation_does_not_depend_on_the_batch(shapes, fusion):
    model, x = make(shapes, fusion=fusion, dropout=0.3).eval(), inputs(shapes)
    whole = model(x)
    each = torch.cat(
        [model({m: v.take(torch.tensor([i])) for m, v in x.items()}) for i in range(6)]
    )
    torch.testing.assert_close(each, whole, rtol=0, atol=1e-13)


@ALL_SHAPES
@pytest.mark.parametrize("fusion", FUSIONS)
def test_zero_path_is_literal_zeroing(shapes, fusion):
    model, x = make(shapes, fusion=fusion), inputs(shapes)
    features = encode(model, x)
    found = model.fusion.unimodal(features, "zero")
    for m in shapes:
        wanted = model.fusion.hidden({k: f if k == m else f.zero() for k, f in features.items()})
        torch.testing.assert_close(found[m], wanted, rtol=0, atol=1e-13)


def masked_literally(fusion: TransformerFusion, features, modality):
    """The full sequence with the other modalities zeroed and kept out of the keys, every layer in
    full.
    """
    sequences = {
        m: f.value if f.value.dim() == 3 else f.value[:, None] for m, f in features.items()
    }
    x = torch.cat([s if m == modality else torch.zeros_like(s) for m, s in sequences.items()], 1)
    masks = []
    for m, s in sequences.items():
        own = (
            torch.ones(s.shape[:2], dtype=torch.bool)
            if features[m].mask is None
            else features[m].mask
        )
        masks.append(own if m == modality else torch.zeros_like(own))
    return fusion._residual(fusion.body(x, torch.cat(masks, 1))[:, 0])


@ALL_SHAPES
@pytest.mark.parametrize("layers", [1, 3])
def test_mask_path_is_a_literal_key_mask(shapes, layers):
    model, x = make(shapes, layers=layers), inputs(shapes)
    features = {
        m: Padded(f.value.detach().requires_grad_(), f.mask) for m, f in encode(model, x).items()
    }
    found = model.fusion.unimodal(features, "mask")
    for m in shapes:
        wanted = masked_literally(model.fusion, features, m)
        torch.testing.assert_close(found[m], wanted, rtol=0, atol=1e-13)
        a, b = (
            torch.autograd.grad(t.square().sum(), features[m].value, retain_graph=True)[0]
            for t in (found[m], wanted)
        )
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_mask_path_is_the_same_stacked_and_one_by_one():
    near, far = {"a": (4, 6), "b": (3, 5)}, {"a": (20, 6), "b": (2, 5), "c": (2, 3)}
    for shapes in (near, far):
        model, x = make(shapes, mask=False), inputs(shapes, masked=False)
        features = encode(model, x)
        found = model.fusion.unimodal(features, "mask")
        for m in shapes:
            torch.testing.assert_close(
                found[m], masked_literally(model.fusion, features, m), rtol=0, atol=1e-13
            )


def test_mask_path_sees_one_modality_only():
    model, x = make(SEQUENCES), inputs(SEQUENCES)
    features = encode(model, x)
    alone = model.fusion.unimodal(features, "mask")["audio"]
    other = {
        m: f if m == "audio" else Padded(torch.randn_like(f.value), f.mask)
        for m, f in features.items()
    }
    assert torch.equal(alone, model.fusion.unimodal(other, "mask")["audio"])


@ALL_SHAPES
@pytest.mark.parametrize("fusion", FUSIONS)
def test_names_and_gradients(shapes, fusion):
    def aux(spec, widths):
        return torch.nn.ModuleDict(
            {m: Classifier(widths[m], 4, 2, 2, 0.1) for m in spec.modalities}
        )

    model, x = make(shapes, fusion=fusion, dropout=0.1, aux=aux), inputs(shapes)
    prefixes = (*(f"encoders.{m}." for m in shapes), "fusion.", *(f"aux.{m}." for m in shapes))
    assert all(name.startswith(prefixes) for name, _ in model.named_parameters())
    features = encode(model, x)
    total = model.fusion.head(model.hidden(features)).square().sum()
    for m, classifier in model.aux.items():
        total = total + classifier(features[m].detach()).square().sum()
    named = dict(model.named_parameters())
    for name, g in zip(named, torch.autograd.grad(total, list(named.values())), strict=True):
        assert g.isfinite().all(), name
        assert g.abs().sum() > 0, name


def test_model_without_aux_has_none():
    assert not any(n.startswith("aux") for n, _ in make(SEQUENCES).named_parameters())


@pytest.mark.parametrize("fusion", FUSIONS)
def test_stacked_parameters_under_vmap(fusion):
    models, x = [make(SEQUENCES, fusion=fusion, seed=s) for s in (0, 1)], inputs(SEQUENCES)
    params, buffers = stack_module_state(models)

    def loss(p, b):
        return functional_call(models[0], (p, b), (x,)).square().sum()

    found = vmap(torch.func.grad(loss))(params, buffers)
    for i, model in enumerate(models):
        named = dict(model.named_parameters())
        wanted = torch.autograd.grad(model(x).square().sum(), list(named.values()))
        for name, g in zip(named, wanted, strict=True):
            torch.testing.assert_close(found[name][i], g, rtol=1e-10, atol=1e-10, msg=name)


def test_dropout_under_vmap_differs_by_lane():
    model, x = make(SEQUENCES, dropout=0.4), inputs(SEQUENCES)
    params, buffers = stack_module_state([model, model])
    out = vmap(lambda p, b: functional_call(model, (p, b), (x,)), randomness="different")(
        params, buffers
    )
    assert not torch.allclose(out[0], out[1])


@pytest.mark.parametrize("fusion", FUSIONS)
def test_same_seed_same_bits(fusion):
    x, outs = inputs(SEQUENCES), []
    for _ in range(2):
        model = make(SEQUENCES, fusion=fusion, dropout=0.3, seed=4)
        torch.manual_seed(9)
        outs.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    assert all(torch.equal(a, b) for a, b in zip(*outs, strict=True))


@pytest.mark.parametrize("fusion", ["concat", "sum"])
def test_late_fusion_is_a_sum_of_blocks(fusion):
    model, x = make(SEQUENCES, fusion=fusion), inputs(SEQUENCES)
    features, head = encode(model, x), model.fusion.head
    parts = [
        pooled(f, "mean") @ head.weight[:, model.fusion.block(m)].T for m, f in features.items()
    ]
    torch.testing.assert_close(model(x), sum(parts) + head.bias)
    assert [model.fusion.block(m) for m in SEQUENCES] == [
        slice(0, 10),
        slice(10, 20),
        slice(20, 30),
    ]


def test_sum_starts_as_separate_layers():
    head = make(SEQUENCES, fusion="sum").fusion.head
    assert (
        head.weight.abs().max() > 1 / 30**0.5
    )  # beyond what one layer over all features would draw
    assert head.weight.abs().max() <= 1 / 10**0.5


def test_pooling():
    value, mask = (
        torch.arange(12.0).view(2, 3, 2),
        torch.tensor([[True, True, False], [True, False, False]]),
    )
    assert pooled(Padded(value, mask), "mean").tolist() == [[1, 2], [6, 7]]
    assert pooled(Padded(value), "mean").tolist() == [[2, 3], [8, 9]]
    assert pooled(Padded(value, mask), "first").tolist() == [[0, 1], [6, 7]]
    assert pooled(Padded(value[:, 0]), "mean").tolist() == [[0, 1], [6, 7]]


def test_transformer_block_is_the_whole_head():
    fusion = make(SEQUENCES).fusion
    assert all(fusion.block(m) == slice(0, 10) for m in SEQUENCES)


def test_mlp_encoder():
    model, x = make(VECTORS, encoder="mlp", fusion="concat", dropout=0.2), inputs(VECTORS)
    assert encode(model, x)["rgb"].value.shape == (6, 10)
    with pytest.raises(
        ValueError, match=r"model.encoder: modality 'text': the mlp encoder takes vectors.*\(4, 6\)"
    ):
        make(SEQUENCES, encoder="mlp")


def test_unfit_widths_are_refused():
    config = section("fusions", "transformer")
    spec = DataSpec(VECTORS, Task("classification", 2))
    with pytest.raises(ValueError, match="one width"):
        TransformerFusion.build(config, spec, {"rgb": 10, "depth": 20})
    with pytest.raises(ValueError, match=r"model\.fusion: heads must divide width"):
        make_with_heads(3)


def make_with_heads(heads):
    config = SimpleNamespace(
        encoder=section("encoders", "transformer", width=10, heads=2),
        fusion=section("fusions", "transformer", heads=heads),
    )
    return build(config, DataSpec(SEQUENCES, Task("classification", 4)))


@pytest.mark.parametrize("layers", [1, 2])
def test_classifier(layers):
    torch.manual_seed(0)
    classifier = Classifier(10, 3, layers, 2, 0.2).double().eval()
    x = Padded(
        torch.randn(5, 7, 10, dtype=torch.float64),
        torch.arange(7) < torch.tensor([[1], [2], [7], [4], [3]]),
    )
    hidden = classifier.hidden(x)
    torch.testing.assert_close(hidden, classifier.body(x.value, x.mask)[:, 0], rtol=0, atol=1e-13)
    torch.testing.assert_close(classifier(x), classifier.head(hidden))
    vector = Padded(torch.randn(5, 10, dtype=torch.float64))
    assert classifier(vector).shape == (5, 3)
    open_ = Classifier(10, 3, layers, 2, 0.2, padding_mask=False).double().eval()
    open_.load_state_dict(classifier.state_dict())
    assert not torch.allclose(open_(x), classifier(x))
