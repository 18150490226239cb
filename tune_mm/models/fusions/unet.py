"""The expanding half of a U-Net (Ronneberger et al., MICCAI 2015) over several contracting ones,
one per modality.

At each scale the modalities' maps are concatenated and mixed by a 1 x 1 convolution. From the
coarsest scale up: the maps are interpolated to the next finer scale, joined with the mixed ones of
that scale, and pass twice 3 x 3 convolution, BatchNorm and ReLU. A 1 x 1 convolution of the finest
maps predicts the pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tune_mm.config import Section
from tune_mm.core.types import DataSpec, Features
from tune_mm.models.base import DenseFusion, DenseHead
from tune_mm.models.encoders.unet import block, upsampled
from tune_mm.models.maps import channels_last


class UNetFusionConfig(Section):
    """The decoder of a U-Net."""

    name: Literal["unet"] = "unet"
    # Of the maps that the head reads; null: the encoders' feature width, so that the head's
    # gradient can be compared with that of a classifier on one modality's features (CGGM).
    width: int | None = Field(None, ge=1)
    # On those maps.
    dropout: float = Field(0.0, ge=0, lt=1)


class UNetFusion(DenseFusion):
    """Features with maps [B, W, h, w] and levels -> hidden [B, width, H, W] at the finest level's
    size.
    """

    Config = UNetFusionConfig

    def __init__(
        self,
        scales: list[list[int]],
        width: int,
        dropout: float,
        outputs: int,
        size: tuple[int, int],
    ) -> None:
        """scales: channels of each modality's maps, by scale, the finest first."""
        super().__init__()
        mixed = [max(own) for own in scales]
        self.mix = nn.ModuleList(
            nn.Conv2d(sum(own), m, 1) for own, m in zip(scales, mixed, strict=True)
        )
        outs = [width, *mixed[1:-1]]  # of the finest scale, then of each but the coarsest
        below = [*outs[1:], mixed[-1]]
        self.up = nn.ModuleList(
            block(m + b, o) for m, b, o in zip(mixed[:-1], below, outs, strict=True)
        )
        self.dropout = nn.Dropout2d(dropout)
        self.head = DenseHead(width, outputs, size)
        channels_last(self)

    @classmethod
    def build(cls, config: Any, spec: DataSpec, encoders: Mapping[str, Any]) -> UNetFusion:
        """See `DenseFusion.build`."""
        scales = []
        for e in encoders.values():
            scales.append([*e.channels, e.width])
        if (
            len({len(own) for own in scales}) > 1
            or len({shape[1:] for shape in spec.shapes.values()}) > 1
        ):
            raise ValueError(
                "the unet fusion needs images of one size and encoders of as many scales"
            )
        height, across = next(iter(spec.shapes.values()))[1:]
        width = config.width or max(own[-1] for own in scales)
        by_scale = []
        for own in zip(*scales, strict=True):
            by_scale.append(list(own))
        return cls(by_scale, width, config.dropout, spec.task.outputs, (height, across))

    def hidden(self, features: Features) -> Tensor:
        """See `LateFusion.hidden`: [B, width, H, W]."""
        found = [[*f.levels, f.value] for f in features.values()]
        mixed = []
        for mix, own in zip(self.mix, zip(*found, strict=True), strict=True):
            mixed.append(mix(torch.cat(own, 1)))
        maps = mixed[-1]
        for up, skip in zip(reversed(self.up), reversed(mixed[:-1]), strict=True):
            maps = up(torch.cat([skip, upsampled(maps, skip)], 1))
        out: Tensor = self.dropout(maps)
        return out

    def block(self, modality: str) -> slice:
        """All columns: a shared representation."""
        return slice(None)


plugin = UNetFusion
