"""Features as one vector per sample."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from tune_mm.core.types import Padded

Pool = Literal["mean", "first"]  # over the real steps of a sequence, or its first step


def pooled(features: Padded, pool: Pool = "mean") -> Tensor:
    """[B, W] of vectors [B, W], sequences [B, T, W] or maps [B, (T,) W, h, w].

    Vectors stay as they are; maps are averaged over all but W.
    """
    value = features.value
    if value.ndim == 2:
        return value
    if value.ndim == 4:
        return value.mean((2, 3))
    if value.ndim == 5:
        return value.mean((1, 3, 4))
    if pool == "first":
        return value[:, 0]
    if features.mask is None:
        return value.mean(1)
    real = features.mask[..., None].to(value.dtype)
    return (value * real).sum(1) / real.sum(1).clamp(min=1)
