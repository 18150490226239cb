"""Two small image modalities for convolutional encoders with BatchNorm, in memory."""

from __future__ import annotations

from typing import Any

import torch

from tests import support
from tune_mm.config import Config, with_overrides
from tune_mm.core.types import Dataset, DataSpec, Padded, Split, Task

CNN = {"name": "cnn", "channels": [4, 6], "width": 8}


def dataset(count: int = 32) -> Dataset:
    """Images [N, 1, 8, 8] of two modalities, of three classes by their mean."""
    generator = torch.Generator().manual_seed(0)

    def split(n: int) -> Split:
        label = torch.randint(0, 3, (n,), generator=generator)
        shape = (n, 1, 8, 8)
        inputs = {
            m: Padded(torch.randn(shape, generator=generator) + label[:, None, None, None])
            for m in "ab"
        }
        return Split(inputs, label, tuple(str(k) for k in range(n)))

    spec = DataSpec(dict.fromkeys("ab", (1, 8, 8)), Task("classification", 3))
    return Dataset("images", spec, {"train": split(count), "val": split(16), "test": split(16)})


def config(method: str, fusion: str = "concat", **settings: Any) -> Config:
    """`support.config` with small convolutional encoders."""
    base = with_overrides(support.base_config(), {"model.encoder": CNN})
    return support.with_method(support.with_fusion(base, fusion), method, ("a", "b"), **settings)
