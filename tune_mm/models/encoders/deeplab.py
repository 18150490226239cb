"""The encoder of DeepLab v3+ (Chen et al., ECCV 2018) on a ResNet (He et al., CVPR 2016), one per
modality in CGGM.

torchvision's network without its classifier; its stem takes the image's channels. Output stride 16:
the last group of blocks keeps the size of its maps, and every 3 x 3 convolution behind the stride
that is taken away has dilation 2. (It then computes at every position what the published network
computes at every other one. torchvision does so for 50 and 101 layers and refuses for 18.) ASPP
(Chen et al., 2017): convolutions of several rates beside each other (rate 1 is 1 x 1, others 3 x 3)
and the image's mean, joined and mixed by 1 x 1. The low-level features are the first group's maps.

Deviation: the branch of the image's mean has a bias in place of BatchNorm, which has no statistics
of a single image.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tune_mm._vision import torchvision
from tune_mm.config import Section
from tune_mm.core.types import Padded
from tune_mm.models.base import DenseEncoder
from tune_mm.models.encoders import _weights
from tune_mm.models.encoders._recompute import recomputed
from tune_mm.models.maps import channels_last

LEAST = 17  # pixels: the last maps then have two positions a side, so that BatchNorm has statistics of one image


class DeepLabConfig(Section):
    """A ResNet with an atrous spatial pyramid (ASPP)."""

    name: Literal["deeplab"] = "deeplab"
    # Layers of the ResNet.
    depth: Literal[18, 50, 101] = 101
    # Channels of the ASPP and its maps.
    width: int = Field(256, ge=1)
    # Of the ASPP.
    rates: tuple[Annotated[int, Field(ge=1)], ...] = Field((1, 2, 4, 6), min_length=1)
    # Whether to compute the blocks' inner values again in the backward pass instead of keeping
    # them: less memory, more time, the same gradients.
    checkpoint: bool = False
    # A local state dict with torchvision's names (.safetensors, or what torch.save wrote); null:
    # from scratch.
    weights: str | None = None


class DeepLabEncoder(DenseEncoder):
    """Padded [B, C, H, W] -> Padded [B, width, H/16, W/16] with one level [B, 64 or 256, H/4, W/4],
    rounded up.
    """

    Config = DeepLabConfig
    ranks: ClassVar[tuple[int, ...]] = (3,)
    small: ClassVar[Mapping[str, Any]] = {"depth": 18, "width": 6}

    def __init__(
        self, inputs: int, depth: int, width: int, rates: tuple[int, ...], checkpoint: bool = False
    ) -> None:
        super().__init__()
        self.backbone = ResNet(inputs, depth)
        self.aspp = ASPP(self.backbone.channels[1], width, rates)
        self.channels = self.backbone.channels[:1]
        self.width = width
        self.checkpoint = checkpoint
        channels_last(self)

    @classmethod
    def build(cls, config: Any, shape: tuple[int, ...]) -> DeepLabEncoder:
        """See `Encoder.build`. Raises ValueError for what is no image or too small, and for weights
        that do not fit.
        """
        if len(shape) != 3 or min(shape[1:]) < LEAST:
            raise ValueError(
                f"the deeplab encoder takes images (C, H, W) of {LEAST} x {LEAST} or more, but got shape={shape}"
            )
        encoder = cls(shape[0], config.depth, config.width, config.rates, config.checkpoint)
        if config.weights is not None:
            _weights.load(
                encoder.backbone, f"resnet{config.depth}", Path(config.weights).expanduser()
            )
        return encoder

    def forward(self, x: Padded) -> Padded:
        net = self.backbone
        maps = net.maxpool(net.relu(net.bn1(net.conv1(x.value))))
        low = maps = self._group(net.layer1, maps)
        for group in (net.layer2, net.layer3, net.layer4):
            maps = self._group(group, maps)
        return Padded(self._run(self.aspp, maps), None, (low,))

    def _group(self, blocks: nn.Sequential, maps: Tensor) -> Tensor:
        for block in blocks:
            maps = self._run(block, maps)
        return maps

    def _run(self, layer: nn.Module, maps: Tensor) -> Tensor:
        out: Tensor = recomputed(layer, maps) if self.checkpoint else layer(maps)
        return out


class ResNet(nn.Module):
    """torchvision's ResNet up to its last group, at output stride 16. channels: of the first and
    the last group.
    """

    conv1: nn.Conv2d
    bn1: nn.BatchNorm2d
    relu: nn.ReLU
    maxpool: nn.MaxPool2d
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, inputs: int, depth: int) -> None:
        super().__init__()
        make = getattr(torchvision().models, f"resnet{depth}")
        # A basic block (18 layers) is refused there, and dilated below.
        if depth == 18:
            dilated = {}
        else:
            dilated = {"replace_stride_with_dilation": [False, False, True]}
        net = make(weights=None, num_classes=1, **dilated)
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            self.add_module(name, getattr(net, name))
        if depth == 18:
            _dilate(self.layer4)
        if inputs != 3:
            self.conv1 = nn.Conv2d(inputs, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        self.channels = (64, 512) if depth == 18 else (256, 2048)


def _dilate(group: nn.Sequential) -> None:
    """Take the stride out of a group of basic blocks, in place; what comes behind it gets dilation
    2.
    """
    blocks: list[Any] = list(group)
    first = blocks[0]
    first.conv1.stride = first.downsample[0].stride = (1, 1)
    for block in blocks:
        for conv in (block.conv1, block.conv2):
            if conv is not first.conv1:
                conv.dilation = conv.padding = (2, 2)


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: [B, inputs, h, w] -> [B, width, h, w]."""

    def __init__(self, inputs: int, width: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            unit(inputs, width, 1 if rate == 1 else 3, rate) for rate in rates
        )
        self.pooled = nn.Conv2d(inputs, width, 1)
        nn.init.kaiming_normal_(self.pooled.weight, nonlinearity="relu")
        self.project = unit((len(rates) + 1) * width, width, 1)

    def forward(self, maps: Tensor) -> Tensor:
        found = [branch(maps) for branch in self.branches]
        whole = torch.relu(self.pooled(maps.mean((2, 3), keepdim=True)))
        out: Tensor = self.project(torch.cat([*found, whole.expand_as(found[0])], 1))
        return out


def unit(inputs: int, outputs: int, kernel: int, rate: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU at the same size: [B, inputs, h, w] -> [B, outputs, h, w]."""
    # BatchNorm takes the mean away, and with it a bias before it, whose true gradient is 0.
    conv = nn.Conv2d(
        inputs, outputs, kernel, padding=rate * (kernel // 2), dilation=rate, bias=False
    )
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


plugin = DeepLabEncoder
