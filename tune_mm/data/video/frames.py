"""Frames of clips, decoded once and kept in a store as uint8 pixels; batches are chosen, cropped
and resized from it.

The store is one flat file of H x W x C frames, one after the other, and an index int64 [N, 4] of
offset, frames, H and W per clip. All frames of a clip have the size of its first; clips may differ.

Which frames of a clip: in training T different ones drawn at random, in order of time; in
evaluation those at the centres of T equal segments. A clip of fewer than T frames gives evenly
spaced ones with repeats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core.types import Padded, Stored
from tune_mm.data.arrays.checks import Index
from tune_mm.data.images import augment
from tune_mm.data.store import failures
from tune_mm.data.store.cache import (
    Files,
    StoreRecipe,
    StoreWriter,
    damaged,
    open_store,
    read_array,
)
from tune_mm.data.store.rows import ClipStore, StoredRows
from tune_mm.data.store.threads import each

# Raise it when the same files and settings would give other pixels.
VERSION = 1
PIXELS = "frames.npy"
INDEX = "index.npy"

Pixels = NDArray[np.uint8]
# The black frame that stands for a clip that cannot be read.
NOTHING = (1, 1, 1)


class FramesConfig(Section):
    """Which frames are stored and what a batch makes of them."""

    # T, frames per sample.
    frames: int = Field(1, ge=1)
    # S, the side of the output.
    size: int = Field(224, ge=1)
    # Larger frames are stored reduced to this shorter side (null: as on disk).
    stored_size: int | None = Field(256, ge=1)
    # At most so many evenly spaced frames of a clip are stored (null: all).
    keep: int | None = Field(None, ge=1)
    # What is stored of a frame.
    color: Literal["rgb", "grey"] = "rgb"
    # A random resized crop in training.
    crop: bool = True
    # The least share of a frame's area that a crop holds.
    scale_min: float = Field(0.08, gt=0, le=1)
    # Half of the frames are mirrored in training.
    flip: bool = True
    # See `augment.constants`.
    normalize: augment.Normalize = "imagenet"

    @model_validator(mode="after")
    def _enough_kept(self) -> FramesConfig:
        if self.keep is not None and self.keep < self.frames:
            raise ValueError(f"keep: must be at least frames ({self.frames}), got {self.keep}")
        return self

    @property
    def channels(self) -> int:
        """C."""
        if self.color == "rgb":
            return 3
        return 1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, C, S, S), of one sample as a batch holds it."""
        return self.frames, self.channels, self.size, self.size


