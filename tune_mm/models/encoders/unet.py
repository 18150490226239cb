"""The contracting half of a small U-Net (Ronneberger et al., MICCAI 2015), for images that a CPU
can train on.

Each stage: twice 3 x 3 convolution (padding 1), BatchNorm, ReLU; from the second stage on after 2 x
2 max pooling. The last stage's maps are the features, those before it the levels. Weights start
Kaiming normal (He et al., ICCV 2015).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from tune_mm.config import Section
from tune_mm.core.types import Padded
from tune_mm.models.base import DenseEncoder
from tune_mm.models.maps import channels_last


class UNetConfig(Section):
    """Sizes of the stages."""

    name: Literal["unet"] = "unet"
    # Channels of the maps after each stage, the finest first.
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field((16, 32, 64), min_length=2)


class UNetEncoder(DenseEncoder):
    """Padded [B, C, H, W] -> Padded [B, W, h, w] with levels; h = H / 2^(stages - 1)."""

    Config = UNetConfig
    ranks: ClassVar[tuple[int, ...]] = (3,)
    small: ClassVar[Mapping[str, Any]] = {"channels": (4, 6, 8)}

    def __init__(self, inputs: int, channels: tuple[int, ...]) -> None:
        super().__init__()
        self.channels = channels[:-1]
        self.width = channels[-1]
        before = (inputs, *channels[:-1])
        self.stages = nn.ModuleList(block(i, o) for i, o in zip(before, channels, strict=True))
        self.pool = nn.MaxPool2d(2)
        channels_last(self)

    @classmethod
    def build(cls, config: Any, shape: tuple[int, ...]) -> UNetEncoder:
        """See `Encoder.build`. Raises ValueError for what is no image, and for one too small for
        the stages.
        """
        if len(shape) != 3:
            raise ValueError(f"the unet encoder takes images (C, H, W), but got shape={shape}")
        least = 2 ** (len(config.channels) - 1)
        if min(shape[1:]) < least:
            raise ValueError(
                f"the unet encoder's stages need images of {least} x {least} or more, but got shape={shape}"
            )
        return cls(shape[0], config.channels)

    def forward(self, x: Padded) -> Padded:
        maps = x.value
        levels = []
        for number, stage in enumerate(self.stages):
            maps = stage(maps if number == 0 else self.pool(maps))
            levels.append(maps)
        return Padded(levels[-1], None, tuple(levels[:-1]))


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Twice convolution, BatchNorm and ReLU: [B, inputs, H, W] -> [B, outputs, H, W]."""
    layers: list[nn.Module] = []
    for before in (inputs, outputs):
        # BatchNorm takes the mean away, and with it a bias before it, whose true gradient is 0.
        conv = nn.Conv2d(before, outputs, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


def upsampled(maps: Tensor, like: Tensor) -> Tensor:
    """Maps [B, C, h, w] interpolated (bilinear) to the size of `like` [B, ., H, W]."""
    size = like.shape[-2:]
    if maps.shape[-2:] == size:
        return maps
    return nn.functional.interpolate(maps, size, mode="bilinear")


plugin = UNetEncoder
