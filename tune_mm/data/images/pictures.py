"""Pictures of one size, decoded once and kept in a store: colours, depth and labels, memory-mapped.

rgb      uint8 [N, H, W, 3]; files of another size are resized (bilinear)
depth    uint16 [N, H, W], as 16-bit files hold it; resized to the nearest pixels
labels   uint8 [N, H, W], classes 0..C-1 of files that hold them as 1..C, VOID for 0; nearest pixels; and the
         pixels of each class in each picture, int64 [N, C]
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
ALLOWED = {"rgb": ("RGB", "L", "P", "RGBA"), "depth": ("I;16", "I;16B", "I"), "labels": ("L", "P")}


@dataclass(frozen=True)
class Look:
    """How a batch shows stored values: (x - mean) / std per channel, in the unit of the files (of
    rgb: 0..1).

    jitter: of colours, in training.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    jitter: Jitter | None = None


@dataclass(frozen=True)
class PictureStore(ClipStore):
    """An opened store. look: of its batches; labels have none."""

    mapped = ("values", "counts")
    kind: Kind
    size: Size
    look: Look = Look((0.0,), (1.0,))

    @cached_property
    def values(self) -> Array:
        """[N, H, W] or [N, H, W, 3], memory-mapped; never written to. Raises DataError when the
        file is damaged.
        """
        try:
            # Copy-on-write, since torch takes no read-only arrays: the pages are shared as long as
            # nobody writes.
            found = np.asarray(
                np.load(self.opened.folder / VALUES, mmap_mode="c", allow_pickle=False)
            )
        except (OSError, ValueError, EOFError) as error:
            raise damaged(self.opened.folder, VALUES) from error
        if (
            found.shape != _shape(self.kind, len(self.opened.rows), self.size)
            or found.dtype != DTYPES[self.kind]
        ):
            raise damaged(self.opened.folder, VALUES)
        return found

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """Of labels: pixels of each class, int64 [N, C]. Raises DataError when the file is damaged."""
        return read_array(self.opened.folder, COUNTS)

    def stored(self, ids: Sequence[str]) -> Stored:
        channels = 3 if self.kind == "rgb" else 1
        return _Pictures((channels, *self.size), self, self.rows(ids), torch.device("cpu"))


class _Pictures(StoredRows[PictureStore]):
    """`take` gives float32 [B, C, H, W]."""

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> Padded:
        look = self.store.look
        raw = self.store.values[self.rows[index.cpu().numpy()]]
        if self.store.kind == "rgb":
            values = torch.from_numpy(raw).to(self.device).permute(0, 3, 1, 2).float() / 255
        else:
            values = torch.from_numpy(raw.astype(np.float32)).to(self.device)[:, None]
        if look.jitter is not None and generator is not None:
            values = look.jitter(values, generator)
        mean, std = (
            torch.tensor(c, device=self.device)[:, None, None] for c in (look.mean, look.std)
        )
        return Padded(((values - mean) / std).contiguous())


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
    settings = {"version": VERSION, "size": list(size), "resize": resize, "classes": classes,
                "pillow": version("pillow").partition(".")[0]}  # fmt: skip
    recipe = StoreRecipe(name, kind, settings, {i: (path,) for i, path in files.items()})
    opened = open_store(
        recipe, lambda folder, ids: _build(folder, [files[i] for i in ids], ids, recipe, size)
    )
    for i, reason in opened.bad.items():
        raise DataError(f"{files[i]}: {reason}")
    if look is None:
        store = PictureStore(opened, kind, size)
    else:
        store = PictureStore(opened, kind, size, look)
    _ = store.values  # a damaged store is told of now, not by the first batch
    return store


def picture_size(path: Path) -> Size:
    """H x W of a picture. Raises DataError."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except failures.OF_IMAGES as error:
        raise DataError(f"{path}: {_reason(path, error)}") from error


def _shape(kind: Kind, count: int, size: Size) -> tuple[int, ...]:
    if kind == "rgb":
        return count, *size, 3
    return (count, *size)


def _build(
    folder: Path, files: list[Path], ids: list[str], recipe: StoreRecipe, size: Size
) -> dict[str, str]:
    """Fills the folder of a store; returns the files that cannot be read, with the reason."""
    kind: Kind = recipe.kind  # type: ignore[assignment]
    classes = recipe.settings["classes"]
    resize = recipe.settings["resize"]
    shape = _shape(kind, len(files), size)
    counts = np.zeros((len(files), classes), np.int64)
    with StoreWriter(folder / VALUES, DTYPES[kind], shape) as out:

        def store(row: int) -> str:
            try:
                values = _decoded(files[row], kind, size, resize, classes)
                if kind == "labels":
                    counts[row] = class_counts(values[None], classes)[0]
            except failures.OF_IMAGES as error:
                return _reason(files[row], error)
            out.put(row * int(np.prod(shape[1:])), values)
            return ""

        found = each(store, len(files), f"{recipe.name}: {kind}")
    if kind == "labels":
        with StoreWriter(folder / COUNTS, np.int64, counts.shape) as out:
            out.put(0, counts)
    return {i: reason for i, reason in zip(ids, found, strict=True) if reason}


def _decoded(path: Path, kind: Kind, size: Size, resize: bool, classes: int) -> Array:
    """What is stored of a file. Raises what Pillow raises, and ValueError."""
    with Image.open(path) as image:
        if image.mode not in ALLOWED[kind]:
            what = {"rgb": "a colour picture", "depth": "16-bit grey", "labels": "8-bit grey"}[kind]
            raise ValueError(f"{kind} must be {what}, got mode {image.mode}")
        if (image.height, image.width) != size and not resize:
            raise ValueError(
                f"must be {size[0]} x {size[1]}, got {image.height} x {image.width}; or set data.size"
            )
        if kind == "rgb":
            plain = image.convert("RGB")
            return np.asarray(
                plain
                if plain.size == size[::-1]
                else plain.resize(size[::-1], Image.Resampling.BILINEAR)
            )
        raw = np.asarray(image)
    rows, columns = (
        np.arange(wanted) * given // wanted for wanted, given in zip(size, raw.shape, strict=True)
    )
    values = raw[rows][:, columns]
    if kind == "depth":
        if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
            raise ValueError(
                f"depth must be between 0 and 65535, got {values.min()} to {values.max()}"
            )
        return values.astype(np.uint16)
    if values.max() > classes:
        raise ValueError(f"labels must be between 0 and {classes}, got {values.max()}")
    return values - np.uint8(1)  # 0 wraps around to VOID


def _reason(path: Path, error: Exception) -> str:
    """Why the file is bad. Raises MachineError where the machine failed."""
    failures.refuse(path, error)
    return f"is not a readable picture: {getattr(error, 'strerror', None) or error}"
