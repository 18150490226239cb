"""DeepLab v3+: against torchvision's networks, ASPP and decoder written out, checkpointing, and
CGGM's reach.
"""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from tests.support import hp
from tune_mm import plugins
from tune_mm._vision import torchvision
from tune_mm.core.net import Net
from tune_mm.core.types import Batch, Clock, DataSpec, Padded, Task
from tune_mm.models.encoders.cnn import CnnConfig
from tune_mm.models.encoders.deeplab import DeepLabConfig, DeepLabEncoder, ResNet
from tune_mm.models.encoders.unet import UNetConfig
from tune_mm.models.fusions.deeplab import DeepLabFusionConfig
from tune_mm.models.multimodal import build

NAMES = ("flair", "t1ce", "t1", "t2")
TASK = Task(
    "segmentation",
    4,
    (),
    (0.2, 0.3, 0.25, 0.25),
    1.0,
    (("wt", (1, 2, 3)), ("tc", (1, 3)), ("et", (3,))),
)
SHAPE = (1, 24, 24)


def encoder(shape=SHAPE, seed=0, **fields):
    torch.manual_seed(seed)
    return DeepLabEncoder.build(
        DeepLabConfig(**{"depth": 18, "width": 5, **fields}), shape
    ).double()


def values(shape=SHAPE, count=2, seed=1):
    return torch.randn(
        count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def model(names=NAMES[:2], aux=None, task=TASK, shapes=None, encoder=None, **fusion):
    torch.manual_seed(0)
    quiet = {"low": 3, "dropout": 0.0, "dropout_last": 0.0, **fusion}
    parts = SimpleNamespace(
        encoder=encoder or DeepLabConfig(depth=18, width=5), fusion=DeepLabFusionConfig(**quiet)
    )
    return build(parts, DataSpec(shapes or dict.fromkeys(names, SHAPE), task), aux).double()


def unit_of(unit, x, **conv):
    """Convolution, BatchNorm with its running statistics, ReLU."""
    layer, norm = unit[0], unit[1]
    x = F.conv2d(x, layer.weight, **conv)
    x = (x - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    return (x * norm.weight[:, None, None] + norm.bias[:, None, None]).clamp(min=0)


def used(module, *inputs):
    """In evaluation mode, after a training pass that has moved BatchNorm's running statistics."""
    with torch.no_grad():
        module.train()(*inputs)
    return module.eval()


def test_maps_are_a_sixteenth_and_the_level_a_quarter():
    out = encoder((1, 33, 40))(Padded(values((1, 33, 40))))
    assert out.value.shape == (2, 5, 3, 3)
    assert [tuple(x.shape) for x in out.levels] == [(2, 64, 9, 10)]


@pytest.mark.parametrize("depth", [18, 50])
def test_every_other_position_is_what_the_strided_network_computes(depth):
    """Dilation in place of stride adds positions and changes none, borders included (odd sizes: 5 x
    3 -> 3 x 2).
    """
    torch.manual_seed(0)
    reference = getattr(torchvision().models, f"resnet{depth}")(weights=None, num_classes=1)
    own = ResNet(3, depth)
    own.load_state_dict(
        {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    )
    x = values((3, 70, 47))
    found: list[torch.Tensor] = []
    expected: list[torch.Tensor] = []
    with torch.no_grad():
        for net, out in ((own.double().eval(), found), (reference.double().eval(), expected)):
            maps = net.maxpool(net.relu(net.bn1(net.conv1(x))))
            for group in (net.layer1, net.layer2, net.layer3, net.layer4):
                maps = group(maps)
                out.append(maps)
    for mine, theirs in zip(found[:3], expected[:3], strict=True):
        torch.testing.assert_close(mine, theirs)
    assert found[3].shape[2:] == found[2].shape[2:] == (5, 3)
    torch.testing.assert_close(found[3][:, :, ::2, ::2], expected[3], rtol=1e-8, atol=1e-10)


def test_aspp_written_out():
    aspp, x = encoder(rates=(1, 2, 3)).aspp, values((512, 4, 5))
    used(aspp, values((512, 4, 5), seed=2))
    parts = [
        unit_of(b, x, padding=0 if r == 1 else r, dilation=r)
        for b, r in zip(aspp.branches, (1, 2, 3), strict=True)
    ]
    mean = x.flatten(2).mean(2)
    whole = (mean @ aspp.pooled.weight[:, :, 0, 0].T + aspp.pooled.bias).clamp(min=0)
    joined = torch.cat([*parts, whole[:, :, None, None].expand(2, 5, 4, 5)], 1)
    torch.testing.assert_close(aspp(x), unit_of(aspp.project, joined))


def test_the_decoder_written_out_and_a_modality_alone():
    whole = model()
    net = Net(whole, TASK)
    inputs = {m: Padded(values(seed=i)) for i, m in enumerate(NAMES[:2])}
    used(whole, inputs)
    features = net.encode(inputs)

    def formula(features):
        fusion = whole.fusion
        low = unit_of(fusion.low, torch.cat([f.levels[0] for f in features.values()], 1))
        maps = F.interpolate(
            torch.cat([f.value for f in features.values()], 1), (6, 6), mode="bilinear"
        )
        hidden = unit_of(
            fusion.mix[2], unit_of(fusion.mix[0], torch.cat([maps, low], 1), padding=1), padding=1
        )
        logits = torch.einsum("bkhw,ck->bchw", hidden, fusion.head.weight[:, :, 0, 0])
        return F.interpolate(logits + fusion.head.bias[:, None, None], (24, 24), mode="bilinear")

    torch.testing.assert_close(net.fuse(features), formula(features))
    for m, logits in net.unimodal(features).items():
        torch.testing.assert_close(
            logits, formula({k: f if k == m else f.zero() for k, f in features.items()})
        )


def trained(net, params=None):
    """Gradients of a training pass and the statistics it leaves; params: other tensors that the
    encoder is bound to.
    """
    own = dict(net.named_parameters()) if params is None else params

    def call(x):
        return net(x) if params is None else torch.func.functional_call(net, params, (x,))

    out = call(Padded(values()))
    loss = out.value.square().sum() + out.levels[0].square().mean()
    return torch.autograd.grad(loss, list(own.values())), {
        n: b.clone() for n, b in net.named_buffers()
    }


@pytest.mark.parametrize("bound", [False, True])
def test_checkpointing_changes_no_gradient_and_no_statistic(bound):
    """Also where `functional_call` has ended before the second pass."""
    found = []
    for checkpoint in (False, True):
        net = encoder(checkpoint=checkpoint).train()
        other = (
            {n: (p.detach() * 1.1).requires_grad_() for n, p in net.named_parameters()}
            if bound
            else None
        )
        found.append(trained(net, other))
    for plain, again in zip(found[0][0], found[1][0], strict=True):
        torch.testing.assert_close(again, plain, rtol=1e-9, atol=1e-12)
    for name, buffer in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], buffer)
    assert int(found[1][1]["backbone.layer4.0.bn1.num_batches_tracked"]) == 1


def kept_bytes(net: DeepLabEncoder) -> int:
    """Of what a forward pass keeps for the backward pass, but for the parameters."""
    sizes: list[int] = []
    own = {p.data_ptr() for p in net.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(0 if tensor.data_ptr() in own else tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(Padded(values()))
    return sum(sizes)


def test_checkpointing_keeps_less_and_leaves_transforms_alone():
    nets = [encoder(checkpoint=c).train() for c in (False, True)]
    plain, less = map(kept_bytes, nets)
    assert less < 0.5 * plain

    def loss(net, own):
        return torch.func.functional_call(net.eval(), own, (Padded(values()),)).value.sum()

    first, again = (
        torch.func.grad(partial(loss, n))({k: p.detach() for k, p in n.named_parameters()})
        for n in nets
    )
    for name, value in first.items():
        torch.testing.assert_close(again[name], value)


def test_published_size_without_memory():
    """Four ResNet-101 at 160 x 160: ASPP 256 at 10 x 10, low-level 256 at 40 x 40, the head reads
    256.
    """
    with torch.device("meta"):
        net = model(
            NAMES, encoder=DeepLabConfig(), shapes=dict.fromkeys(NAMES, (1, 160, 160)), low=48
        ).float()
        features = {m: net.encoders[m](Padded(torch.empty(2, 1, 160, 160))) for m in NAMES}
        hidden = net.hidden(features)
        assert net.fusion.head(hidden).shape == (2, 4, 160, 160)
    assert features["t1"].value.shape == (2, 256, 10, 10)
    assert features["t1"].levels[0].shape == (2, 256, 40, 40)
    assert hidden.shape == (2, 256, 40, 40)
    assert net.fusion.mix[0][0].weight.shape == (256, 4 * 256 + 48, 3, 3)


def test_weights_of_a_file_fit_any_stem(tmp_path):
    torch.manual_seed(3)
    state = torchvision().models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "net.pt")
    found = encoder(weights=str(tmp_path / "net.pt")).backbone.state_dict()
    torch.testing.assert_close(
        found["conv1.weight"].float(), state["conv1.weight"].sum(1, keepdim=True)
    )
    torch.testing.assert_close(
        found["layer4.1.conv2.weight"].float(), state["layer4.1.conv2.weight"]
    )
    message = r"weights: .*net\.pt is no resnet50: it has no layer1\.0\.conv3\.weight"
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        encoder(depth=50, weights=str(tmp_path / "net.pt"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"shapes": {"a": (24, 24)}},
            r"model\.encoder: modality 'a': the deeplab encoder takes images \(C, H, W\)",
        ),
        ({"shapes": {"a": (1, 16, 40)}}, r"of 17 x 17 or more, but got shape=\(1, 16, 40\)"),
        (
            {"shapes": {"a": (1, 24, 24), "b": (1, 24, 32)}},
            r"model\.fusion: the deeplab fusion needs images of one",
        ),
        (
            {"encoder": UNetConfig(channels=(2, 3, 4))},
            r"needs images of one size and encoders with one level",
        ),
        (
            {"encoder": CnnConfig(channels=(4,), width=4)},
            r"its features do not fit the deeplab fusion",
        ),
    ],
)
def test_what_does_not_fit_is_said(given, message):
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        model(**given)


