"""The decoder of DeepLab v3+ (Chen et al., ECCV 2018) over several encoders: CGGM's fusion for
BraTS.

The modalities' low-level maps are concatenated and reduced by a 1 x 1 convolution; their ASPP maps
are concatenated, interpolated to the low-level size and joined with them. Two 3 x 3 convolutions
with BatchNorm, ReLU and dropout follow, and a 1 x 1 convolution predicts the pixels, interpolated
to the images. A modality alone: the others' maps, ASPP and low-level, are 0; the convolutions then
skip their channels, which is the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tune_mm.config import Section
from tune_mm.core.types import DataSpec, Features
from tune_mm.models.base import DenseFusion, DenseHead
from tune_mm.models.encoders.deeplab import unit
from tune_mm.models.encoders.unet import upsampled


class DeepLabFusionConfig(Section):
    """Sizes of the decoder. The encoders' width for the head's maps makes its gradient comparable
    with that of a classifier on one modality's features (CGGM).
    """

    name: Literal["deeplab"] = "deeplab"
    # Channels of the reduced low-level maps.
    low: int = Field(48, ge=1)
    # Channels of the maps that the head reads (null: the encoders' width).
    width: int | None = Field(None, ge=1)
    # Probability behind the first convolution.
    dropout: float = Field(0.5, ge=0, lt=1)
    # Probability behind the second convolution.
    dropout_last: float = Field(0.1, ge=0, lt=1)


class DeepLabFusion(DenseFusion):
    """Features with maps [B, W, h, w] and one level [B, C, h', w'] -> hidden [B, width, h', w']."""

    Config = DeepLabFusionConfig

    def __init__(
        self,
        maps: Mapping[str, int],
        levels: Mapping[str, int],
        low: int,
        width: int,
        dropouts: tuple[float, float],
        outputs: int,
        size: tuple[int, int],
    ) -> None:
        """maps, levels: channels of each modality's maps and low-level maps."""
        super().__init__()
        self.maps = dict(maps)
        self.levels = dict(levels)
        self.low = unit(sum(levels.values()), low, 1)
        first, last = (nn.Dropout(p) for p in dropouts)
        self.mix = nn.Sequential(
            unit(sum(maps.values()) + low, width, 3), first, unit(width, width, 3), last
        )
        self.head = DenseHead(width, outputs, size)

    @classmethod
    def build(cls, config: Any, spec: DataSpec, encoders: Mapping[str, Any]) -> DeepLabFusion:
        """See `DenseFusion.build`."""
        sizes = {shape[1:] for shape in spec.shapes.values()}
        if len(sizes) > 1 or any(len(e.channels) != 1 for e in encoders.values()):
            raise ValueError(
                "the deeplab fusion needs images of one size and encoders with one level, such as deeplab"
            )
        height, across = next(iter(spec.shapes.values()))[1:]
        maps = {m: e.width for m, e in encoders.items()}
        levels = {m: e.channels[0] for m, e in encoders.items()}
        width = config.width or max(maps.values())
        dropouts = (config.dropout, config.dropout_last)
        return cls(maps, levels, config.low, width, dropouts, spec.task.outputs, (height, across))

    def hidden(self, features: Features) -> Tensor:
        """See `LateFusion.hidden`: [B, width, h', w']."""
        return self._decoded(features, ())

    def without(self, features: Features, absent: Collection[str]) -> Tensor:
        """See `LateFusion.without`."""
        return self._decoded({m: f for m, f in features.items() if m not in absent}, absent)

    def _decoded(self, features: Features, absent: Collection[str]) -> Tensor:
        levels = torch.cat([f.levels[0] for f in features.values()], 1)
        low = _skipping(self.low, self.levels, absent, levels)
        coarse = torch.cat([f.value for f in features.values()], 1)
        maps = upsampled(coarse, low)
        first, *rest = self.mix
        out = _skipping(first, self.maps, absent, torch.cat([maps, low], 1))
        for layer in rest:
            out = layer(out)
        return out

    def block(self, modality: str) -> slice:
        """All columns: a shared representation."""
        return slice(None)


def _skipping(
    layers: nn.Module, channels: Mapping[str, int], absent: Collection[str], x: Tensor
) -> Tensor:
    """`layers` (see `unit`) of maps `x`, from which the channels of the modalities in `absent` have
    been left out.
    """
    conv, *rest = cast("nn.Sequential", layers)
    own = cast("nn.Conv2d", conv)
    parts = own.weight.split([*channels.values(), own.in_channels - sum(channels.values())], 1)
    present = []
    for m, w in zip([*channels, ""], parts, strict=True):
        if m not in absent:
            present.append(w)
    out = functional.conv2d(x, torch.cat(present, 1) if absent else own.weight, padding=own.padding)
    for layer in rest:
        out = layer(out)
    return out


plugin = DeepLabFusion
