"""Brain scans of several sequences, one .h5 file per case, and the store of their tumour slices.

A file holds `image` [M, H, W, D], finite numbers of M sequences, and `label` [H, W, D], classes
0..3 (4 is read as 3, which BraTS does not use). Stored are the slices along D that hold a tumour (a
class other than 0): image float16 [S, M, H, W], label uint8 [S, H, W], and int64 [S, 2] the place
of each along D and the pixels of its tumour. Every case has a store of its own: an interrupted run
resumes at the case where it stopped, and several processes share the work.

No file of these stores stays open or mapped: a batch reads its planes where they lie, out of the
pages that the system keeps for all processes. Labels that evaluation sees are stored once more,
those of a split together in one file, which is mapped. So it is at the 1,251 cases of BraTS 2021
too, of some 65 slices each: a slice of 240 x 240 takes 240 * 240 * (4 * 2 + 1) = 518,400 bytes, a
case 34 MB, all of them 42 GB on disk, and evaluation's labels 57,600 bytes a slice. What a process
holds in memory are the places, 16 bytes a slice.

Shape legend: M sequences (modalities), S stored slices of a case, N samples.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor

from tune_mm.core.types import Padded, Stored
from tune_mm.data.arrays.checks import Index
from tune_mm.data.store import failures
from tune_mm.data.store.cache import (
    StoreRecipe,
    StoreWriter,
    damaged,
    open_store,
    read_array,
    unread,
)
from tune_mm.data.store.threads import each

# Raise it when the same files would give other values.
VERSION = 1
CLASSES = 4
# The most that is read; a scan of BraTS has 240 x 240 x 155 = 9 million voxels.
SIDE = 1024
VOXELS = 2**26
# Slices that are in memory at once while labels are copied.
PART = 64
IMAGES = "images.npy"
LABELS = "labels.npy"
PLACES = "places.npy"


@dataclass(frozen=True, eq=False)
class ScanCase:
    """An opened store."""

    folder: Path
    # H x W of the slices.
    size: tuple[int, int]
    # int64 [S, 2], in memory.
    places: Index
    # Where the values begin in the files of images and labels, in bytes.
    starts: Mapping[str, int]

    def read(self, file: str, number: int, out: NDArray[Any]) -> None:
        """Fills `out` [H, W] with a plane of a file, by its number there. Raises DataError."""
        try:
            with (self.folder / file).open("rb") as opened:
                opened.seek(self.starts[file] + number * out.nbytes)
                whole = opened.readinto(out.data) == out.nbytes
        except OSError as error:
            raise unread(self.folder, file, error) from error
        if not whole:
            raise damaged(self.folder, file)


class Cases:
    """Opened stores, by case in order of their names. bad: cases that could not be read, with the
    reason; modalities: how many.
    """

    def __init__(
        self, opened: Mapping[str, ScanCase], bad: Mapping[str, str], modalities: int
    ) -> None:
        self.opened = list(opened.values())
        self.bad = bad
        self.modalities = modalities
        self.number = {case: i for i, case in enumerate(opened)}

    def __getitem__(self, case: str) -> ScanCase:
        return self.opened[self.number[case]]

    def places(self, case: str) -> list[int]:
        """Of a case's stored slices along D, ascending."""
        return [int(z) for z in self[case].places[:, 0]]

    def middle(self, case: str) -> int:
        """The stored slice with the largest tumour, the first of several."""
        return int(self[case].places[:, 1].argmax())

    def samples(self, chosen: Sequence[tuple[str, int]], channel: int | None) -> Slices:
        """A modality (None: the labels) of samples: a case and the slice that evaluation sees."""
        cases = np.array([self.number[case] for case, _ in chosen], np.int64)
        counts = np.array([len(self.opened[i].places) for i in cases], np.int64)
        size = self[chosen[0][0]].size
        shape = size if channel is None else (1, *size)
        rows = np.array([row for _, row in chosen], np.int64)
        return Slices(shape, self, channel, cases, rows, counts, torch.device("cpu"))


