"""ESANet's encoder: ResNet-34 whose 3 x 3 convolutions are factorised into 3 x 1 and 1 x 3.

Source: Seichter et al., Efficient RGB-D Semantic Segmentation for Indoor Scene Analysis, ICRA 2021,
Sec. III-A; the block is Non-bottleneck-1D of Romera et al., ERFNet, T-ITS 2018; the layout is that
of He et al., CVPR 2016.

    block(x) = ReLU(shortcut(x) + BN(conv1x3(ReLU(conv3x1(ReLU(BN(conv1x3(ReLU(conv3x1(x)))))))))

where the first pair carries the stride, and the shortcut is a 1 x 1 convolution with BatchNorm
where the size changes. The BatchNorms of both pairs add 1e-3 to the variance, as in ERFNet, those
of stem and shortcuts 1e-5. Stage 1 is the stem (7 x 7, stride 2, BatchNorm, ReLU), stage 2 max
pooling and the first group of blocks, stages 3 to 5 the other groups: maps at 1/2, 1/4, 1/8, 1/16
and 1/32 of the image.

Convolutions start Kaiming normal (fan out). The blocks' 3 x 1 and 1 x 3 have a bias, as in the
published weights, which can be loaded from a local file (a state dict with the parameters' names
here, or with `encoder.` before them).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from tune_mm.config import Section
from tune_mm.core.types import Padded
from tune_mm.models.base import StagedEncoder
from tune_mm.models.encoders._recompute import recomputed
from tune_mm.models.encoders._weights import load
from tune_mm.models.maps import as_frames, average, channels_last, each_frame, input_channels

Count = Annotated[int, Field(ge=1)]
EPS = 1e-3  # of the blocks' BatchNorms


class EsanetConfig(Section):
    """One stream of ESANet."""

    name: Literal["esanet"] = "esanet"
    # Of the maps after each stage.
    channels: tuple[Count, Count, Count, Count, Count] = (64, 64, 128, 256, 512)
    # In each of the four groups.
    blocks: tuple[Count, Count, Count, Count] = (3, 4, 6, 3)
    # In every block, before the shortcut is added.
    dropout: float = Field(0.0, ge=0, lt=1)
    # Whether to compute the blocks' inner values again in the backward pass instead of keeping
    # them: less memory, more time, the same gradients. Without dropout alone.
    checkpoint: bool = False
    # A local file; null: from scratch.
    weights: str | None = None

    @model_validator(mode="after")
    def _no_random_numbers(self) -> EsanetConfig:
        if self.checkpoint and self.dropout > 0:
            raise ValueError(f"checkpoint needs dropout 0, but got dropout={self.dropout}")
        return self


class NonBottleneck1D(nn.Module):
    """[B, inputs, H, W] -> [B, outputs, H / stride, W / stride]: see the module."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv3x1_1 = nn.Conv2d(inputs, outputs, (3, 1), (stride, 1), (1, 0))
        self.conv1x3_1 = nn.Conv2d(outputs, outputs, (1, 3), (1, stride), (0, 1))
        self.bn1 = nn.BatchNorm2d(outputs, eps=EPS)
        self.conv3x1_2 = nn.Conv2d(outputs, outputs, (3, 1), 1, (1, 0))
        self.conv1x3_2 = nn.Conv2d(outputs, outputs, (1, 3), 1, (0, 1))
        self.bn2 = nn.BatchNorm2d(outputs, eps=EPS)
        self.dropout = nn.Dropout2d(dropout)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1x3_1(self.conv3x1_1(x).relu())
        out = self.conv1x3_2(self.conv3x1_2(self.bn1(out).relu()).relu())
        return (self.dropout(self.bn2(out)) + self.downsample(x)).relu()


class EsanetEncoder(StagedEncoder):
    """Padded [B, C, H, W] or [B, T, C, H, W] -> Padded [B, W]."""

    Config = EsanetConfig
    ranks: ClassVar[tuple[int, ...]] = (3, 4)
    small: ClassVar[Mapping[str, Any]] = {"channels": (4, 4, 6, 6, 8), "blocks": (1, 1, 1, 1)}

    def __init__(
        self,
        inputs: int,
        channels: tuple[int, ...],
        blocks: tuple[int, ...],
        dropout: float = 0.0,
        checkpoint: bool = False,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.width = channels[-1]
        self.checkpoint = checkpoint
        self.conv1 = nn.Conv2d(inputs, channels[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _group(channels[0], channels[1], blocks[0], 1, dropout)
        self.layer2 = _group(channels[1], channels[2], blocks[1], 2, dropout)
        self.layer3 = _group(channels[2], channels[3], blocks[2], 2, dropout)
        self.layer4 = _group(channels[3], channels[4], blocks[3], 2, dropout)
        start(self)
        channels_last(self)

    @classmethod
    def build(cls, config: Any, shape: tuple[int, ...]) -> EsanetEncoder:
        """See `Encoder.build`. Raises ValueError for vectors and sequences, and for weights that do
        not fit.
        """
        c: EsanetConfig = config
        encoder = cls(
            input_channels("esanet", shape), c.channels, c.blocks, c.dropout, c.checkpoint
        )
        if c.weights is not None:
            load(encoder, "esanet encoder", Path(c.weights).expanduser())
        return encoder

    def stage(self, number: int, x: Padded) -> Padded:
        """See `StagedEncoder.stage`."""
        if number == 1:
            return each_frame(self._stem, as_frames(x))
        layer = (self.layer1, self.layer2, self.layer3, self.layer4)[number - 2]
        if number == 2:
            x = each_frame(self.maxpool, x)
        return each_frame(partial(self._blocks, layer), x)

    def pool(self, x: Padded) -> Padded:
        """See `StagedEncoder.pool`."""
        return Padded(average(x))

    def _blocks(self, blocks: nn.Sequential, x: Tensor) -> Tensor:
        for block in blocks:
            x = recomputed(block, x) if self.checkpoint else block(x)
        return x

    def _stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.bn1(self.conv1(x)).relu()
        return out


def _group(inputs: int, outputs: int, blocks: int, stride: int, dropout: float) -> nn.Sequential:
    group = [NonBottleneck1D(inputs, outputs, stride, dropout)]
    for _ in range(blocks - 1):
        group.append(NonBottleneck1D(outputs, outputs, 1, dropout))
    return nn.Sequential(*group)


def start(module: nn.Module) -> None:
    """Draws the weights of all convolutions below `module` anew: Kaiming normal, fan out, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


plugin = EsanetEncoder
