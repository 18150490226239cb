"""ResNet-18 (He et al., CVPR 2016), the encoder of the audio-visual experiments of OGM-GE, DGL and their peers.

torchvision's network without its classifier, from scratch (torchvision's initialisation: Kaiming normal, fan out) or
from a local file. The stem takes the input's channels: 1 for a spectrogram, 3 for RGB. Features are the mean over
positions, then over frames. Its parameters have torchvision's names.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tune_mm._vision import torchvision
from tune_mm.config import Section
from tune_mm.core.types import Padded, Tensors
from tune_mm.models.base import StagedEncoder
from tune_mm.models.encoders._maps import as_frames, average, channels_last, each_frame, input_channels

STEM = "conv1.weight"


class ResNet18Config(Section):
    """weights: a local state dict with torchvision's names (.safetensors, or what torch.save wrote); null: from
    scratch."""

    name: Literal["resnet18"] = "resnet18"
    weights: str | None = None


class ResNet18(StagedEncoder):
    """Padded [B, C, H, W] or [B, T, C, H, W] -> Padded [B, 512]. Stage 1 is the stem and the first group of blocks."""

    Config = ResNet18Config
    width = 512
    channels = (64, 128, 256, 512)

    def __init__(self, inputs: int) -> None:
        super().__init__()
        net = torchvision().models.resnet18(weights=None, num_classes=1)
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2, self.layer3, self.layer4 = net.layer1, net.layer2, net.layer3, net.layer4
        if inputs != 3:
            self.conv1 = nn.Conv2d(inputs, 64, 7, stride=2, padding=3, bias=False)
            nn.init.kaiming_normal_(self.conv1.weight, mode="fan_out", nonlinearity="relu")
        channels_last(self)

    @classmethod
    def build(cls, config: Any, shape: tuple[int, ...]) -> ResNet18:
        """See `Encoder.build`. Raises ValueError for vectors and sequences, and for weights that do not fit."""
        encoder = cls(input_channels("resnet18", shape))
        if config.weights is not None:
            encoder.load(Path(config.weights).expanduser())
        return encoder

    def load(self, path: Path) -> None:
        """Take the weights of a file. Raises ValueError, naming the file, where they are not this network's."""
        own = self.state_dict()
        found = _fitting(_read(path), own, path)
        # On the meta device (a check without memory) there is nothing to copy to.
        if not self.conv1.weight.is_meta:
            self.load_state_dict({**own, **found})

    def stage(self, number: int, x: Padded) -> Padded:
        """See `StagedEncoder.stage`."""
        layer = (self.layer1, self.layer2, self.layer3, self.layer4)[number - 1]
        return each_frame(layer, each_frame(self._stem, as_frames(x)) if number == 1 else x)

    def pool(self, x: Padded) -> Padded:
        """See `StagedEncoder.pool`."""
        return Padded(average(x))

    def _stem(self, x: Tensor) -> Tensor:
        out: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return out


def _read(path: Path) -> Tensors:
    """The tensors of a file by torchvision's names. Raises ValueError."""
    if not path.is_file():
        raise ValueError(f"weights: no file {path}")
    raw = _safetensors(path) if path.suffix == ".safetensors" else _torch(path)
    if isinstance(raw, Mapping) and isinstance(raw.get("state_dict"), Mapping):
        raw = raw["state_dict"]
    if not isinstance(raw, Mapping) or not all(isinstance(v, Tensor) for v in raw.values()):
        raise ValueError(f"weights: {path} holds no state dict, a mapping of names to tensors")
    # DataParallel puts "module." before every name.
    named = {str(name).removeprefix("module."): value for name, value in raw.items()}
    return {name: value for name, value in named.items() if not name.startswith("fc.")}


def _torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, ValueError, LookupError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"weights: {path} cannot be read; must be a state dict of tensors written by torch.save"
        ) from error


def _safetensors(path: Path) -> Any:
    try:
        package = importlib.import_module("safetensors")
        load_file = importlib.import_module("safetensors.torch").load_file
    except ImportError as error:
        raise ValueError(f"weights: {path} needs the package safetensors; install it, or give a .pt file") from error
    try:
        return load_file(path, device="cpu")
    except (OSError, package.SafetensorError) as error:
        raise ValueError(f"weights: {path} cannot be read as safetensors: {error}") from error


def _fitting(given: Tensors, own: Mapping[str, Tensor], path: Path) -> Tensors:
    """`given` with the stem made to fit `own`. Raises ValueError for other names or shapes."""
    # Files written before torch 0.4.1, torchvision's first resnet18 among them, do not count batches.
    missing = [n for n in own if n not in given and not n.endswith("num_batches_tracked")]
    unknown = [n for n in given if n not in own]
    for what, names in (("has no", missing), ("has unknown", unknown)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ValueError(f"weights: {path} is no resnet18: it {what} {', '.join(names[:3])}{more}")
    out = {**given, STEM: _stem_for(given[STEM], own[STEM].shape[1])}
    for name, value in out.items():
        if value.shape != own[name].shape:
            got, want = tuple(value.shape), tuple(own[name].shape)
            raise ValueError(f"weights: {path} is no resnet18: {name} must have shape {want}, got {got}")
    return out


def _stem_for(weight: Tensor, channels: int) -> Tensor:
    """The stem's filters [64, C, 7, 7] for other `channels`: their sum over C, shared out equally.

    An image whose channels are all equal then gets the response that the file's network has to the same image: a
    spectrogram (1 channel) passes as a grey picture would.
    """
    if weight.dim() != 4 or weight.shape[1] == channels:
        return weight
    return (weight.sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1)


plugin = ResNet18
