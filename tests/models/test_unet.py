"""The small U-Net: shapes, its formula written out, what it refuses, and pixels only where they are
the task.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from tune_mm.core.net import Net
from tune_mm.core.types import DataSpec, Padded, Task
from tune_mm.models.encoders.cnn import CnnConfig
from tune_mm.models.encoders.unet import UNetConfig
from tune_mm.models.fusions.concat import ConcatConfig
from tune_mm.models.fusions.unet import UNetFusionConfig
from tune_mm.models.multimodal import build

SHAPES = {"a": (1, 14, 18), "b": (3, 14, 18)}
TASK = Task("segmentation", 5)


def model(channels=(4, 6, 8), task=TASK, shapes=None, encoder=None, fusion=None):
    torch.manual_seed(0)
    parts = SimpleNamespace(
        encoder=encoder or UNetConfig(channels=channels), fusion=fusion or UNetFusionConfig()
    )
    return build(parts, DataSpec(shapes or SHAPES, task)).double()


def batch(size=3):
    generator = torch.Generator().manual_seed(1)
    return {
        m: Padded(torch.randn(size, *s, dtype=torch.float64, generator=generator))
        for m, s in SHAPES.items()
    }


def test_levels_halve_and_the_head_reads_the_finest():
    """14 x 18, 7 x 9, 3 x 4 (pooling drops an odd last row)."""
    net = Net(model(), TASK)
    features = net.encode(batch())
    for f in features.values():
        assert [tuple(x.shape[1:]) for x in (*f.levels, f.value)] == [
            (4, 14, 18),
            (6, 7, 9),
            (8, 3, 4),
        ]
    assert net.hidden(features).shape == (3, 8, 14, 18)
    assert net.fuse(features).shape == (3, 5, 14, 18)


def test_the_decoder_written_out():
    """Two scales: mix both, interpolate the coarse one, join the fine one first, two convolutions,
    the head.
    """
    whole = model(channels=(4, 6)).eval()
    features = Net(whole, TASK).encode(batch())
    fusion = whole.fusion
    fine = fusion.mix[0](torch.cat([f.levels[0] for f in features.values()], 1))
    coarse = fusion.mix[1](torch.cat([f.value for f in features.values()], 1))
    joined = torch.cat([fine, F.interpolate(coarse, (14, 18), mode="bilinear")], 1)
    maps = fusion.up[0](joined)
    expected = (
        torch.einsum("bkhw,ck->bchw", maps, fusion.head.weight[:, :, 0, 0])
        + fusion.head.bias[:, None, None]
    )
    torch.testing.assert_close(Net(whole, TASK).fuse(features), expected)


def test_a_modality_alone_is_the_others_maps_at_zero():
    net = Net(model().eval(), TASK)
    features = net.encode(batch())
    for m, logits in net.unimodal(features).items():
        others = {k: f if k == m else f.zero() for k, f in features.items()}
        torch.testing.assert_close(logits, net.fuse(others))
        assert all(not x.any() for k, f in others.items() if k != m for x in f.tensors)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"shapes": {"a": (16, 16)}},
            r"model\.encoder: modality 'a': the unet encoder takes images \(C, H, W\)",
        ),
        (
            {"shapes": {"a": (1, 3, 9)}},
            r"modality 'a': .* need images of 4 x 4 or more, but got shape=\(1, 3, 9\)",
        ),
        (
            {"shapes": {"a": (1, 8, 8), "b": (1, 8, 16)}},
            r"model\.fusion: the unet fusion needs images of one size",
        ),
        (
            {"fusion": ConcatConfig()},
            r"model\.fusion: must be one of .*unet.* for segmentation, got 'concat', which has one pred",
        ),
        (
            {"task": Task("classification", 3)},
            r"model\.fusion: must be one of bilinear, .* for classification, got 'unet', which predicts pixels",
        ),
        (
            {"encoder": CnnConfig()},
            r"model\.encoder: modality 'a': its features do not fit the unet fusion",
        ),
    ],
)
def test_what_does_not_fit_is_said(given, message):
    with pytest.raises(ValueError, match=message):
        model(**given)
