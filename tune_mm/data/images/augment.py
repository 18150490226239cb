"""Augmentation of frames in batches: random resized crop, horizontal flip, resize, normalisation.

Frames are resized one by one with torchvision's v2 `resize` (bilinear, antialias) on the device of
the batch: on the CPU by its integer kernel, each frame then normalised while it is in the
processor's cache; a GPU gets the cropped pixels of the whole batch in one copy.

Shape legend: n frames of a batch (all samples' frames in order), C channels, H x W a stored frame,
S output side.
"""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from types import ModuleType
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tune_mm._vision import torchvision

Normalize = Literal["imagenet", "half", "none"]

# torchvision's RandomResizedCrop: width / height is log-uniform in RATIO; a box that does not fit
# is drawn again.
RATIO = (3 / 4, 4 / 3)
TRIES = 10

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def crop_boxes(sizes: Tensor, scale_min: float, generator: torch.Generator) -> Tensor:
    """Boxes of a random resized crop: int64 [n, 4] as top, left, height, width, for frames of
    `sizes` [n, 2] (H, W).

    The distribution is that of torchvision's RandomResizedCrop: area H W u with u ~ U(scale_min,
    1), width / height log-uniform in [3/4, 4/3], the first of 10 such boxes that fits, placed
    uniformly; if none fits, the largest central box of the nearest allowed ratio. generator: on the
    CPU.
    """
    height, width = sizes.double().unbind(1)
    draws = torch.rand(2, len(sizes), TRIES, generator=generator, dtype=torch.float64)
    place = torch.rand(2, len(sizes), generator=generator, dtype=torch.float64)
    area = (height * width)[:, None] * (scale_min + (1 - scale_min) * draws[0])
    low, high = (math.log(r) for r in RATIO)
    ratio = torch.exp(low + (high - low) * draws[1])
    w = (area * ratio).sqrt().round()
    h = (area / ratio).sqrt().round()
    fits = (w > 0) & (w <= width[:, None]) & (h > 0) & (h <= height[:, None])
    first = fits.int().argmax(1, keepdim=True)
    found = fits.any(1)
    central_h, central_w = _central(height, width)
    h = torch.where(found, h.gather(1, first)[:, 0], central_h)
    w = torch.where(found, w.gather(1, first)[:, 0], central_w)
    top = torch.where(
        found, torch.floor(place[0] * (height - h + 1)), torch.floor((height - h) / 2)
    )
    left = torch.where(found, torch.floor(place[1] * (width - w + 1)), torch.floor((width - w) / 2))
    return torch.stack((top, left, h, w), 1).long()


