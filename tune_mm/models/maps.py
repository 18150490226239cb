"""What the encoders of images and frames share: maps, applying layers to every frame, averages over
real frames.

Maps are [B, T, C, H, W] throughout; an image is one frame (T = 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tune_mm.core.features import pooled
from tune_mm.core.types import Padded


def input_channels(encoder: str, shape: tuple[int, ...]) -> int:
    """C of samples of `shape`. Raises ValueError for shapes that are neither images nor frames."""
    if len(shape) not in (3, 4):
        raise ValueError(
            f"the {encoder} encoder takes images (C, H, W) or frames (T, C, H, W), got shape {shape}"
        )
    return shape[-3]


def as_frames(x: Padded) -> Padded:
    """Frames [B, T, C, H, W] as they are, images [B, C, H, W] as one frame."""
    if x.value.dim() == 4:
        return Padded(x.value[:, None], x.mask)
    return x


def each_frame(layer: Callable[[Tensor], Tensor], x: Padded) -> Padded:
    """`layer`, from [N, C, H, W] to [N, C', H', W'], on every frame of [B, T, C, H, W]: one batch
    of N = B T images.
    """
    return Padded(layer(x.value.flatten(0, 1)).unflatten(0, x.value.shape[:2]), x.mask)


def average(x: Padded) -> Tensor:
    """[B, C]: the mean of maps [B, T, C, H, W] over all positions and the real frames."""
    return pooled(Padded(x.value.mean((3, 4)), x.mask), "mean")


def channels_last(module: nn.Module) -> None:
    """Lays the weights of a module's convolutions out channels last in memory, in place; maps then
    follow them.

    Same numbers but for rounding. On a CPU pooling and BatchNorm are twice as fast that way, on a
    GPU tensor cores want it.
    """
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
