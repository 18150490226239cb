"""ESANet: its parts and its fusion written out, what an absent modality leaves, its loss over
scales, weights.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tune_mm.core import scales
from tune_mm.core.net import Net
from tune_mm.core.types import VOID, DataSpec, Padded, Task
from tune_mm.models.encoders.esanet import EsanetConfig, EsanetEncoder, NonBottleneck1D
from tune_mm.models.encoders.resnet18 import ResNet18Config
from tune_mm.models.encoders.unet import UNetConfig
from tune_mm.models.fusions._decoder import PyramidPooling, SqueezeExcite, Upsampling
from tune_mm.models.fusions.esanet import EsanetFusionConfig
from tune_mm.models.multimodal import build

SHAPES = {"rgb": (3, 40, 56), "depth": (1, 40, 56)}
TASK = Task("segmentation", 5, weights=(1.0, 0.5, 2.0, 1.0, 3.0))
ENCODER: dict[str, Any] = {"name": "esanet", "channels": (4, 4, 6, 6, 8), "blocks": (1, 1, 2, 1)}
FUSION: dict[str, Any] = {
    "name": "esanet",
    "decoder": (8, 6, 5),
    "blocks": 1,
    "bins": (1, 2),
    "reduction": 2,
}


def model(shapes=None, encoder=None, fusion=None, **fields):
    torch.manual_seed(0)
    fused = fusion or EsanetFusionConfig(**{**FUSION, **fields})
    parts = SimpleNamespace(encoder=encoder or EsanetConfig(**ENCODER), fusion=fused)
    return build(parts, DataSpec(shapes or SHAPES, TASK)).double()


def batch(size=3, shapes=None, seed=1):
    generator = torch.Generator().manual_seed(seed)
    given = shapes or SHAPES
    return {
        m: Padded(torch.randn(size, *s, dtype=torch.float64, generator=generator))
        for m, s in given.items()
    }


def masks(size=3):
    out = torch.randint(0, 5, (size, 40, 56), generator=torch.Generator().manual_seed(2))
    out[:, :3] = VOID
    return out


def used(whole):
    """In evaluation mode, after a training pass that has moved BatchNorm's running statistics."""
    with torch.no_grad():
        whole.train()(batch(6, seed=5))
    return whole.eval()


def norm(x, layer, eps):
    mean, var = layer.running_mean[:, None, None], layer.running_var[:, None, None]
    return (x - mean) / (var + eps).sqrt() * layer.weight[:, None, None] + layer.bias[:, None, None]


def entropy(logits, target):
    """Weighted mean over known pixels of each sample, averaged, on every k-th pixel of the target."""
    heights, widths = (
        torch.arange(n) * full // n for n, full in zip(logits.shape[2:], (40, 56), strict=True)
    )
    target, weights = (
        target[:, heights][:, :, widths],
        torch.tensor(TASK.weights, dtype=logits.dtype),
    )
    own = [
        F.cross_entropy(z[None], y[None], weights, ignore_index=VOID)
        for z, y in zip(logits, target, strict=True)
    ]
    return torch.stack(own).mean()


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (3, 5, 2)])
def test_the_block_written_out(inputs, outputs, stride):
    torch.manual_seed(0)
    net: Any = NonBottleneck1D(inputs, outputs, stride).double()
    x = torch.randn(4, inputs, 7, 6, dtype=torch.float64)
    net(x)
    net.eval()
    out = F.conv2d(x, net.conv3x1_1.weight, net.conv3x1_1.bias, (stride, 1), (1, 0)).clamp(min=0)
    out = norm(
        F.conv2d(out, net.conv1x3_1.weight, net.conv1x3_1.bias, (1, stride), (0, 1)), net.bn1, 1e-3
    ).clamp(min=0)
    out = F.conv2d(out, net.conv3x1_2.weight, net.conv3x1_2.bias, 1, (1, 0)).clamp(min=0)
    out = norm(F.conv2d(out, net.conv1x3_2.weight, net.conv1x3_2.bias, 1, (0, 1)), net.bn2, 1e-3)
    own = (
        x
        if stride == 1
        else norm(F.conv2d(x, net.downsample[0].weight, stride=stride), net.downsample[1], 1e-5)
    )
    torch.testing.assert_close(net(x), (out + own).clamp(min=0))


def test_blocks_add_more_to_the_variance_than_all_else():
    """As the published weights were trained: 1e-3 in the blocks' two BatchNorms, in the decoder's
    too; else 1e-5.
    """
    whole = model()
    found = {
        n: layer.eps
        for n, layer in whole.named_modules()
        if isinstance(layer, torch.nn.BatchNorm2d)
    }
    blocks = [n for n, layer in whole.named_modules() if isinstance(layer, NonBottleneck1D)]
    assert {n.split(".")[0] for n in blocks} == {"encoders", "fusion"}
    own = {f"{n}.{bn}" for n in blocks for bn in ("bn1", "bn2")}
    assert {n for n, eps in found.items() if eps == 1e-3} == own
    assert {found[n] for n in found.keys() - own} == {1e-5}


