"""ResNet-18 (He et al., CVPR 2016), the encoder of the audio-visual experiments of OGM-GE, DGL and
their peers.

torchvision's network without its classifier, from scratch (torchvision's initialisation: Kaiming
normal, fan out) or from a local file. The stem takes the input's channels: 1 for a spectrogram, 3
for RGB. Features are the mean over positions, then over frames. Its parameters have torchvision's
names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from tune_mm._vision import torchvision
from tune_mm.config import Section
from tune_mm.core.types import Padded
from tune_mm.models.base import StagedEncoder
from tune_mm.models.encoders._weights import load
from tune_mm.models.maps import as_frames, average, channels_last, each_frame, input_channels


class ResNet18Config(Section):
    """ResNet-18."""

    name: Literal["resnet18"] = "resnet18"
    # A local state dict with torchvision's names (.safetensors, or what torch.save wrote); null:
    # from scratch.
    weights: str | None = None


class ResNet18(StagedEncoder):
    """Padded [B, C, H, W] or [B, T, C, H, W] -> Padded [B, 512]. Stage 1 is the stem and the first
    group of blocks.
    """

    Config = ResNet18Config
    ranks: ClassVar[tuple[int, ...]] = (3, 4)
    width = 512
    channels = (64, 128, 256, 512)

    def __init__(self, inputs: int) -> None:
        super().__init__()
        net = torchvision().models.resnet18(weights=None, num_classes=1)
        self.conv1 = net.conv1
        self.bn1 = net.bn1
        self.relu = net.relu
        self.maxpool = net.maxpool
        self.layer1 = net.layer1
        self.layer2 = net.layer2
        self.layer3 = net.layer3
        self.layer4 = net.layer4
        if inputs != 3:
            self.conv1 = nn.Conv2d(inputs, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        channels_last(self)

    @classmethod
    def build(cls, config: Any, shape: tuple[int, ...]) -> ResNet18:
        """See `Encoder.build`. Raises ValueError for vectors and sequences, and for weights that do
        not fit.
        """
        encoder = cls(input_channels("resnet18", shape))
        if config.weights is not None:
            load(encoder, "resnet18", Path(config.weights).expanduser())
        return encoder

    def stage(self, number: int, x: Padded) -> Padded:
        """See `StagedEncoder.stage`."""
        layer = (self.layer1, self.layer2, self.layer3, self.layer4)[number - 1]
        if number == 1:
            x = each_frame(self._stem, as_frames(x))
        return each_frame(layer, x)

    def pool(self, x: Padded) -> Padded:
        """See `StagedEncoder.pool`."""
        return Padded(average(x))

    def _stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return out


plugin = ResNet18
