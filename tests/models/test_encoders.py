"""Encoders of images and frames: against torchvision's network, the formula of the small one, and
their stages.
"""

from __future__ import annotations

import math
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from tune_mm import plugins
from tune_mm._vision import torchvision
from tune_mm.core.types import Padded

IMAGES, FRAMES = (3, 32, 40), (3, 3, 32, 40)


def encoder(name, shape, seed=0, **fields):
    cls = plugins.load("encoders", name)
    torch.manual_seed(seed)
    return cls.build(cls.Config(**fields), shape).double()


def values(shape, count=2, seed=1):
    return torch.randn(
        count, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def used(encoder_, shape):
    """In evaluation mode, after a training pass that has moved BatchNorm's running statistics."""
    with torch.no_grad():
        encoder_.train()(Padded(values(shape, 4, seed=7) * 2 + 1))
    return encoder_.eval()


@pytest.fixture(scope="module")
def reference():
    """torchvision's own network in evaluation mode, with running statistics away from 0 and 1."""
    torch.manual_seed(3)
    net = torchvision().models.resnet18(weights=None)
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 32, 40) * 2 + 1)
    return net.double().eval()


@pytest.fixture
def written(reference, tmp_path):
    """Writes a changed copy of the reference's state dict and returns its path."""

    def write(change=lambda state: state):
        # float32, which the reference was made in: the same numbers in half the bytes.
        state = {
            k: v.float() if v.is_floating_point() else v for k, v in reference.state_dict().items()
        }
        torch.save(change(state), tmp_path / "net.pt")
        return str(tmp_path / "net.pt")

    return write


def features_of(net, x):
    """torchvision's network up to its classifier."""
    fc, net.fc = net.fc, torch.nn.Identity()
    try:
        return net(x)
    finally:
        net.fc = fc


@pytest.mark.parametrize("shape", [(1, 257, 188), (3, 64, 64), (2, 3, 33, 64)])
def test_resnet18_shapes(shape):
    net = encoder("resnet18", shape).float().eval()
    x = Padded(torch.randn(1, *shape))
    with torch.no_grad():
        assert net(x).value.shape == (1, 512) == (1, net.width)
        for number, channels in enumerate(net.channels, 1):
            x = net.stage(number, x)
            side = 2 ** (number + 1)
            frames = shape[0] if len(shape) == 4 else 1
            assert x.value.shape == (
                1,
                frames,
                channels,
                math.ceil(shape[-2] / side),
                math.ceil(shape[-1] / side),
            )


