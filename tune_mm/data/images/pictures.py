"""Pictures of one size, decoded once and kept in a store: colours, depth and labels, memory-mapped.

rgb      uint8 [N, H, W, 3]; files of another size are resized (bilinear)
depth    uint16 [N, H, W], as 16-bit files hold it; resized to the nearest pixels
labels   uint8 [N, H, W], classes 0..C-1 of files that hold them as 1..C, VOID for 0; nearest
         pixels; and the pixels of each class in each picture, int64 [N, C]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from tune_mm.core.types import Padded, Stored
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.images.colour import Jitter
from tune_mm.data.images.frequency import class_counts
from tune_mm.data.store import failures
from tune_mm.data.store.cache import StoreRecipe, StoreWriter, damaged, open_store, read_array
from tune_mm.data.store.rows import ClipStore, StoredRows
from tune_mm.data.store.threads import each

# Raise it when the same files and settings would give other values.
VERSION = 1
VALUES = "values.npy"
COUNTS = "counts.npy"

Kind = Literal["rgb", "depth", "labels"]
Size = tuple[int, int]
Array = NDArray[Any]
DTYPES: dict[Kind, type[np.unsignedinteger[Any]]] = {
    "rgb": np.uint8,
    "depth": np.uint16,
    "labels": np.uint8,
}
# Pillow's modes that a file may have, and what they are, for messages.
MODES: dict[Kind, tuple[str, ...]] = {
    "rgb": ("RGB", "L", "P", "RGBA"),
    "depth": ("I;16", "I;16B", "I"),
    "labels": ("L", "P"),
}
ALLOWED: dict[Kind, str] = {
    "rgb": "a colour picture",
    "depth": "16-bit grey",
    "labels": "8-bit grey",
}


@dataclass(frozen=True)
class Look:
    """How a batch shows stored values: (x - mean) / std per channel, in the unit of the files.

    That of rgb is 0..1.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    # Of colours, in training.
    jitter: Jitter | None = None


@dataclass(frozen=True)
class PictureStore(ClipStore):
    """An opened store."""

    mapped = ("values", "counts")
    kind: Kind
    size: Size
    # Of its batches; labels have none.
    look: Look = Look((0.0,), (1.0,))

    @cached_property
    def values(self) -> Array:
        """[N, H, W] or [N, H, W, 3], memory-mapped; never written to.

        Raises DataError when the file is damaged.
        """
        folder = self.opened.folder
        found = read_array(folder, VALUES, "c")
        expected = _shape(self.kind, len(self.opened.rows), self.size)
        if found.shape != expected or found.dtype != DTYPES[self.kind]:
            raise damaged(folder, VALUES)
        return found

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Of labels: pixels of each class, int64 [N, C]. Raises DataError for a damaged file."""
        return read_array(self.opened.folder, COUNTS)

    def stored(self, ids: Sequence[str]) -> Stored:
        channels = 3 if self.kind == "rgb" else 1
        shape = (channels, *self.size)
        return _Pictures(shape, self, self.rows(ids), torch.device("cpu"))


class _Pictures(StoredRows[PictureStore]):
    """`take` gives float32 [B, C, H, W]."""

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> Padded:
        look = self.store.look
        rows = self.rows[index.cpu().numpy()]
        raw = self.store.values[rows]
        if self.store.kind == "rgb":
            pixels = torch.from_numpy(raw).to(self.device)
            values = pixels.permute(0, 3, 1, 2).float() / 255
        else:
            pixels = torch.from_numpy(raw.astype(np.float32))
            values = pixels.to(self.device)[:, None]
        if look.jitter is not None and generator is not None:
            values = look.jitter(values, generator)
        mean = torch.tensor(look.mean, device=self.device)
        std = torch.tensor(look.std, device=self.device)
        values = (values - mean[:, None, None]) / std[:, None, None]
        return Padded(values.contiguous())


def open_pictures(
    name: str,
    kind: Kind,
    files: Mapping[str, Path],
    size: Size,
    resize: bool,
    classes: int = 0,
    look: Look | None = None,
) -> PictureStore:
    """The store of `files` by id, decoded first if it is not there.

    name: the data set; size: H x W; resize: whether files may have another one; classes: of labels.
    Raises DataError for a file that cannot be read, naming it, when the cache cannot be written and
    when a store is damaged. That a file is bad is stored; a failure of the machine (memory, too
    many open files, the disk) is not: the next run tries again.
    """
    settings = {
        "version": VERSION,
        "size": list(size),
        "resize": resize,
        "classes": classes,
        "pillow": version("pillow").partition(".")[0],
    }
    sources = {picture: (path,) for picture, path in files.items()}
    recipe = StoreRecipe(name, kind, settings, sources)
    decoder = _Decoder(kind, size, resize, classes)

    def build(folder: Path, ids: list[str]) -> dict[str, str]:
        paths = [files[picture] for picture in ids]
        reasons = _build(folder, paths, decoder, name)
        found = {}
        for picture, reason in zip(ids, reasons, strict=True):
            if reason:
                found[picture] = reason
        return found

    opened = open_store(recipe, build)
    for picture, reason in opened.bad.items():
        raise DataError(f"{files[picture]}: {reason}")
    store = PictureStore(opened, kind, size, look or PictureStore.look)
    # A damaged store is reported now, not by the first batch.
    _ = store.values
    return store


def picture_size(path: Path) -> Size:
    """H x W of a picture. Raises DataError."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except failures.OF_IMAGES as error:
        raise DataError(f"{path}: {_reason(path, error)}") from error


