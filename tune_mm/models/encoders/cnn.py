"""A small convolutional network for small images (28 x 28, 32 x 32) and short spectrograms (40 x
50).

Each stage: 3 x 3 convolution (padding 1), BatchNorm, ReLU, 2 x 2 max pooling while both sides are 2
or more. Then the mean over positions and real frames, a linear layer with ReLU, and dropout.
Weights start Kaiming normal (He et al., ICCV 2015), which keeps the variance through ReLU also
without BatchNorm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from tune_mm.config import Section
from tune_mm.core.types import Padded
from tune_mm.models._dropout import relu_dropout
from tune_mm.models.base import StagedEncoder
from tune_mm.models.maps import as_frames, average, channels_last, each_frame, input_channels

Norm = Literal["batch", "none"]


class CnnConfig(Section):
    """A small convolutional encoder."""

    name: Literal["cnn"] = "cnn"
    # Of the maps after each stage.
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field((16, 32, 64), min_length=1)
    # Of the features.
    width: int = Field(64, ge=1)
    # On the features.
    dropout: float = Field(0.0, ge=0, lt=1)
    # After each convolution.
    norm: Norm = "batch"


class CnnEncoder(StagedEncoder):
    """Padded [B, C, H, W] or [B, T, C, H, W] -> Padded [B, W]."""

    Config = CnnConfig
    ranks: ClassVar[tuple[int, ...]] = (3, 4)
    small: ClassVar[Mapping[str, Any]] = {"channels": (4, 6), "width": 6}

    def __init__(
        self, inputs: int, channels: tuple[int, ...], width: int, dropout: float, norm: Norm
    ) -> None:
        super().__init__()
        self.channels = channels
        self.width = width
        self.dropout = dropout
        before = (inputs, *channels[:-1])
        self.stages = nn.ModuleList(
            _stage(i, o, norm) for i, o in zip(before, channels, strict=True)
        )
        self.project = nn.Linear(channels[-1], width)
        nn.init.kaiming_normal_(self.project.weight, nonlinearity="relu")
        nn.init.zeros_(self.project.bias)
        channels_last(self)

    @classmethod
    def build(cls, config: Any, shape: tuple[int, ...]) -> CnnEncoder:
        """See `Encoder.build`. Raises ValueError for vectors and sequences."""
        c: CnnConfig = config
        return cls(input_channels("cnn", shape), c.channels, c.width, c.dropout, c.norm)

    def stage(self, number: int, x: Padded) -> Padded:
        """See `StagedEncoder.stage`."""
        maps = each_frame(self.stages[number - 1], as_frames(x))
        # The maximum commutes with ReLU, which has a quarter to do after it.
        return each_frame(functional.relu if min(maps.value.shape[-2:]) < 2 else _halve, maps)

    def pool(self, x: Padded) -> Padded:
        """See `StagedEncoder.pool`."""
        return Padded(
            relu_dropout(self.project(average(x)), self.dropout if self.training else 0.0)
        )


def _stage(inputs: int, outputs: int, norm: Norm) -> nn.Sequential:
    # BatchNorm takes the mean away, and with it a bias before it, whose true gradient is 0.
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=norm == "none")
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return nn.Sequential(conv, *([nn.BatchNorm2d(outputs)] if norm == "batch" else []))


def _halve(maps: Tensor) -> Tensor:
    return functional.relu(functional.max_pool2d(maps, 2))


plugin = CnnEncoder
