"""Parts of ESANet's fusion and decoder (Seichter et al., ICRA 2021, Sec. III-B to III-D).

Shape legend: B batch, C channels, H x W maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from tune_mm.models.encoders.esanet import NonBottleneck1D, start

BILINEAR = ((1.0, 2.0, 1.0), (2.0, 4.0, 2.0), (1.0, 2.0, 1.0))  # over 16, on twice repeated pixels


class SqueezeExcite(nn.Module):
    """x * sigmoid(W_2 ReLU(W_1 mean(x))) for maps [B, C, H, W] (Hu et al., CVPR 2018); zeros stay
    zeros.
    """

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        narrow = max(1, channels // reduction)
        self.squeeze = nn.Linear(channels, narrow)
        self.excite = nn.Linear(narrow, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(self.squeeze(x.mean((2, 3))).relu()).sigmoid()
        return x * gate[:, :, None, None]


class PyramidPooling(nn.Module):
    """[B, inputs, H, W] -> [B, outputs, H, W]: averages over k x k regions for each k of `bins`,
    narrowed and repeated over their region, beside the maps themselves (Zhao et al., CVPR 2017).
    """

    def __init__(self, inputs: int, outputs: int, bins: Sequence[int]) -> None:
        super().__init__()
        narrow = max(1, inputs // len(bins))
        self.bins = tuple(bins)
        self.branches = nn.ModuleList(convolution(inputs, narrow, 1) for _ in bins)
        self.join = convolution(inputs + narrow * len(bins), outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        found = []
        for k, branch in zip(self.bins, self.branches, strict=True):
            found.append(
                functional.interpolate(
                    _each(branch, functional.adaptive_avg_pool2d(x, k)), size, mode="nearest"
                )
            )
        out: Tensor = self.join(torch.cat([x, *found], 1))
        return out


def _each(layers: nn.Module, x: Tensor) -> Tensor:
    """`layers` (a sequence) of x. BatchNorm has no statistics of one value per channel (the mean of
    a single image): it uses the running ones then, as in evaluation.
    """
    for layer in cast("nn.Sequential", layers):
        if isinstance(layer, nn.BatchNorm2d) and x.numel() == x.shape[1]:
            x = functional.batch_norm(
                x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
            )
        else:
            x = layer(x)
    return x


class Upsampling(nn.Module):
    """[B, C, H, W] -> [B, C, 2 H, 2 W]: every pixel four times, then a 3 x 3 filter of its own for
    each channel, which is learned and starts as bilinear interpolation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            channels, channels, 3, padding=1, padding_mode="replicate", groups=channels, bias=False
        )
        with torch.no_grad():
            self.conv.weight.copy_((torch.tensor(BILINEAR) / 16).expand_as(self.conv.weight))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


class DecoderModule(nn.Module):
    """Maps [B, inputs, h, w] -> maps [B, outputs, H, W] of twice the size with the encoders' skip
    maps added, and in training the logits [B, classes, h, w] of the maps before (None: not asked
    for).

    skip: channels of the skip maps [B, skip, H, W]; classes: of the side output, 0 for none.
    """

    def __init__(self, inputs: int, outputs: int, blocks: int, skip: int, classes: int) -> None:
        super().__init__()
        body = []
        for _ in range(blocks):
            body.append(NonBottleneck1D(outputs, outputs))
        self.body = nn.Sequential(convolution(inputs, outputs, 3), *body)
        start(self.body)
        self.up = Upsampling(outputs)
        self.skip = convolution(skip, outputs, 1)
        self.side: nn.Conv2d | None = None
        if classes:
            self.side = nn.Conv2d(outputs, classes, 1)

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor | None]:
        maps = self.body(x)
        if self.side is not None and self.training:
            side = self.side(maps)
        else:
            side = None
        height, width = skip.shape[-2:]  # an odd side was rounded up on the way down
        return self.up(maps)[..., :height, :width] + self.skip(skip), side


def convolution(inputs: int, outputs: int, size: int) -> nn.Sequential:
    """Convolution, BatchNorm and ReLU: [B, inputs, H, W] -> [B, outputs, H, W]."""
    # BatchNorm takes the mean away, and with it a bias before it, whose true gradient is 0.
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())
