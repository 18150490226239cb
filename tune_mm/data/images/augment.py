"""Augmentation of frames in batches: random resized crop, horizontal flip, resize, normalisation.

Frames are resized one by one with torchvision's v2 `resize` (bilinear, antialias) on the device of
the batch: on the CPU by its integer kernel, each frame then normalised while it is in the
processor's cache; a GPU gets the cropped pixels of the whole batch in one copy. Rows of pixels keep
their channels side by side, as frames are stored: another order costs more than the resize.

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
    """Boxes of a random resized crop, int64 [n, 4], for frames of `sizes` [n, 2] (H, W).

    A box is its top, left, height and width. The distribution is that of torchvision's
    RandomResizedCrop: area H W u with u ~ U(scale_min, 1), width / height log-uniform in [3/4,
    4/3], the first of 10 such boxes that fits, placed uniformly; if none fits, the largest central
    box of the nearest allowed ratio. generator: on the CPU.
    """
    height, width = sizes.double().unbind(1)
    draws = torch.rand(2, len(sizes), TRIES, generator=generator, dtype=torch.float64)
    places = torch.rand(2, len(sizes), generator=generator, dtype=torch.float64)
    area_draw, ratio_draw = draws
    top_draw, left_draw = places

    share = scale_min + (1 - scale_min) * area_draw
    area = (height * width)[:, None] * share
    narrowest = math.log(RATIO[0])
    widest = math.log(RATIO[1])
    ratio = torch.exp(narrowest + (widest - narrowest) * ratio_draw)
    box_width = (area * ratio).sqrt().round()
    box_height = (area / ratio).sqrt().round()

    fits_in_width = (box_width > 0) & (box_width <= width[:, None])
    fits_in_height = (box_height > 0) & (box_height <= height[:, None])
    fits = fits_in_width & fits_in_height
    found = fits.any(1)
    first = fits.int().argmax(1, keepdim=True)
    first_height = box_height.gather(1, first)[:, 0]
    first_width = box_width.gather(1, first)[:, 0]

    central_height, central_width = _central(height, width)
    chosen_height = torch.where(found, first_height, central_height)
    chosen_width = torch.where(found, first_width, central_width)
    top = _placed(height - chosen_height, top_draw, found)
    left = _placed(width - chosen_width, left_draw, found)
    return torch.stack((top, left, chosen_height, chosen_width), 1).long()


def _central(height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width [n] of the largest box whose ratio is allowed."""
    narrowest, widest = RATIO
    ratio = width / height
    reduced_height = (width / narrowest).round()
    reduced_width = (height * widest).round()
    box_height = torch.where(ratio < narrowest, reduced_height, height)
    box_width = torch.where(ratio > widest, reduced_width, width)
    # A frame of one row or column would round to a box without pixels.
    return box_height.clamp(min=1), box_width.clamp(min=1)


def _placed(slack: Tensor, draw: Tensor, at_random: Tensor) -> Tensor:
    """Where boxes begin that leave `slack` pixels: anywhere, or in the middle. All [n]."""
    anywhere = torch.floor(draw * (slack + 1))
    middle = torch.floor(slack / 2)
    return torch.where(at_random, anywhere, middle)


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
    """float32 [n, C, S, S] (channels last in memory) on `device`, of frames H x W x C of any sizes.

    Frames may be read-only. The aspect is not kept; a frame of S x S keeps its pixels. flip: bool
    [n], frames to mirror left to right; normalize: (x / 255 - mean) / std.
    """
    count = len(frames)
    channels = frames[0].shape[2]
    mirrored = [False] * count
    if flip is not None:
        mirrored = flip.tolist()
    scale, shift = _affine(normalize, channels)
    # Of a row of pixels, whose channels lie side by side.
    row_scale = scale.repeat(size).to(device)
    row_shift = shift.repeat(size).to(device)
    if device.type == "cpu":
        out = _batch_on_cpu(frames, size, mirrored, row_scale, row_shift)
    else:
        out = _batch_on_gpu(frames, size, mirrored, row_scale, row_shift)
    return out.view(count, size, size, channels).permute(0, 3, 1, 2)