def _central(height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width [n] of the largest box whose ratio is allowed."""
    ratio = width / height
    # A frame of one row or column would round to a box without pixels.
    h = torch.where(ratio < RATIO[0], (width / RATIO[0]).round(), height).clamp(min=1)
    w = torch.where(ratio > RATIO[1], (height * RATIO[1]).round(), width).clamp(min=1)
    return h, w


def flips(count: int, generator: torch.Generator) -> Tensor:
    """bool [count], each True with probability 1/2. generator: on the CPU."""
    return torch.rand(count, generator=generator) < 0.5


@cache
def _functional() -> ModuleType:
    torchvision()
    return importlib.import_module("torchvision.transforms.v2.functional")


def batch(
    frames: Sequence[NDArray[np.uint8]],
    size: int,
    flip: Tensor | None,
    normalize: Normalize,
    device: torch.device,
) -> Tensor:
    """float32 [n, C, S, S] (channels last in memory) on `device` of frames H x W x C of any sizes,
    perhaps read-only.

    The aspect is not kept; a frame of S x S keeps its pixels. flip: bool [n], frames to mirror left
    to right; normalize: (x / 255 - mean) / std.
    """
    n = len(frames)
    channels = frames[0].shape[2]
    scale, shift = (t.repeat(size).to(device) for t in _affine(normalize, channels))
    on_cpu = device.type == "cpu"
    # Channels last, as frames are stored and the integer kernel leaves them: another order costs
    # more than the resize.
    shape = (n, size, size * channels)
    if on_cpu:
        out = torch.from_numpy(_memory(math.prod(shape)).reshape(shape))
    else:
        out = torch.empty(shape, device=device)
    mirrored = [False] * n if flip is None else flip.tolist()
    resized = _functional().resize_image
    pixels = torch.empty(size, size, channels)  # of one frame, which stays in the processor's cache
    for target, image, mirror in zip(
        out, _copies(frames) if on_cpu else _moved(frames, device), mirrored, strict=True
    ):
        small = resized(image, [size, size], antialias=True)
        small = (small.flip(-1) if mirror else small).permute(1, 2, 0)
        if on_cpu:
            torch.addcmul(shift, pixels.copy_(small).view(size, -1), scale, out=target)
        else:
            target.view(size, size, channels).copy_(small)
    if not on_cpu:
        torch.addcmul(shift, out, scale, out=out)
    return out.view(n, size, size, channels).permute(0, 3, 1, 2)


def _memory(size: int) -> NDArray[np.float32]:
    """[size] floats: the memory of an earlier batch that nobody holds any more, where there is one.

    The system hands out new memory page by page and zeroed, which takes a quarter of the time of a
    batch.
    """
    for array, references in zip(_kept, _references(_kept), strict=True):
        # A tensor made of an array, or of a part of it, holds a reference to it as long as its
        # memory is in use.
        if len(array) >= size and references == UNUSED:
            return array[:size]
    _kept.insert(0, np.empty(size, dtype=np.float32))
    del _kept[MOST_KEPT:]
    return _kept[0][:]


def _references(arrays: list[NDArray[np.float32]]) -> list[int]:
    return [sys.getrefcount(array) for array in arrays]


_kept: list[NDArray[np.float32]] = []
MOST_KEPT = 2  # a loop holds one batch while the next is made
# References to an array that only a list holds, as counted here: Python versions differ in what the
# counting adds.
UNUSED = _references([np.empty(0, dtype=np.float32)])[0]


def _copies(frames: Sequence[NDArray[np.uint8]]) -> Iterator[Tensor]:
    """Each frame as [C, H, W], good until the next is asked for."""
    # One buffer for all frames stays in the processor's cache; a copy is needed, as torch takes no
    # read-only arrays.
    buffer = np.empty(max(frame.size for frame in frames), dtype=np.uint8)
    for frame in frames:
        copy = buffer[: frame.size].reshape(frame.shape)
        np.copyto(copy, frame)
        # A permuted view of H x W x C is channels-last, which the integer kernel takes as it is.
        yield torch.from_numpy(copy).permute(2, 0, 1)


def _moved(frames: Sequence[NDArray[np.uint8]], device: torch.device) -> Iterator[Tensor]:
    """Each frame as [C, H, W] on `device`, all of them in one copy."""
    flat = torch.from_numpy(np.concatenate([frame.reshape(-1) for frame in frames])).to(device)
    for part, frame in zip(
        torch.split(flat, [frame.size for frame in frames]), frames, strict=True
    ):
        yield part.view(frame.shape).permute(2, 0, 1)


def constants(normalize: Normalize, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, for pixels in [0, 1].

    imagenet: those of torchvision's weights (grey: the mean of the three channels); half: 0.5 and
    0.5; none: 0 and 1.
    """
    if normalize == "imagenet" and channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    mean, std = {
        "imagenet": (sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3),
        "half": (0.5, 0.5),
        "none": (0.0, 1.0),
    }[normalize]
    return (mean,) * channels, (std,) * channels


def _affine(normalize: Normalize, channels: int) -> tuple[Tensor, Tensor]:
    """[C] each: (x / 255 - mean) / std = x * scale + shift, for pixels x in 0..255."""
    mean, std = (torch.tensor(c, dtype=torch.float64) for c in constants(normalize, channels))
    return (1 / (255 * std)).float(), (-mean / std).float()