def bound(name, **settings):
    """A method, four encoders with its extra parts, and a batch of labels in every class."""
    plugin = plugins.load("methods", name)
    method = plugin(plugin.Config(**settings))
    net = Net(model(NAMES, method.aux).train(), TASK)
    target = torch.randint(0, 4, (3, 24, 24), generator=torch.Generator().manual_seed(5))
    batch = Batch(
        {m: Padded(values(count=3, seed=i)) for i, m in enumerate(NAMES)}, target, torch.arange(3)
    )
    return method, net, batch


def test_cggm_scales_every_parameter_of_all_four_encoders_by_its_coefficient():
    """Public code looks for encoders by names that this network does not have, and scales none."""
    method, net, batch = bound("cggm", rho=1.0, lam=0.0)
    state = {"metric": torch.zeros(4, dtype=torch.float64)}
    found = method.grads(net, batch, hp(method.section), state, Clock(0, 0, 1, 1))
    params = net.group(*(f"encoders.{m}" for m in NAMES))
    plain = torch.autograd.grad(
        net.loss(net.fuse(net.encode(batch.inputs)), batch.target), list(params.values())
    )
    assert {
        f"encoders.{m}.{part}"
        for m in NAMES
        for part in ("backbone.conv1.weight", "aspp.project.0.weight")
    } <= set(params)
    for name, value in zip(params, plain, strict=True):
        b = found.logs[f"balance/{name.split('.')[1]}"]
        torch.testing.assert_close(found.grads[name], b * value, rtol=1e-7, atol=1e-10)
    assert len({round(float(found.logs[f"balance/{m}"]), 6) for m in NAMES}) == 4


def test_cggm_direction_is_that_of_the_1x1_convolutions_gradients():
    """The closed form against automatic differentiation, soft Dice and class weights included."""
    method, net, batch = bound("cggm", lam=0.1)
    state = {"metric": torch.zeros(4, dtype=torch.float64)}
    found = method.grads(net, batch, hp(method.section), state, Clock(0, 0, 1, 1))
    features = net.encode(batch.inputs)
    fused = net.loss(net.fuse(features), batch.target)
    (mine,) = torch.autograd.grad(fused, [net.params["fusion.head.weight"]], retain_graph=True)
    for m in NAMES:
        logits = net.apply(f"aux.{m}", lambda part, x: part(x), features[m].detach())
        (own,) = torch.autograd.grad(
            net.loss(logits, batch.target), [net.params[f"aux.{m}.head.weight"]]
        )
        cosine = torch.cosine_similarity(mine.flatten(), own.flatten(), 0)
        torch.testing.assert_close(found.logs[f"train/cos/{m}"], cosine, rtol=1e-7, atol=1e-9)
