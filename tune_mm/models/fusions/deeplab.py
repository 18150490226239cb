"""The decoder of DeepLab v3+ (Chen et al., ECCV 2018) over several encoders: CGGM's fusion for BraTS.

The modalities' low-level maps are concatenated and reduced by a 1 x 1 convolution; their ASPP maps are concatenated,
interpolated to the low-level size and joined with them. Two 3 x 3 convolutions with BatchNorm, ReLU and dropout follow,
and a 1 x 1 convolution predicts the pixels, interpolated to the images. A modality alone: the others' maps, ASPP and
low-level, are 0.
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
from tune_mm.models.encoders.deeplab import unit
from tune_mm.models.encoders.unet import upsampled


class DeepLabFusionConfig(Section):
    """low: channels of the reduced low-level maps. width: of the maps that the head reads; null: the encoders' width,
    so that the head's gradient can be compared with that of a classifier on one modality's features (CGGM). dropout,
    dropout_last: behind the first and the second convolution."""

    name: Literal["deeplab"] = "deeplab"
    low: int = Field(48, ge=1)
    width: int | None = Field(None, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    dropout_last: float = Field(0.1, ge=0, lt=1)


class DeepLabFusion(DenseFusion):
    """Features with maps [B, W, h, w] and one level [B, C, h', w'] -> hidden [B, width, h', w']."""

    Config = DeepLabFusionConfig

    def __init__(
        self,
        maps: int,
        levels: int,
        low: int,
        width: int,
        dropouts: tuple[float, float],
        outputs: int,
        size: tuple[int, int],
    ) -> None:
        """maps, levels: channels of all modalities' maps and low-level maps."""
        super().__init__()
        self.low = unit(levels, low, 1)
        first, last = (nn.Dropout(p) for p in dropouts)
        self.mix = nn.Sequential(unit(maps + low, width, 3), first, unit(width, width, 3), last)
        self.head = DenseHead(width, outputs, size)

    @classmethod
    def build(cls, config: Any, spec: DataSpec, encoders: Mapping[str, Any]) -> DeepLabFusion:
        """See `DenseFusion.build`."""
        sizes, own = {shape[1:] for shape in spec.shapes.values()}, list(encoders.values())
        if len(sizes) > 1 or any(len(e.channels) != 1 for e in own):
            raise ValueError("the deeplab fusion needs images of one size and encoders with one level, such as deeplab")
        height, across = next(iter(spec.shapes.values()))[1:]
        width = config.width or max(e.width for e in own)
        channels = sum(e.width for e in own), sum(e.channels[0] for e in own)
        dropouts = config.dropout, config.dropout_last
        return cls(*channels, config.low, width, dropouts, spec.task.outputs, (height, across))

    def hidden(self, features: Features) -> Tensor:
        """See `LateFusion.hidden`: [B, width, h', w']."""
        low = self.low(torch.cat([f.levels[0] for f in features.values()], 1))
        maps = upsampled(torch.cat([f.value for f in features.values()], 1), low)
        out: Tensor = self.mix(torch.cat([maps, low], 1))
        return out

    def block(self, modality: str) -> slice:
        """All columns: a shared representation."""
        return slice(None)


plugin = DeepLabFusion
