"""A store of frozen features: what pretrained models made of images and texts, once, as
memory-mapped fp16 arrays.

A store is a folder named by its key, a digest of all that decides the values (see `extract`):

    meta.json     ids in the order of the rows (those of train first), number of train's, views, what could not be read
    visual.npy    fp16 [N, T, D]: the plain view of every image
    views.npy     fp16 [K - 1, train, T, D]: the augmented views of train's images; not there for K = 1
    text.npy      fp16 [N, L, E], 0 where `mask.npy`, bool [N, L], is False
    texts.npy     uint64 [N]: a digest of the text as it is listed (0 where the list names a file)

Stores lie in a folder beside the data, so that every node that sees the data sees them. A trial
reads them alone: neither images nor pretrained models need to be there.

Shapes: N samples, K views, T and L steps, D and E channels.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tune_mm.core.types import Padded, Stored
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.base import DataPlugin
from tune_mm.data.store.cache import META, OpenedStore, damaged, read_array
from tune_mm.data.store.rows import ClipStore, StoredRows

# Raise it when stores of an earlier layout must not be read any more.
FORMAT = 1
VISUAL = "visual.npy"
VIEWS = "views.npy"
TEXT = "text.npy"
MASK = "mask.npy"
TEXTS = "texts.npy"
KEY = re.compile(r"[0-9a-f]{16}")

Half = NDArray[np.float16]


@dataclass(frozen=True)
class Sample:
    """An image and a text."""

    # A name of its own.
    id: str
    # The name of its class.
    label: str
    image: Path
    # What is said, or the file of its token numbers [1, n].
    text: str | Path


class FeaturePlugin(DataPlugin):
    """A data set whose images and texts are turned into features once: `python -m tune_mm.data
    extract NAME`.
    """

    stored: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def samples(cls, config: Any, place: Path) -> dict[str, list[Sample]]:
        """All samples by published split, train first. Raises DataError naming file and entry."""

    @classmethod
    @abstractmethod
    def stores(cls, config: Any, place: Path) -> tuple[Path, ...]:
        """The folders in which stores are looked for, in this order; the first is where a new one
        is put.
        """


@dataclass(frozen=True)
class FeatureStore(ClipStore):
    """An opened store."""

    mapped = ("visual", "views", "text", "mask", "texts")
    # The rows 0 .. train - 1 have all views.
    train: int
    # K, the plain view included.
    view_count: int
    # What the features were made with.
    about: str

    @cached_property
    def visual(self) -> Half:
        """[N, T, D]."""
        return self._read(VISUAL, np.float16, (len(self.opened.rows), None, None))

    @cached_property
    def views(self) -> Half:
        """[K - 1, train, T, D]; asked for where there are views only."""
        shape = (self.view_count - 1, self.train, *self.visual.shape[1:])
        return self._read(VIEWS, np.float16, shape)

    @cached_property
    def text(self) -> Half:
        """[N, L, E]."""
        return self._read(TEXT, np.float16, (len(self.opened.rows), None, None))

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """[N, L]."""
        return self._read(MASK, np.bool_, self.text.shape[:2])

    @cached_property
    def texts(self) -> NDArray[np.uint64]:
        """[N]."""
        return self._read(TEXTS, np.uint64, (len(self.opened.rows),))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of one sample by modality. Raises DataError when a file is damaged."""
        if self.view_count > 1:
            _ = self.views  # a damaged store is told of now, not by the first batch
        length = self.mask.shape[1]
        width = self.text.shape[2]
        return {"visual": self.visual.shape[1:], "text": (length, width)}

    def stored(self, ids: Sequence[str]) -> Stored:
        """The plain view of the images `ids`. Raises KeyError for an unknown id."""
        return self.images(ids, drawn=False)

    def images(self, ids: Sequence[str], drawn: bool) -> Stored:
        """The images `ids`, of which a training batch draws a view each if `drawn`. Raises
        KeyError.
        """
        shape = self.shapes["visual"]
        drawn = drawn and self.view_count > 1
        return _Images(shape, self, self.rows(ids), torch.device("cpu"), drawn)

    def said(self, ids: Sequence[str]) -> Stored:
        """The texts `ids`. Raises KeyError for an unknown id."""
        return _Texts(self.shapes["text"], self, self.rows(ids), torch.device("cpu"))

    def _read(self, file: str, dtype: Any, shape: tuple[int | None, ...]) -> NDArray[Any]:
        """A file of this dtype and shape (None: any size but 0). Raises DataError when it is
        another.
        """
        found = read_array(self.opened.folder, file)
        if found.dtype != np.dtype(dtype) or not _fits(found.shape, shape):
            raise damaged(self.opened.folder, file)
        return found


def _fits(shape: tuple[int, ...], wanted: tuple[int | None, ...]) -> bool:
    if len(shape) != len(wanted):
        return False
    for size, own in zip(shape, wanted, strict=True):
        if own is None and size == 0:
            return False
        if own is not None and size != own:
            return False
    return True


