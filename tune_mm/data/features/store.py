"""A store of frozen features: what pretrained models made of images and texts, once, as
memory-mapped fp16 arrays.

A store is a folder named by its key, a digest of all that decides the values (see `_extract`):

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
VISUAL, VIEWS, TEXT, MASK, TEXTS = (
    f"{name}.npy" for name in ("visual", "views", "text", "mask", "texts")
)
KEY = re.compile(r"[0-9a-f]{16}")

Half = NDArray[np.float16]


@dataclass(frozen=True)
class Sample:
    """An image and a text. id: a name of its own; text: what is said, or the file of its token
    numbers [1, n].
    """

    id: str
    label: str
    image: Path
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
    """An opened store. train: the rows 0 .. train - 1 have all views; about: what the features were
    made with.
    """

    mapped = ("visual", "views", "text", "mask", "texts")
    train: int
    view_count: int
    about: str

    @cached_property
    def visual(self) -> Half:
        """[N, T, D]."""
        return self._read(VISUAL, np.float16, (len(self.opened.rows), None, None))

    @cached_property
    def views(self) -> Half:
        """[K - 1, train, T, D]; asked for where there are views only."""
        return self._read(
            VIEWS, np.float16, (self.view_count - 1, self.train, *self.visual.shape[1:])
        )

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
        return {"visual": self.visual.shape[1:], "text": self.mask.shape[1:] + self.text.shape[2:]}

    def stored(self, ids: Sequence[str]) -> Stored:
        """The plain view of the images `ids`. Raises KeyError for an unknown id."""
        return self.images(ids, drawn=False)

    def images(self, ids: Sequence[str], drawn: bool) -> Stored:
        """The images `ids`, of which a training batch draws a view each if `drawn`. Raises
        KeyError.
        """
        drawn = drawn and self.view_count > 1
        return _Images(self.shapes["visual"], self, self.rows(ids), torch.device("cpu"), drawn)

    def said(self, ids: Sequence[str]) -> Stored:
        """The texts `ids`. Raises KeyError for an unknown id."""
        return _Texts(self.shapes["text"], self, self.rows(ids), torch.device("cpu"))

    def _read(self, file: str, dtype: Any, shape: tuple[int | None, ...]) -> NDArray[Any]:
        """A file of this dtype and shape (None: any size but 0). Raises DataError when it is
        another.
        """
        found = read_array(self.opened.folder, file)
        fits = len(found.shape) == len(shape) and all(
            n == own or (own is None and n > 0) for n, own in zip(found.shape, shape, strict=True)
        )
        if found.dtype != np.dtype(dtype) or not fits:
            raise damaged(self.opened.folder, file)
        return found


@dataclass(frozen=True, eq=False)
class _Images(StoredRows[FeatureStore]):
    """`take` gives float32 [B, T, D]. drawn: whether a training batch draws views."""

    drawn: bool = False

    def take(self, index: Tensor, generator: torch.Generator | None = None) -> Padded:
        rows = self.rows[index.cpu().numpy()]
        values = self.store.visual[rows]
        if generator is not None and self.drawn:
            view = torch.randint(self.store.view_count, (len(rows),), generator=generator).numpy()
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
        opened = OpenedStore(folder, {name: row for row, name in enumerate(raw["ids"])}, raw["bad"])
        store = FeatureStore(opened, int(raw["train"]), int(raw["views"]), str(raw["about"]))
        if raw["format"] != FORMAT:
            raise ValueError(raw["format"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise damaged(folder, META) from error
    return store


def find_store(
    folders: Iterable[Path], samples: Sequence[Sample], wanted: str, command: str
) -> FeatureStore:
    """The store of all `samples` in the first of the folders that has one; later folders are
    not looked at then.      wanted: the start of its key, "" for any; command: what makes it.
    Raises DataError when there is none, naming the     command and why others do not fit, and
    when several in one folder fit.
    """
    looked = list(folders)
    others = list[str]()
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
    if wanted:
        asked = f" whose key starts with '{wanted}'"
    else:
        asked = ""
    for f in looked:
        for p in sorted(f.glob(".*.part")):
            others.append(f"{p.name} is unfinished: the same command goes on")
    reason = f" ({'; '.join(others)})" if others else ""
    raise DataError(
        f"{looked[0]}: no features{asked} of these {len(samples)} samples{reason}; make them once: {command}"
    )


def _fitting(
    folder: Path, samples: Sequence[Sample], wanted: str
) -> tuple[list[FeatureStore], list[str]]:
    """The stores of `samples` in a folder, by key, and why each other whose key starts with
    `wanted` is none.
    """
    fitting = list[FeatureStore]()
    misfits = list[str]()
    if folder.is_dir():
        keys = sorted(p for p in folder.iterdir() if KEY.fullmatch(p.name) and p.is_dir())
    else:
        keys = []
    for path in keys:
        if path.name.startswith(wanted):
            store = open_features(path)
            why = _misfit(store, samples)
            misfits += [f"{path.name} is {why}"] if why else []
            fitting += [] if why else [store]
    return fitting, misfits


def _misfit(store: FeatureStore, samples: Sequence[Sample]) -> str:
    """Why the store is not of these samples; "" when it is."""
    rows = store.opened.rows
    missing = [s.id for s in samples if s.id not in rows]
    if missing:
        return f"without {len(missing)} of them, the first '{missing[0]}'"
    listed = np.array([text_digest(s) for s in samples], dtype=np.uint64)
    other = np.flatnonzero(store.texts[store.rows([s.id for s in samples])] != listed)
    if len(other):
        return f"made of other texts, the first that of '{samples[other[0]].id}'"
    return ""