def test_resnet18_equals_torchvision_s(reference):
    net = encoder("resnet18", IMAGES)
    net.load_state_dict(
        {k: v for k, v in reference.state_dict().items() if not k.startswith("fc.")}
    )
    x = values(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(
            net.eval()(Padded(x)).value, features_of(reference, x), rtol=1e-10, atol=1e-12
        )


def test_resnet18_starts_kaiming_normal():
    """Standard deviation sqrt(2 / fan out), fan out = 64 filters of 7 x 7, also for a stem of
    another width.
    """
    wanted = math.sqrt(2 / (64 * 49))
    for channels in (1, 3):
        assert encoder("resnet18", (channels, 8, 8)).conv1.weight.std().item() == pytest.approx(
            wanted, rel=0.05
        )


def test_resnet18_averages_frames():
    net = used(encoder("resnet18", FRAMES), FRAMES)
    x = values(FRAMES)
    with torch.no_grad():
        each = [net(Padded(x[:, t])).value for t in range(3)]
        torch.testing.assert_close(net(Padded(x)).value, sum(each) / 3)


@pytest.mark.parametrize("name", ["resnet18", "cnn"])
def test_only_real_frames_count(name):
    net = used(encoder(name, FRAMES), FRAMES)
    x = values(FRAMES)
    x[1, 1:] = 1e3
    mask = torch.tensor([[True, True, True], [True, False, False]])
    with torch.no_grad():
        found = net(Padded(x, mask)).value
        wanted = torch.cat([net(Padded(x[:1])).value, net(Padded(x[1:, :1])).value])
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", ["resnet18", "cnn"])
@pytest.mark.parametrize("shape", [IMAGES, FRAMES])
def test_stages_make_up_the_whole(name, shape):
    net = used(encoder(name, shape), shape)
    x = Padded(values(shape))
    with torch.no_grad():
        whole = net(x).value
        net.until = 2
        maps = net(x)
        assert maps.value.shape[:3] == (2, shape[0] if len(shape) == 4 else 1, net.channels[1])
        for number in range(3, len(net.channels) + 1):
            maps = net.stage(number, maps)
        assert torch.equal(net.pool(maps).value, whole)


@pytest.mark.parametrize("name", ["resnet18", "cnn"])
@pytest.mark.parametrize("shape", [(4, 6), (7,), (1, 2, 3, 4, 5)])
def test_other_shapes_are_refused(name, shape):
    with pytest.raises(
        ValueError,
        match=rf"the {name} encoder takes images \(C, H, W\) or frames .*got shape \({shape[0]}",
    ):
        encoder(name, shape)


def prefixed(state):
    return {f"module.{k}": v for k, v in state.items()}


def wrapped(state):
    return {"epoch": 3, "state_dict": prefixed(state)}


def uncounted(state):
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


@pytest.mark.parametrize("change", [dict, prefixed, wrapped, uncounted])
def test_weights_of_a_file(reference, written, change):
    net = encoder("resnet18", IMAGES, weights=written(change)).eval()
    x = values(IMAGES)
    with torch.no_grad():
        torch.testing.assert_close(
            net(Padded(x)).value, features_of(reference, x), rtol=1e-10, atol=1e-12
        )


@pytest.mark.parametrize("channels", [1, 2])
def test_weights_for_another_stem(reference, written, channels):
    """Equal channels pass as a grey image passes the file's network."""
    net = encoder("resnet18", (channels, 32, 40), weights=written()).eval()
    grey = values((1, 32, 40))
    with torch.no_grad():
        found = net(Padded(grey.repeat(1, channels, 1, 1))).value
        torch.testing.assert_close(found, features_of(reference, grey.repeat(1, 3, 1, 1)))


def test_weights_under_the_meta_device(written):
    path = written()
    with torch.device("meta"):
        net = encoder("resnet18", (1, 32, 40), weights=path)
    assert all(p.is_meta for p in net.parameters())


def without(name):
    return lambda state: {k: v for k, v in state.items() if k != name}


def deeper(state):
    return {**state, "layer1.2.conv1.weight": torch.zeros(1)}


def wider(state):
    return {**state, "layer2.0.conv1.weight": torch.zeros(128, 32, 3, 3)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without("bn1.weight"), "is no resnet18: it has no bn1.weight$"),
        (without("conv1.weight"), "it has no conv1.weight$"),
        (deeper, "it has unknown layer1.2.conv1.weight$"),
        (wider, r"layer2.0.conv1.weight must have shape \(128, 64, 3, 3\), got \(128, 32, 3, 3\)"),
        (
            lambda state: {**state, "conv1.weight": torch.zeros(64, 3, 3, 3)},
            r"\(64, 3, 7, 7\), got \(64, 3, 3, 3\)",
        ),
        (lambda state: {"model": 5}, "holds no state dict"),
        (lambda state: [1, 2], "holds no state dict"),
        (lambda state: {}, "it has no conv1.weight, bn1.weight, bn1.bias and 97 more"),
    ],
)
def test_weights_that_do_not_fit_are_refused(written, change, message):
    path = written(change)
    with pytest.raises(ValueError, match=message) as caught:
        encoder("resnet18", IMAGES, weights=path)
    assert str(caught.value).startswith(f"weights: {path} ")