@dataclass(frozen=True, eq=False)
class _Images(StoredRows[FeatureStore]):
    """`take` gives float32 [B, T, D]. drawn: whether a training batch draws views."""

    drawn: bool = False

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> Padded:
        rows = self.rows[index.cpu().numpy()]
        values = self.store.visual[rows]
        if generator is not None and self.drawn:
            drawn = torch.randint(self.store.view_count, (len(rows),), generator=generator)
            view = drawn.numpy()
            chosen = (view > 0) & (rows < self.store.train)
            values[chosen] = self.store.views[view[chosen] - 1, rows[chosen]]
        return Padded(_float(values, self.device))


class _Texts(StoredRows[FeatureStore]):
    """`take` gives float32 [B, L, E] and the mask."""

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> Padded:
        rows = self.rows[index.cpu().numpy()]
        mask = torch.from_numpy(self.store.mask[rows]).to(self.device)
        return Padded(_float(self.store.text[rows], self.device), mask)


def _float(values: Half, device: torch.device) -> Tensor:
    """float32 on `device`, to which half as many bytes are moved."""
    return torch.from_numpy(values).to(device).float()


def text_digest(sample: Sample) -> int:
    """64 bits that tell one listed text from another; 0 where the list names a file."""
    if isinstance(sample.text, Path):
        return 0
    digest = hashlib.blake2b(sample.text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") or 1


def meta(
    ids: Sequence[str], train: int, views: int, bad: Mapping[str, str], about: str
) -> dict[str, Any]:
    """The content of meta.json."""
    return {
        "format": FORMAT,
        "ids": list(ids),
        "train": train,
        "views": views,
        "bad": dict(bad),
        "about": about,
    }


def open_features(folder: Path) -> FeatureStore:
    """The whole store in `folder`. Raises DataError when it is damaged."""
    try:
        raw = json.loads((folder / META).read_bytes())
        rows = {name: row for row, name in enumerate(raw["ids"])}
        opened = OpenedStore(folder, rows, raw["bad"])
        store = FeatureStore(opened, int(raw["train"]), int(raw["views"]), str(raw["about"]))
        if raw["format"] != FORMAT:
            raise ValueError(raw["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, META) from error
    return store


def find_store(
    folders: Iterable[Path], samples: Sequence[Sample], wanted: str, command: str
) -> FeatureStore:
    """The store of all `samples` in the first of the folders that has one; later folders are not
    looked at then.

    wanted: the start of its key, "" for any; command: what makes it. Raises DataError when there is
    none, naming the command and why others do not fit, and when several in one folder fit.
    """
    looked = list(folders)
    others: list[str] = []
    for folder in looked:
        fitting, misfits = _fitting(folder, samples, wanted)
        others += misfits
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            several = "; ".join(f"{s.opened.folder.name} ({s.about})" for s in fitting)
            raise DataError(
                f"{folder}: several stores of features fit, choose with data.store=KEY: {several}"
            )
    for folder in looked:
        unfinished = sorted(path.name for path in folder.glob(".*.part"))
        for name in unfinished:
            others.append(f"{name} is unfinished: the same command resumes")
    what = f"of these {len(samples)} samples"
    if wanted:
        what = f"whose key starts with '{wanted}' {what}"
    if others:
        what += f" ({'; '.join(others)})"
    raise DataError(f"{looked[0]}: no features {what}; make them once: {command}")


def _fitting(
    folder: Path, samples: Sequence[Sample], wanted: str
) -> tuple[list[FeatureStore], list[str]]:
    """The stores of `samples` in a folder, by key, and why each other whose key starts with
    `wanted` is none.
    """
    fitting: list[FeatureStore] = []
    misfits: list[str] = []
    if not folder.is_dir():
        return fitting, misfits
    for path in sorted(folder.iterdir()):
        is_store = KEY.fullmatch(path.name) and path.is_dir()
        if not is_store or not path.name.startswith(wanted):
            continue
        store = open_features(path)
        why = _misfit(store, samples)
        if why:
            misfits.append(f"{path.name} is {why}")
        else:
            fitting.append(store)
    return fitting, misfits


def _misfit(store: FeatureStore, samples: Sequence[Sample]) -> str:
    """Why the store is not of these samples; "" when it is."""
    rows = store.opened.rows
    ids = [sample.id for sample in samples]
    missing = [name for name in ids if name not in rows]
    if missing:
        return f"without {len(missing)} of them, the first '{missing[0]}'"
    listed = np.array([text_digest(sample) for sample in samples], dtype=np.uint64)
    other = np.flatnonzero(store.texts[store.rows(ids)] != listed)
    if len(other):
        return f"made of other texts, the first that of '{ids[other[0]]}'"
    return ""