def _shape(kind: Kind, count: int, size: Size) -> tuple[int, ...]:
    """Of the values of `count` pictures."""
    if kind == "rgb":
        return (count, *size, 3)
    return (count, *size)


def _build(folder: Path, files: list[Path], decoder: _Decoder, name: str) -> list[str]:
    """Fills the folder of a store; returns why each file cannot be read, "" where it can."""
    kind = decoder.kind
    shape = _shape(kind, len(files), decoder.size)
    values_each = int(np.prod(shape[1:]))
    counts = np.zeros((len(files), decoder.classes), np.int64)
    with StoreWriter(folder / VALUES, DTYPES[kind], shape) as out:

        def store(row: int) -> str:
            try:
                values = decoder.decoded(files[row])
                if kind == "labels":
                    counts[row] = class_counts(values[None], decoder.classes)[0]
            except failures.OF_IMAGES as error:
                return _reason(files[row], error)
            out.put(row * values_each, values)
            return ""

        reasons = each(store, len(files), f"{name}: {kind}")
    if kind == "labels":
        with StoreWriter(folder / COUNTS, np.int64, counts.shape) as out:
            out.put(0, counts)
    return reasons


@dataclass(frozen=True)
class _Decoder:
    """From a file to what is stored of it."""

    kind: Kind
    size: Size
    # Whether files may have another size.
    resize: bool
    # Of labels.
    classes: int

    def decoded(self, path: Path) -> Array:
        """H x W, or H x W x 3, of the kind's dtype. Raises what Pillow raises, and ValueError."""
        with Image.open(path) as image:
            self._check(image)
            if self.kind == "rgb":
                return self._colours(image)
            raw = np.asarray(image)
        if self.kind == "depth":
            return self._depth(raw)
        return self._labels(raw)

    def _check(self, image: Image.Image) -> None:
        if image.mode not in MODES[self.kind]:
            raise ValueError(f"{self.kind} must be {ALLOWED[self.kind]}, got mode {image.mode}")
        height, width = self.size
        if (image.height, image.width) != self.size and not self.resize:
            raise ValueError(
                f"must be {height} x {width}, got {image.height} x {image.width}; or set data.size"
            )

    def _colours(self, image: Image.Image) -> Array:
        height, width = self.size
        plain = image.convert("RGB")
        if plain.size != (width, height):
            plain = plain.resize((width, height), Image.Resampling.BILINEAR)
        return np.asarray(plain)

    def _depth(self, raw: Array) -> Array:
        values = self._nearest(raw)
        low = values.min()
        high = values.max()
        if low < 0 or high > np.iinfo(np.uint16).max:
            raise ValueError(f"depth must be between 0 and 65535, got {low} to {high}")
        return values.astype(np.uint16)

    def _labels(self, raw: Array) -> Array:
        values = self._nearest(raw)
        if values.max() > self.classes:
            raise ValueError(f"labels must be between 0 and {self.classes}, got {values.max()}")
        # 0 wraps around to VOID.
        return values - np.uint8(1)

    def _nearest(self, raw: Array) -> Array:
        """H x W out of the nearest pixels of a picture of any size."""
        height, width = self.size
        rows = np.arange(height) * raw.shape[0] // height
        columns = np.arange(width) * raw.shape[1] // width
        return raw[rows][:, columns]


def _reason(path: Path, error: Exception) -> str:
    """Why the file is bad. Raises MachineError where the machine failed."""
    failures.refuse(path, error)
    reason = getattr(error, "strerror", None) or error
    return f"is not a readable picture: {reason}"