@dataclass(frozen=True, eq=False)
class Slices(Stored):
    """One modality of N samples, or their labels."""

    shape: tuple[int, ...]
    cases: Cases
    # None: the labels.
    channel: int | None
    # int64 [N], the number of a sample's case.
    case: Index
    # int64 [N], its slice in evaluation.
    row: Index
    # int64 [N], how many slices there are, of which training draws one.
    count: Index
    device: torch.device

    @property
    def content(self) -> str:
        total = hashlib.blake2b(digest_size=12)
        for number in np.unique(self.case):
            total.update(self.cases.opened[number].folder.name.encode())  # ends in the store's key
        total.update(self.case.tobytes() + self.row.tobytes())
        return total.hexdigest()

    def __len__(self) -> int:
        return len(self.case)

    def to(self, device: torch.device) -> Stored:
        return replace(self, device=device)

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> Padded:
        """float32 [B, 1, H, W], or of the labels uint8 [B, H, W]."""
        chosen = index.cpu().numpy()
        rows = self.row[chosen]
        if generator is not None:
            draws = torch.rand(len(chosen), generator=generator, dtype=torch.float64).numpy()
            rows = (draws * self.count[chosen]).astype(np.int64)
        value = torch.from_numpy(self._planes(self.case[chosen], rows)).to(self.device)
        return Padded(value if self.channel is None else value.float()[:, None])

    def _planes(self, cases: Index, rows: Index) -> NDArray[Any]:
        """[B, H, W]."""
        file, dtype = (LABELS, np.uint8) if self.channel is None else (IMAGES, np.float16)
        out = np.empty((len(rows), *self.shape[-2:]), dtype)
        for plane, case, row in zip(out, cases.tolist(), rows.tolist(), strict=True):
            if self.channel is None:
                number = row
            else:
                number = row * self.cases.modalities + self.channel
            self.cases.opened[case].read(file, number, plane)
        return out


def open_cases(name: str, files: Mapping[str, Path], modalities: tuple[str, ...]) -> Cases:
    """The stores of the cases, made first where they are not there.

    name: the data set, for messages; files: by case; modalities: what the first axis of `image` is.
    Raises DataError when the cache cannot be written, a store is damaged, or the system fails to
    read a file (see `_build`).
    """
    ids = sorted(files)
    settings = {"version": VERSION, "modalities": list(modalities)}

    def opened(i: int) -> tuple[ScanCase | None, Mapping[str, str]]:
        case = ids[i]
        recipe = StoreRecipe(name, "slices", settings, {case: (files[case],)}, quiet=True)
        found = open_store(recipe, partial(_build, files[case], len(modalities)))
        return None if found.bad else _opened(found.folder, len(modalities)), found.bad

    found = each(opened, len(ids), f"{name}: tumour slices")
    bad = {case: reason for _, own in found for case, reason in own.items()}
    return Cases(
        {i: case for i, (case, _) in zip(ids, found, strict=True) if case}, bad, len(modalities)
    )


def open_labels(name: str, cases: Cases, chosen: Sequence[tuple[str, int]]) -> NDArray[np.uint8]:
    """Labels of samples [N, H, W], in a store of their own: mapped, so that all processes share
    their pages.

    name: the data set; chosen: see `Cases.samples`. Never written to. Raises DataError like
    `open_cases`.
    """
    labels = cases.samples(chosen, None)
    shape = (len(labels), *labels.shape)

    def build(folder: Path, ids: list[str]) -> dict[str, str]:
        with StoreWriter(folder / LABELS, np.uint8, shape) as out:
            for start in range(0, len(labels), PART):
                part = torch.arange(start, min(start + PART, len(labels)))
                out.put(start * math.prod(shape[1:]), labels.take(part).value.numpy())
        return {}

    total = hashlib.blake2b(json.dumps(chosen).encode(), digest_size=16).hexdigest()
    sources = {}
    for case, _ in chosen:
        sources[case] = (cases[case].folder / LABELS,)
    folder = open_store(
        StoreRecipe(name, "labels", {"version": VERSION, "samples": total}, sources, quiet=True),
        build,
    ).folder
    found = read_array(folder, LABELS, "c")
    if found.shape != shape or found.dtype != np.uint8:
        raise damaged(folder, LABELS)
    return found


def _opened(folder: Path, modalities: int) -> ScanCase:
    """Raises DataError when the store is damaged."""
    arrays = {file: read_array(folder, file) for file in (IMAGES, LABELS, PLACES)}
    count = len(arrays[LABELS])
    size = arrays[LABELS].shape[1:]
    expected: dict[str, tuple[DTypeLike, tuple[int, ...]]] = {
        IMAGES: (np.float16, (count, modalities, *size)),
        LABELS: (np.uint8, (count, *size)),
        PLACES: (np.int64, (count, 2)),
    }
    plausible = count > 0 and len(size) == 2
    for file, (dtype, shape) in expected.items():
        found = arrays[file]
        if not plausible or found.dtype != dtype or found.shape != shape:
            raise damaged(folder, file)
    # A store's files end where their values do (see `StoreWriter`).
    starts = {
        file: (folder / file).stat().st_size - arrays[file].nbytes for file in (IMAGES, LABELS)
    }
    return ScanCase(folder, (size[0], size[1]), np.array(arrays[PLACES]), starts)


