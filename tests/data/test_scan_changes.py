"""Changes of scans in training: one geometry for all, jitter of each sequence, noise of a sample."""

from __future__ import annotations

import math

import numpy as np
import torch

from tune_mm.core.types import Padded
from tune_mm.data._scan_changes import ScanChanges


def coordinates(count: int, size: int) -> tuple[dict[str, Padded], torch.Tensor]:
    """Images in which every pixel has a number of its own (not 0), and a target that holds the same."""
    number = 1 + torch.arange(size * size).view(1, size, size).expand(count, size, size)
    return {m: Padded(k * number[:, None].float()) for k, m in ((1, "a"), (-1, "b"))}, number


def test_geometry_is_the_same_for_all_sequences_and_the_labels() -> None:
    inputs, target = coordinates(12, 10)
    change = ScanChanges(crop=6, flip=True, turn=True)
    found, labels = change(inputs, target, torch.Generator().manual_seed(0))
    assert torch.equal(found["a"].value[:, 0].long(), labels)
    assert torch.equal(found["b"].value, -found["a"].value)
    assert len({tuple(x.flatten().tolist()) for x in labels}) > 6
    same, middle = change(inputs, target)
    assert torch.equal(middle, target[:, 2:8, 2:8])
    assert torch.equal(same["a"].value[:, 0].long(), middle)
    # As CGGM's code: from the middle in training too; smaller slices are not cut.
    _, labels = ScanChanges(crop=6, anywhere=False)(inputs, target, torch.Generator().manual_seed(0))
    assert torch.equal(labels, middle)
    assert ScanChanges(crop=160, turn=True).shape(24, 30) == (24, 24)


def test_jitter_is_affine_on_the_brain_and_noise_comes_with_its_probability() -> None:
    """Of each image: value -> factor x value + offset, background left at 0."""
    images = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    images[:, :, 0] = 0
    target = torch.zeros(40, 6, 6)
    found, _ = ScanChanges(contrast=0.3, brightness=0.2)(
        {"a": Padded(images)}, target, torch.Generator().manual_seed(2)
    )
    out, factors = found["a"].value, []
    assert not out[:, :, 0].any()
    for before, after in zip(images[:, 0, 1:].flatten(1), out[:, 0, 1:].flatten(1), strict=True):
        factor, offset = np.polyfit(before.numpy(), after.numpy(), 1)
        np.testing.assert_allclose(after, factor * before + offset, atol=1e-5)
        assert 0.7 <= factor <= 1.3
        assert abs(offset) <= 0.2
        factors.append(factor)
    assert max(factors) - min(factors) > 0.4
    noisy, _ = ScanChanges(noise=0.3, deviation=0.5)({"a": Padded(images)}, target, torch.Generator().manual_seed(3))
    differs = (noisy["a"].value != images).flatten(1).any(1)
    share = float(differs.double().mean())
    assert abs(share - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 40)
    spread = (noisy["a"].value - images)[differs].flatten(1).std(1)
    assert 0.1 < float(spread.mean()) < 0.4
    assert float(spread.max()) < 0.8
