"""Spectrograms of audio clips, computed once by a front-end and kept in a store as float32 [N, H,
W].

A batch is gathered from the memory map: in training each sample is a random crop along the
front-end's time axis, in evaluation the central one. Only the crops travel to the device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tune_mm import plugins
from tune_mm.config import Section
from tune_mm.core.types import Padded, Stored
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.audio import waves
from tune_mm.data.audio.frontends.base import Frontend
from tune_mm.data.store.cache import StoreRecipe, StoreWriter, damaged, open_store, read_array
from tune_mm.data.store.failures import MachineError
from tune_mm.data.store.rows import ClipStore, StoredRows
from tune_mm.data.store.threads import each

# Raise it when the same files and settings would give other values.
VERSION = 1
VALUES = "spectrograms.npy"


@dataclass(frozen=True)
class SpectrogramStore(ClipStore):
    """An opened store of spectrograms.

    shape: of one sample as a batch holds it, (1, H, W); time_axis: the axis of (H, W) that is
    cropped.
    """

    mapped = ("values",)
    stored_shape: tuple[int, int]
    shape: tuple[int, int, int]
    time_axis: int

    @cached_property
    def values(self) -> NDArray[np.float32]:
        """float32 [N, H, W], read-only and memory-mapped. Raises DataError when the file is
        damaged.
        """
        found = read_array(self.opened.folder, VALUES)
        if found.shape != (len(self.opened.rows), *self.stored_shape) or found.dtype != np.float32:
            raise damaged(self.opened.folder, VALUES)
        return found

    def stored(self, ids: Sequence[str]) -> Stored:
        return _Spectrograms(self.shape, self, self.rows(ids), torch.device("cpu"))


class _Spectrograms(StoredRows[SpectrogramStore]):
    """`take` gives float32 [B, 1, H, W]."""

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> Padded:
        rows = self.rows[index.cpu().numpy()]
        axis = self.store.time_axis
        slack = self.store.stored_shape[axis] - self.store.shape[1 + axis]
        if generator is None:
            starts = [slack // 2] * len(rows)
        else:
            starts = torch.randint(slack + 1, (len(rows),), generator=generator).tolist()
        value = torch.from_numpy(_gather(self.store.values, rows, starts, self.store.shape, axis))
        return Padded(value.to(self.device))


def _gather(
    values: NDArray[np.float32],
    rows: NDArray[np.int64],
    starts: Sequence[int],
    shape: tuple[int, int, int],
    axis: int,
) -> NDArray[np.float32]:
    """[B, 1, H, W]: from each row of values [N, H', W'] the part of `shape` that begins at its
    start along `axis`.
    """
    if values.shape[1:] == shape[1:]:
        return np.take(values, rows, axis=0)[:, None]
    out = np.empty((len(rows), *shape), dtype=np.float32)
    length = shape[1 + axis]
    for target, row, start in zip(out[:, 0], rows, starts, strict=True):
        part = slice(start, start + length)
        target[...] = values[row, part] if axis == 0 else values[row, :, part]
    return out


def open_spectrograms(name: str, clips: Mapping[str, Path], config: Section) -> SpectrogramStore:
    """The store of the clips' spectrograms, computed first if it is not there.

    name: the data set, for messages and the folder; clips: audio file by id; config: a front-end's
    section. Raises DataError when the cache cannot be written or a store is damaged.
    """
    frontend_name = cast(str, getattr(config, "name", ""))
    frontend: Frontend = plugins.load("frontends", frontend_name)(config)
    settings = {
        "version": [VERSION, frontend.VERSION],
        "frontend": config.model_dump(mode="json"),
        "libraries": {library: version(library) for library in ("librosa", "soxr")},
    }
    recipe = StoreRecipe(
        name, "spectrograms", settings, {clip: (path,) for clip, path in clips.items()}
    )
    opened = open_store(
        recipe, lambda folder, ids: _build(folder, [clips[i] for i in ids], ids, frontend, name)
    )
    store = SpectrogramStore(opened, frontend.stored, frontend.shape, frontend.time_axis)
    _ = store.values  # a damaged store is told of now, not by the first batch
    return store


def _build(
    folder: Path, files: list[Path], ids: list[str], frontend: Frontend, name: str
) -> dict[str, str]:
    """Writes the spectrograms of `files`; returns what could not be read, with the reason."""
    size = int(np.prod(frontend.stored))
    with StoreWriter(folder / VALUES, np.float32, (len(files), *frontend.stored)) as out:

        def store(row: int) -> str:
            try:
                spectrogram = compute(files[row], frontend)
            except MachineError:
                raise
            except DataError as error:
                return str(error)
            out.put(row * size, spectrogram)
            return ""

        found = each(store, len(files), f"{name}: spectrograms")
    return {clip: reason for clip, reason in zip(ids, found, strict=True) if reason}


def compute(path: Path, frontend: Frontend) -> NDArray[np.float32]:
    """The spectrogram float32 `frontend.stored` of an audio file. Raises DataError naming the file."""
    spectrogram = frontend.compute(waves.read(path, frontend.rate))
    if not np.isfinite(spectrogram).all():
        raise DataError(f"{path}: its spectrogram holds values that are not finite")
    return spectrogram