@dataclass(frozen=True)
class FrameStore(ClipStore):
    """An opened store of frames."""

    mapped = ("index", "pixels")
    config: FramesConfig

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, C, S, S), of one sample as a batch holds it."""
        return self.config.shape

    @cached_property
    def index(self) -> Index:
        """int64 [N, 4]: offset, frames, H, W. Raises DataError when the file is damaged."""
        found = np.array(read_array(self.opened.folder, INDEX))
        if (
            found.shape != (len(self.opened.rows), 4)
            or found.dtype != np.int64
            or found[:, 1:].min() < 1
        ):
            raise damaged(self.opened.folder, INDEX)
        return found

    @cached_property
    def pixels(self) -> Pixels:
        """uint8, flat, read-only and memory-mapped. Raises DataError when the file is damaged."""
        found = read_array(self.opened.folder, PIXELS)
        ends = self.index[:, 0] + self.index[:, 1:].prod(1) * self.config.channels
        if found.ndim != 1 or found.dtype != np.uint8 or len(found) != ends.max():
            raise damaged(self.opened.folder, PIXELS)
        return found

    def stored(self, ids: Sequence[str]) -> Stored:
        return _Frames(self.shape, self, self.rows(ids), torch.device("cpu"))


class _Frames(StoredRows[FrameStore]):
    """`take` gives float32 [B, T, C, S, S]."""

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> Padded:
        config = self.store.config
        clips = self.store.index[self.rows[index.cpu().numpy()]]
        places = choose(clips[:, 1], config.frames, generator)
        sizes = torch.from_numpy(clips[:, 2:]).repeat_interleave(config.frames, 0)
        boxes = None
        flip = None
        if generator is not None and config.crop:
            boxes = augment.crop_boxes(sizes, config.scale_min, generator).tolist()
        if generator is not None and config.flip:
            flip = augment.flips(len(sizes), generator)
        cut = _cut(self.store.pixels, clips, places, boxes, config.channels)
        pixels = augment.batch(cut, config.size, flip, config.normalize, self.device)
        return Padded(pixels.unflatten(0, places.shape))


def choose(counts: Index, frames: int, generator: torch.Generator | None) -> Index:
    """int64 [B, T], increasing: which of each clip's `counts` [B] frames a batch holds (see the
    module).
    """
    places = (np.arange(frames) * 2 + 1) * counts[:, None] // (2 * frames)
    if generator is None:
        return places
    draws = torch.rand(len(counts), int(max(counts.max(), frames)), generator=generator).numpy()
    # Frames that a clip does not have come last; the first T of a random order are T different
    # ones.
    draws[np.arange(draws.shape[1]) >= counts[:, None]] = 2
    drawn = np.sort(np.argsort(draws, axis=1, kind="stable")[:, :frames], axis=1)
    return np.where(counts[:, None] >= frames, drawn, places)


def _cut(
    pixels: Pixels, clips: Index, places: Index, boxes: list[list[int]] | None, channels: int
) -> list[Pixels]:
    """Views H x W x C of the chosen frames [B T], cut to boxes [B T] (top, left, height, width)."""
    out: list[Pixels] = []
    for (offset, _, height, width), chosen in zip(clips.tolist(), places.tolist(), strict=True):
        size = height * width * channels
        for place in chosen:
            begin = offset + place * size
            frame = pixels[begin : begin + size].reshape(height, width, channels)
            if boxes is not None:
                top, left, h, w = boxes[len(out)]
                frame = frame[top : top + h, left : left + w]
            out.append(frame)
    return out


def open_frames(name: str, clips: Mapping[str, Files], config: FramesConfig) -> FrameStore:
    """The store of the clips' frames, decoded first if it is not there.

    name: the data set, for messages and the folder; clips: image files by id, in order of time.
    Raises DataError when the cache cannot be written or a store is damaged.
    """
    settings = {
        "version": VERSION,
        "stored_size": config.stored_size,
        "keep": config.keep,
        "color": config.color,
        "libraries": {"pillow": version("pillow").partition(".")[0]},
    }
    kept = {}
    for clip, files in clips.items():
        kept[clip] = evenly(files, config.keep)
    recipe = StoreRecipe(name, "frames", settings, kept)
    opened = open_store(
        recipe, lambda folder, ids: _Builder(folder, [kept[i] for i in ids], config).run(ids, name)
    )
    store = FrameStore(opened, config)
    _ = store.pixels  # a damaged store is told of now, not by the first batch
    return store


def evenly(files: Files, keep: int | None) -> Files:
    """At most `keep` of the files, at the centres of equal segments; None: all."""
    if keep is None or len(files) <= keep:
        return files
    return tuple(files[(2 * i + 1) * len(files) // (2 * keep)] for i in range(keep))


class _Builder:
    """Fills the folder of a store with the frames of `clips`, one tuple of files per row."""

    def __init__(self, folder: Path, clips: list[Files], config: FramesConfig) -> None:
        self.folder = folder
        self.clips = clips
        self.config = config

    def run(self, ids: list[str], name: str) -> dict[str, str]:
        """Returns the clips that could not be read, with the reason."""
        heads = each(self._head, len(ids), f"{name}: reading sizes of frames")
        index = np.empty((len(ids), 4), dtype=np.int64)
        index[:, 1:] = [NOTHING if isinstance(head, str) else head for head in heads]
        ends = index[:, 1:].prod(1).cumsum() * self.config.channels
        index[:, 0] = [0, *ends[:-1]]
        with StoreWriter(self.folder / INDEX, np.int64, index.shape) as out:
            out.put(0, index)
        with StoreWriter(self.folder / PIXELS, np.uint8, (int(ends[-1]),)) as out:

            def store(row: int) -> str:
                head = heads[row]
                if isinstance(head, str):
                    return head
                return self._decode(out, self.clips[row], index[row])

            found = each(store, len(ids), f"{name}: frames")
        return {clip: reason for clip, reason in zip(ids, found, strict=True) if reason}

    def _head(self, row: int) -> tuple[int, int, int] | str:
        """Frames, H and W of a clip as it is stored, from its first file's header; or why it cannot
        be read.
        """
        files = self.clips[row]
        if not files:
            return "no frames"
        try:
            with Image.open(files[0]) as image:
                return len(files), *_reduced(image.height, image.width, self.config.stored_size)
        except failures.OF_IMAGES as error:
            return _reason(files[0], error)

    def _decode(self, out: StoreWriter, files: Files, place: Index) -> str:
        """Writes the frames of a clip; returns why it cannot be read, its pixels are 0 then."""
        offset, _, height, width = place.tolist()
        size = height * width * self.config.channels
        for number, path in enumerate(files):
            try:
                frame = decode(path, height, width, self.config.color)
            except failures.OF_IMAGES as error:
                reason = _reason(path, error)
                for before in range(number):
                    out.put(offset + before * size, np.zeros(size, dtype=np.uint8))
                return reason
            out.put(offset + number * size, frame)
        return ""


def _reason(path: Path, error: Exception) -> str:
    """Why the file is bad. Raises MachineError where the machine failed."""
    failures.refuse(path, error)
    text = (getattr(error, "strerror", None) or str(error)).removesuffix(f" {str(path)!r}")
    return f"{path}: is not a readable image: {text}"


def _reduced(height: int, width: int, shorter: int | None) -> tuple[int, int]:
    """H and W with the shorter side reduced to `shorter`; never enlarged."""
    if shorter is None:
        factor = 1.0
    else:
        factor = min(1.0, shorter / min(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def decode(path: Path, height: int, width: int, color: Literal["rgb", "grey"]) -> Pixels:
    """uint8 H x W x C of an image file, resized (Pillow's bilinear, which smooths when it reduces)
    if need be.

    Raises what Pillow raises for unreadable files, ValueError for pixels of more than 8 bits.
    """
    with Image.open(path) as image:
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"pixels must have 8 bits, got mode {image.mode}")
        plain = image.convert("RGB" if color == "rgb" else "L")
    if plain.size != (width, height):
        plain = plain.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(plain).reshape(height, width, -1)