def _batch_on_cpu(
    frames: Sequence[NDArray[np.uint8]],
    size: int,
    mirrored: Sequence[bool],
    scale: Tensor,
    shift: Tensor,
) -> Tensor:
    """[n, S, S C]; each frame is normalised on its own. scale, shift: [S C]."""
    channels = frames[0].shape[2]
    shape = (len(frames), size, size * channels)
    memory = _memory(math.prod(shape))
    out = torch.from_numpy(memory.reshape(shape))
    # Of one frame, which stays in the processor's cache.
    pixels = torch.empty(size, size, channels)
    for target, frame, mirror in zip(out, _copies(frames), mirrored, strict=True):
        pixels.copy_(_resized(frame, size, mirror))
        torch.addcmul(shift, pixels.view(size, -1), scale, out=target)
    return out


def _batch_on_gpu(
    frames: Sequence[NDArray[np.uint8]],
    size: int,
    mirrored: Sequence[bool],
    scale: Tensor,
    shift: Tensor,
) -> Tensor:
    """[n, S, S C]; all frames are normalised at once. scale, shift: [S C], on the GPU."""
    channels = frames[0].shape[2]
    out = torch.empty((len(frames), size, size * channels), device=scale.device)
    moved = _moved(frames, scale.device)
    for target, frame, mirror in zip(out, moved, mirrored, strict=True):
        pixels = target.view(size, size, channels)
        pixels.copy_(_resized(frame, size, mirror))
    return torch.addcmul(shift, out, scale, out=out)


def _resized(frame: Tensor, size: int, mirror: bool) -> Tensor:
    """[S, S, C] of a frame [C, H, W]."""
    resized: Tensor = _functional().resize_image(frame, [size, size], antialias=True)
    if mirror:
        resized = resized.flip(-1)
    return resized.permute(1, 2, 0)


def _memory(size: int) -> NDArray[np.float32]:
    """[size] floats: the memory of an earlier batch that nobody holds any more, if there is one.

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
# A loop holds one batch while the next is made.
MOST_KEPT = 2
# References to an array that only a list holds, as counted here: Python versions differ in what the
# counting adds.
UNUSED = _references([np.empty(0, dtype=np.float32)])[0]


def _copies(frames: Sequence[NDArray[np.uint8]]) -> Iterator[Tensor]:
    """Each frame as [C, H, W], good until the next is asked for."""
    # One buffer for all frames stays in the processor's cache; a copy is needed, as torch takes no
    # read-only arrays.
    largest = max(frame.size for frame in frames)
    buffer = np.empty(largest, dtype=np.uint8)
    for frame in frames:
        copy = buffer[: frame.size].reshape(frame.shape)
        np.copyto(copy, frame)
        # A permuted view of H x W x C is channels-last, which the integer kernel takes as it is.
        yield torch.from_numpy(copy).permute(2, 0, 1)


def _moved(frames: Sequence[NDArray[np.uint8]], device: torch.device) -> Iterator[Tensor]:
    """Each frame as [C, H, W] on `device`, all of them in one copy."""
    joined = np.concatenate([frame.reshape(-1) for frame in frames])
    sizes = [frame.size for frame in frames]
    parts = torch.from_numpy(joined).to(device).split(sizes)
    for part, frame in zip(parts, frames, strict=True):
        yield part.view(frame.shape).permute(2, 0, 1)


def constants(normalize: Normalize, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, for pixels in [0, 1].

    imagenet: those of torchvision's weights (grey: the mean of the three channels); half: 0.5 and
    0.5; none: 0 and 1.
    """
    if normalize == "imagenet" and channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    grey = {
        "imagenet": (sum(IMAGENET_MEAN) / 3, sum(IMAGENET_STD) / 3),
        "half": (0.5, 0.5),
        "none": (0.0, 1.0),
    }
    mean, std = grey[normalize]
    return (mean,) * channels, (std,) * channels


def _affine(normalize: Normalize, channels: int) -> tuple[Tensor, Tensor]:
    """[C] each: (x / 255 - mean) / std = x * scale + shift, for pixels x in 0..255."""
    means, deviations = constants(normalize, channels)
    mean = torch.tensor(means, dtype=torch.float64)
    std = torch.tensor(deviations, dtype=torch.float64)
    scale = 1 / (255 * std)
    shift = -mean / std
    return scale.float(), shift.float()
