"""What the stores of spectrograms and of frames share: rows by clip id, and some of them as a
modality of a split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tune_mm.core.types import Stored
from tune_mm.data.store.cache import OpenedStore


@dataclass(frozen=True)
class ClipStore(ABC):
    """An opened store. `mapped` names what is read from its files on demand: it is pickled by its
    path.
    """

    mapped: ClassVar[tuple[str, ...]]
    opened: OpenedStore

    @property
    def bad(self) -> Mapping[str, str]:
        """Clips that could not be read, with the reason; zeros (of a frame: a black one) stand for
        them.
        """
        return self.opened.bad

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        for name in self.mapped:
            state.pop(name, None)
        return state

    def rows(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Place of each clip. Raises KeyError for an unknown id."""
        return np.array([self.opened.rows[name] for name in ids], dtype=np.int64)

    @abstractmethod
    def stored(self, ids: Sequence[str]) -> Stored:
        """The clips `ids`, in this order, as a modality of a split. Raises KeyError for an unknown
        id.
        """


S = TypeVar("S", bound=ClipStore)


@dataclass(frozen=True, eq=False)
class StoredRows(Stored, Generic[S]):
    """Some rows of a store, whose batches are made on `device`."""

    shape: tuple[int, ...]
    store: S
    rows: NDArray[np.int64]
    device: torch.device

    @property
    def content(self) -> str:
        return self.store.opened.folder.name  # which ends in the store's key

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Stored:
        return replace(self, device=device)
