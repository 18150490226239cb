"""Changes of scans in training: one geometry for all, jitter of each sequence, noise of a sample."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from tune_mm.core.types import Padded
from tune_mm.data.images.scan_changes import ScanChanges


def coordinates(count: int, size: int) -> tuple[dict[str, Padded], torch.Tensor]:
    """Images in which every pixel has a number of its own (not 0), and a target that holds the
    same.
    """
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
    _, labels = ScanChanges(crop=6, anywhere=False)(
        inputs, target, torch.Generator().manual_seed(0)
    )
    assert torch.equal(labels, middle)
    assert ScanChanges(crop=160, turn=True).shape(24, 30) == (24, 24)


def test_jitter_is_affine_on_the_brain_and_noise_comes_with_its_probability() -> None:
    """Of each image: value -> factor x value + offset, background left at 0."""
    images = torch.randn(
        40, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    ).float()
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
    noisy, _ = ScanChanges(noise=0.3, deviation=0.5)(
        {"a": Padded(images)}, target, torch.Generator().manual_seed(3)
    )
    differs = (noisy["a"].value != images).flatten(1).any(1)
    share = float(differs.double().mean())
    assert abs(share - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 40)
    spread = (noisy["a"].value - images)[differs].flatten(1).std(1)
    assert 0.1 < float(spread.mean()) < 0.4
    assert float(spread.max()) < 0.8


PARTS: dict[str, dict[str, Any]] = {
    "contrast": {"contrast": 0.3},
    "brightness": {"brightness": 0.2},
    "noise": {"noise": 0.5, "deviation": 0.4},
}


def scans(count: int) -> tuple[dict[str, Padded], torch.Tensor]:
    """Four sequences of 8 x 8, none of whose pixels is 0, and their labels."""
    values = 1 + torch.rand(4, count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return {m: Padded(x) for m, x in zip("abcd", values, strict=True)}, torch.zeros(count, 8, 8)


def test_noise_is_drawn_once_per_sample_for_all_sequences() -> None:
    """A share `noise` of 400 samples, not 1 - (1 - noise)^4, is noisy; all sequences are then, with
    one deviation.
    """
    inputs, target = scans(400)
    found, _ = ScanChanges(noise=0.1, deviation=1.0)(
        inputs, target, torch.Generator().manual_seed(0)
    )
    noise = torch.stack([found[m].value - inputs[m].value for m in inputs]).flatten(2)
    differs = noise.ne(0).any(2)
    assert torch.equal(differs, differs[:1].expand(4, 400))
    share = float(differs[0].double().mean())
    assert abs(share - 0.1) < 3 * math.sqrt(0.1 * 0.9 / 400)
    spread = noise[:, differs[0]].std(2)
    # The deviation of 64 pixels is within 4 standard errors, 4 / sqrt(2 * 64), of the one that they
    # were drawn with.
    common = noise[:, differs[0]].transpose(0, 1).flatten(1).std(1)
    assert float((spread / common - 1).abs().max()) < 4 / math.sqrt(2 * 64)
    assert float(common.max()) > 4 * float(common.min())
    # The grain itself is another in every sequence: correlations of n pixels are within 4 / sqrt(n)
    # of 0.
    grain = (noise[:, differs[0]] / common[:, None]).flatten(1)
    assert float((torch.corrcoef(grain) - torch.eye(4)).abs().max()) < 4 / math.sqrt(grain.shape[1])


@pytest.mark.parametrize("name", PARTS)
def test_one_setting_does_not_change_what_another_draws(name: str) -> None:
    """No pixel is 0, so that the changes add up: factor x value + offset + noise. What one of them
    adds is the same with and without the others, in the first batch and in the second.
    """
    inputs, target = scans(50)

    def changed(*names: str) -> torch.Tensor:
        settings = {k: v for own in names for k, v in PARTS[own].items()}
        change, stream = (
            ScanChanges(crop=6, flip=True, **settings),
            torch.Generator().manual_seed(3),
        )
        batches = [change(inputs, target, stream)[0] for _ in range(2)]
        return torch.stack([x.value for batch in batches for x in batch.values()])

    added = changed(name) - changed()
    among = changed(*PARTS) - changed(*(k for k in PARTS if k != name))
    torch.testing.assert_close(among, added, atol=1e-5, rtol=0)
    assert added.flatten(1).abs().amax(1).min() > 0.1