def _build(path: Path, modalities: int, folder: Path, ids: list[str]) -> dict[str, str]:
    """Fills the folder of a case's store; returns why the case cannot be read.

    Raises MachineError for what is no fault of the file: what is returned is stored for good.
    """
    try:
        images, labels, places = read_case(path, modalities)
    except (ValueError, OSError, RuntimeError, LookupError, MemoryError) as error:
        failures.refuse(path, error)
        if str(error):
            reason = str(error).splitlines()[0]
        else:
            reason = type(error).__name__
        if not isinstance(error, ValueError):
            reason = f"cannot be read: {reason}"
        return {ids[0]: f"{path}: {reason}"}
    for file, values in ((IMAGES, images), (LABELS, labels), (PLACES, places)):
        with StoreWriter(folder / file, values.dtype, values.shape) as out:
            out.put(0, values)
    return {}


def read_case(path: Path, modalities: int) -> tuple[NDArray[np.float16], NDArray[np.uint8], Index]:
    """Slices with a tumour: image [S, M, H, W], label [S, H, W], and int64 [S, 2] (see the module).

    Raises ValueError naming the field, what it is and what it must be; what h5py raises for a file
    that is damaged.
    """
    with h5py.File(path, "r") as file:
        image = _array(file, "image")
        label = _array(file, "label")
        _check_shapes(image, label, modalities)
        classes = _classes(label[()])
        places = np.flatnonzero(classes.any((0, 1)))
        if not len(places):
            raise ValueError("'label' must have a tumour (classes 1 to 3), got none")
        values = image[:, :, :, places[0] : places[-1] + 1][..., places - places[0]]
    if not np.isfinite(values).all():
        raise ValueError("'image' must be finite, got NaN or infinity")
    largest = float(np.abs(values).max())
    most = float(np.finfo(np.float16).max)
    if largest > most:
        raise ValueError(
            f"'image' must be within -{most:g} to {most:g} (z-scored over the brain), "
            f"got {largest:g}"
        )
    slices = np.ascontiguousarray(values.transpose(3, 0, 1, 2), np.float16)
    labels = np.ascontiguousarray(classes[:, :, places].transpose(2, 0, 1))
    return slices, labels, np.stack([places, (labels != 0).sum((1, 2))], 1).astype(np.int64)


def _array(file: Any, key: str) -> Any:
    """A data set that lies in the file itself, not behind a link. Raises ValueError."""
    links = file.id.links
    name = key.encode()
    if not links.exists(name):
        known = (
            ", ".join(repr(k.decode("utf-8", "replace")) for k in list(file.id)[:8]) or "nothing"
        )
        raise ValueError(f"no '{key}'; the file holds {known}")
    if links.get_info(name).type == h5py.h5l.TYPE_HARD:
        found = file[key]
    else:
        found = None
    if found is None or getattr(found, "is_virtual", False) or getattr(found, "external", ()):
        raise ValueError(f"'{key}' must lie in the file itself, got a link")
    if not isinstance(found, h5py.Dataset) or found.dtype.kind not in "fiu":
        raise ValueError(
            f"'{key}' must be an array of numbers, got {getattr(found, 'dtype', 'a group')}"
        )
    return found


def _check_shapes(image: Any, label: Any, modalities: int) -> None:
    """Before anything is read. Raises ValueError."""
    shape = tuple(label.shape)
    if (
        len(shape) != 3
        or not all(1 <= n <= SIDE for n in shape)
        or np.prod(shape, dtype=np.int64) > VOXELS
    ):
        raise ValueError(
            f"'label' must be [H, W, D], each at most {SIDE} and {VOXELS} voxels in all, "
            f"got {list(shape)}"
        )
    if tuple(image.shape) != (modalities, *shape):
        raise ValueError(
            f"'image' must be {[modalities, *shape]} as 'label' is {list(shape)}, "
            f"got {list(image.shape)}"
        )


def _classes(label: NDArray[Any]) -> NDArray[np.uint8]:
    """Classes 0..3. Raises ValueError."""
    low = float(label.min())
    high = float(label.max())
    if not 0 <= low <= high <= CLASSES:
        raise ValueError(
            f"'label' must hold classes 0 to 3 (or 4 in place of 3), got {low:g} to {high:g}"
        )
    out: NDArray[np.uint8] = label.astype(np.uint8)
    if label.dtype.kind == "f" and (out != label).any():
        raise ValueError("'label' must hold whole numbers, got fractions")
    last = out == CLASSES
    if last.any() and (out == CLASSES - 1).any():
        raise ValueError("'label' must hold 3 or 4 as the enhancing tumour, got both")
    out[last] = CLASSES - 1
    return out