def test_upsampling_starts_as_bilinear_interpolation():
    x = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(Upsampling(3)(x), F.interpolate(x, scale_factor=2, mode="bilinear"))


def test_squeeze_and_excitation_written_out():
    torch.manual_seed(0)
    net, x = SqueezeExcite(6, 2), torch.randn(2, 6, 3, 4)
    hidden = (net.squeeze.weight @ x.flatten(2).mean(2).T + net.squeeze.bias[:, None]).clamp(min=0)
    gate = 1 / (1 + torch.exp(-(net.excite.weight @ hidden + net.excite.bias[:, None])))
    assert hidden.shape == (3, 2)
    torch.testing.assert_close(net(x), torch.einsum("bchw,cb->bchw", x, gate))
    assert not net(torch.zeros(2, 6, 3, 4)).any()


def test_the_published_sizes():
    """At 480 x 640 in NYUv2's 40 classes, without memory."""
    spec = DataSpec({"rgb": (3, 480, 640), "depth": (1, 480, 640)}, Task("segmentation", 40))
    with torch.device("meta"):
        whole = build(SimpleNamespace(encoder=EsanetConfig(), fusion=EsanetFusionConfig()), spec)
        rgb: Any = whole.encoders["rgb"]
        x, sizes = Padded(torch.zeros(2, 3, 480, 640)), []
        for number in range(1, 6):
            x = rgb.stage(number, x)
            sizes.append(tuple(x.value.shape[1:]))
        net = Net(whole, spec.task)
        hidden = net.hidden(
            net.encode({m: Padded(torch.zeros(2, *s)) for m, s in spec.shapes.items()})
        )
        logits = net.head(hidden)
    sides = ((2, 64), (4, 64), (8, 128), (16, 256), (32, 512))
    assert sizes == [(1, channels, 480 // s, 640 // s) for s, channels in sides]
    assert hidden.shape == (2, 128, 120, 160)
    assert [z.shape[1:] for z in (logits, *scales.coarser(logits))] == [
        (40, 480, 640),
        (40, 15, 20),
        (40, 30, 40),
        (40, 60, 80),
    ]


def literal(whole, features, present):
    """The hidden, from the formula of the module: F_s, pyramid pooling, three modules."""
    fusion, maps, fused = whole.fusion, {m: features[m].value[:, 0] for m in present}, []
    for s in range(5):
        if s:
            maps = {
                m: whole.encoders[m].stage(s + 1, Padded(x[:, None])).value[:, 0]
                for m, x in maps.items()
            }
        fused.append(sum(fusion.gates[s][m](x) for m, x in maps.items()))
        if "rgb" in maps:
            maps["rgb"] = fused[-1]
    deep, context = fused[-1], fusion.context
    pools = [
        F.interpolate(branch(F.adaptive_avg_pool2d(deep, k)), deep.shape[2:], mode="nearest")
        for k, branch in zip((1, 2), context.branches, strict=True)
    ]
    out, sides = context.join(torch.cat([deep, *pools], 1)), []
    for module, skip in zip(fusion.decoder, fused[3:0:-1], strict=True):
        body = module.body(out)
        sides.append(torch.einsum("bkhw,ck->bchw", body, module.side.weight[:, :, 0, 0]))
        sides[-1] = sides[-1] + module.side.bias[:, None, None]
        wide = F.conv2d(
            F.pad(
                F.interpolate(body, scale_factor=2, mode="nearest"), (1, 1, 1, 1), mode="replicate"
            ),
            module.up.conv.weight,
            groups=body.shape[1],
        )
        out = wide[:, :, : skip.shape[2], : skip.shape[3]] + module.skip(skip)
    return out, sides


def test_the_fusion_written_out_and_with_a_modality_at_zero():
    """40 x 56: stages of 20 x 28, 10 x 14, 5 x 7, 3 x 4, 2 x 2, where upsampled maps are cut to the
    odd ones.
    """
    whole = used(model())
    net = Net(whole, TASK)
    features = net.encode(batch())
    torch.testing.assert_close(net.hidden(features), literal(whole, features, ["rgb", "depth"])[0])
    assert net.hidden(features).shape == (3, 5, 10, 14)
    for m, found in net.unimodal_hidden(features).items():
        torch.testing.assert_close(found, literal(whole, features, [m])[0])
        (other,) = features.keys() - {m}
        torch.testing.assert_close(found, net.hidden(features, (other,)))


def test_a_modality_alone_reaches_its_own_encoder_only():
    whole = used(model())
    net = Net(whole, TASK)
    for m, logits in net.unimodal(net.encode(batch())).items():
        params = net.group("encoders")
        found = torch.autograd.grad(
            logits.square().sum(), list(params.values()), allow_unused=True, retain_graph=True
        )
        assert {
            name.split(".")[1] for name, g in zip(params, found, strict=True) if g is not None
        } == {m}


def test_the_loss_is_the_sum_over_scales_in_training_and_of_the_finest_in_evaluation():
    whole, target = model(), masks()
    net = Net(whole, TASK)
    features = net.encode(batch())
    logits = net.fuse(features)
    hidden, sides = literal(whole, features, ["rgb", "depth"])
    expected = entropy(net.head(hidden), target) + sum(entropy(z, target) for z in sides)
    torch.testing.assert_close(net.loss(logits, target), expected)
    whole.eval()
    logits = net.fuse(net.encode(batch()))
    assert scales.coarser(logits) == ()
    torch.testing.assert_close(net.loss(logits, target), entropy(logits, target))


def test_one_image_has_no_statistics_of_its_mean():
    """A batch of one: the branch of the whole map's mean is normalised by running statistics, which
    stay.
    """
    pool: Any = PyramidPooling(4, 5, (1, 2)).double().train()
    norm_of_mean = pool.branches[0][1]
    norm_of_mean.running_mean.fill_(0.5), norm_of_mean.running_var.fill_(2.0)
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    got: dict[str, torch.Tensor] = {}
    pool.branches[0][2].register_forward_hook(lambda layer, given, out: got.update(mean=out))
    pool(x)
    narrow = torch.einsum("bc,kc->bk", x.mean((2, 3)), pool.branches[0][0].weight[:, :, 0, 0])
    expected = ((narrow - 0.5) / (2.0 + norm_of_mean.eps) ** 0.5).relu()
    torch.testing.assert_close(got["mean"][:, :, 0, 0], expected)
    assert torch.equal(norm_of_mean.running_mean, torch.full_like(norm_of_mean.running_mean, 0.5))


def test_without_side_outputs_there_is_one_scale():
    net = Net(model(sides=False), TASK)
    assert scales.coarser(net.fuse(net.encode(batch()))) == ()
    assert not [name for name in net.params if ".side." in name]


def test_three_modalities_and_another_encoder():
    shapes = {**SHAPES, "thermal": (2, 40, 56)}
    whole = model(shapes, ResNet18Config())
    net = Net(whole.float().eval(), TASK)
    with torch.no_grad():
        features = net.encode({m: Padded(x.value.float()) for m, x in batch(2, shapes).items()})
        assert net.fuse(features).shape == (2, 5, 40, 56)
        assert set(net.unimodal(features)) == set(shapes)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"encoder": UNetConfig()},
            r"model\.encoder: modality 'rgb': its features do not fit the esanet fusion",
        ),
        (
            {"shapes": {"rgb": (3, 40, 56), "depth": (1, 40, 40)}},
            r"model\.fusion: .* needs images .* of one size",
        ),
        (
            {"shapes": {"rgb": (2, 3, 40, 56), "depth": (1, 40, 56)}},
            r"model\.fusion: .* needs images",
        ),
        ({"shapes": {"rgb": (40, 56)}}, r"model\.encoder: .* the esanet encoder takes images"),
    ],
)
def test_what_does_not_fit_is_said(given, message):
    with pytest.raises(ValueError, match=message):
        model(**given)