@pytest.mark.parametrize("content", [b"", b"no tensors", b"PK\x03\x04 half a file"])
def test_files_that_are_no_weights_are_refused(tmp_path, content):
    path = tmp_path / "net.pth"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"net\.pth cannot be read"):
        encoder("resnet18", IMAGES, weights=str(path))


def test_code_in_weights_is_not_run(reference, tmp_path):
    torch.save(reference, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"net\.pt cannot be read; must be a state dict"):
        encoder("resnet18", IMAGES, weights=str(tmp_path / "net.pt"))


def test_missing_weights_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"weights: no file .*nowhere\.pt"):
        encoder("resnet18", IMAGES, weights=str(tmp_path / "nowhere.pt"))


def test_safetensors(reference, tmp_path):
    path = tmp_path / "net.safetensors"
    if find_spec("safetensors") is None:
        path.write_bytes(b"")
        with pytest.raises(ValueError, match=r"net\.safetensors needs the package safetensors"):
            encoder("resnet18", IMAGES, weights=str(path))
        return
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in reference.state_dict().items()}, path)
    found = encoder("resnet18", IMAGES, weights=str(path)).state_dict()
    assert all(torch.equal(v, reference.state_dict()[k]) for k, v in found.items())
    path.write_bytes(b"no tensors")
    with pytest.raises(ValueError, match=r"net\.safetensors cannot be read"):
        encoder("resnet18", IMAGES, weights=str(path))


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("training", [True, False])
def test_cnn_equals_its_formula(norm, training):
    """Per stage conv, (x - mean) / sqrt(var + eps) with weight 1 and bias 0, ReLU, max pooling;
    mean, linear, ReLU.
    """
    shape = (2, 3, 9, 7)
    net = used(encoder("cnn", shape, channels=(4, 6), width=5, norm=norm), shape).train(training)
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == (2 if norm == "batch" else 0)
    statistics = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]
    x = values(shape)
    maps = x.reshape(4, 3, 9, 7)
    for number, conv in enumerate(convs):
        maps = F.conv2d(maps, conv.weight, conv.bias, padding=1)
        if norms:
            mean, var = statistics[number]
            if training:
                mean, var = maps.mean((0, 2, 3)), maps.var((0, 2, 3), unbiased=False)
            maps = (maps - mean[:, None, None]) / (var[:, None, None] + norms[number].eps).sqrt()
        maps = maps.clamp(min=0)
        h, w = maps.shape[2] // 2, maps.shape[3] // 2
        maps = maps[:, :, : 2 * h, : 2 * w].reshape(4, -1, h, 2, w, 2).amax((3, 5))
    wanted = (
        maps.mean((2, 3)).reshape(2, 2, -1).mean(1) @ net.project.weight.T + net.project.bias
    ).clamp(min=0)
    torch.testing.assert_close(net(Padded(x)).value, wanted)


def test_cnn_pools_while_it_can():
    net = encoder("cnn", (1, 5, 2), channels=(2, 3, 4))
    x, sides = Padded(values((1, 5, 2))), []
    for number in (1, 2, 3):
        x = net.stage(number, x)
        sides.append(tuple(x.value.shape[-2:]))
    assert sides == [(2, 1), (2, 1), (2, 1)]


def test_cnn_dropout_is_on_the_features_in_training():
    net = encoder("cnn", (1, 8, 8), channels=(4,), width=200, dropout=0.5, norm="none")
    x = Padded(values((1, 8, 8)))
    kept = net.eval()(x).value
    dropped = net.train()(x).value
    assert ((dropped == 0) & (kept > 0)).any()
    left = dropped != 0
    torch.testing.assert_close(dropped[left], 2 * kept[left])


@pytest.mark.parametrize(
    "fields", [{"channels": ()}, {"channels": (4, 0)}, {"width": 0}, {"norm": "layer"}]
)
def test_cnn_settings_are_checked(fields):
    with pytest.raises(ValidationError, match=next(iter(fields))):
        plugins.load("encoders", "cnn").Config(**fields)
