"""Weights of a residual network from a local file: read without running anything, fitted to the
stem, and checked.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tune_mm.core.types import Tensors

STEM = "conv1.weight"
PART = "encoder."  # before the names in files of a network that this one is the encoder of


def load(module: nn.Module, encoder: str, path: Path) -> None:
    """Give `module` the weights of a file. Raises ValueError, naming the file, where they are not
    this network's.
    """
    own = module.state_dict()
    found = fitting(encoder, read(path), own, path)
    # On the meta device (a check without memory) there is nothing to copy to.
    if not own[STEM].is_meta:
        module.load_state_dict({**own, **found})


def read(path: Path) -> Tensors:
    """The tensors of a file by the network's names, its classifier (`fc.*`) left out. Raises
    ValueError.
    """
    if not path.is_file():
        raise ValueError(f"weights: no file {path}")
    if path.suffix == ".safetensors":
        raw = _safetensors(path)
    else:
        raw = _torch(path)
    if isinstance(raw, Mapping) and isinstance(raw.get("state_dict"), Mapping):
        raw = raw["state_dict"]
    if not isinstance(raw, Mapping) or not all(isinstance(v, Tensor) for v in raw.values()):
        raise ValueError(f"weights: {path} holds no state dict, a mapping of names to tensors")
    # DataParallel puts "module." before every name.
    named = {}
    for name, value in raw.items():
        named[str(name).removeprefix("module.")] = value
    if any(name.startswith(PART) for name in named):
        named = {
            name.removeprefix(PART): value for name, value in named.items() if name.startswith(PART)
        }
    return {name: value for name, value in named.items() if not name.startswith("fc.")}


def _torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        LookupError,
        pickle.UnpicklingError,
    ) as error:
        raise ValueError(
            f"weights: {path} cannot be read; must be a state dict of tensors written by torch.save"
        ) from error


def _safetensors(path: Path) -> Any:
    try:
        package = importlib.import_module("safetensors")
        load_file = importlib.import_module("safetensors.torch").load_file
    except ImportError as error:
        raise ValueError(
            f"weights: {path} needs the package safetensors; install it, or give a .pt file"
        ) from error
    try:
        return load_file(path, device="cpu")
    except (OSError, package.SafetensorError) as error:
        raise ValueError(f"weights: {path} cannot be read as safetensors: {error}") from error


def fitting(encoder: str, given: Tensors, own: Mapping[str, Tensor], path: Path) -> Tensors:
    """`given` with the stem (`conv1.weight`) made to fit `own`. Raises ValueError for other names
    or shapes.

    encoder: the name that messages give the network.
    """
    # Files written before torch 0.4.1, torchvision's first resnet18 among them, do not count
    # batches.
    missing = []
    for n in own:
        if n not in given and not n.endswith("num_batches_tracked"):
            missing.append(n)
    unknown = [n for n in given if n not in own]
    for what, names in (("has no", missing), ("has unknown", unknown)):
        if names:
            if len(names) > 3:
                more = f" and {len(names) - 3} more"
            else:
                more = ""
            raise ValueError(
                f"weights: {path} is no {encoder}: it {what} {', '.join(names[:3])}{more}"
            )
    out = {**given, STEM: _stem_for(given[STEM], own[STEM].shape[1])}
    for name, value in out.items():
        if value.shape != own[name].shape:
            got = tuple(value.shape)
            want = tuple(own[name].shape)
            raise ValueError(
                f"weights: {path} is no {encoder}: {name} must have shape {want}, got {got}"
            )
    return out


def _stem_for(weight: Tensor, channels: int) -> Tensor:
    """The stem's filters [64, C, 7, 7] for other `channels`: their sum over C, shared out equally.

    An image whose channels are all equal then gets the response that the file's network has to the
    same image: a spectrogram (1 channel) passes as a grey picture would.
    """
    if weight.dim() != 4 or weight.shape[1] == channels:
        return weight
    return (weight.sum(1, keepdim=True) / channels).repeat(1, channels, 1, 1)