def test_checkpointing_and_dropout_are_refused_together():
    with pytest.raises(ValueError, match=r"checkpoint needs dropout 0, but got dropout=0\.1"):
        EsanetConfig(dropout=0.1, checkpoint=True)


@pytest.mark.parametrize("prefix", ["", "module.encoder."])
def test_weights_of_a_file(prefix, tmp_path):
    """As they are, or of the published file's names; the stem of one channel is the sum over the
    file's three.
    """
    torch.manual_seed(3)
    shape = {k: ENCODER[k] for k in ("channels", "blocks")}
    source = EsanetEncoder(3, **shape)
    state = {f"{prefix}{k}": v for k, v in source.state_dict().items()} | {
        f"{prefix}fc.weight": torch.zeros(2, 2)
    }
    torch.save({"state_dict": state}, tmp_path / "net.pth")
    settings = EsanetConfig(**ENCODER, weights=str(tmp_path / "net.pth"))
    same, grey = (EsanetEncoder.build(settings, (c, 32, 32)).eval() for c in (3, 1))
    x = torch.randn(2, 1, 32, 32).repeat(1, 3, 1, 1)
    torch.testing.assert_close(same(Padded(x)).value, source.eval()(Padded(x)).value)
    torch.testing.assert_close(grey(Padded(x[:, :1])).value, source(Padded(x)).value)
    other = EsanetConfig(**{**ENCODER, "blocks": (1, 1, 1, 1)}, weights=str(tmp_path / "net.pth"))
    with pytest.raises(
        ValueError, match=r"net\.pth is no esanet encoder: it has unknown layer3\.1\."
    ):
        EsanetEncoder.build(other, (3, 32, 32))
