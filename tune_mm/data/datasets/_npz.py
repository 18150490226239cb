"""What data sets of three .npz files share: names of arrays, splits, classes and held-out samples."""

from __future__ import annotations

import keyword
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator

from tune_mm.data.arrays import checks
from tune_mm.data.arrays.checks import SPLITS, DataError
from tune_mm.data.base import DataPlugin
from tune_mm.data.splits.carve import carve

Arrays = Mapping[str, NDArray[Any]]


def plain_name(name: str) -> str:
    """Names become parts of parameter names and metrics."""
    if not name.isidentifier() or keyword.iskeyword(name) or name.endswith(("_mask", "_length")):
        raise ValueError(
            "must be a plain name (letters, digits, _) that does not end in _mask or _length"
        )
    return name


PlainName = Annotated[str, AfterValidator(plain_name)]


def require_distinct(modalities: tuple[str, ...]) -> None:
    """Raises ValueError."""
    if len(set(modalities)) < len(modalities):
        names = ", ".join(modalities)
        raise ValueError(f"modalities must differ from each other, got {names}")


class NpzPlugin(DataPlugin):
    """A folder, named in the configuration, of train.npz, test.npz and perhaps val.npz."""

    FILES: ClassVar[tuple[str, ...]] = ("train.npz", "test.npz")

    @classmethod
    def folder_of(cls, config: Any) -> str:
        folder: str = config.folder
        return folder

    @classmethod
    def files(cls, config: Any) -> tuple[str, ...]:
        return cls.FILES

    @classmethod
    def optional(cls, config: Any) -> tuple[str, ...]:
        return ("val.npz",)


def found_splits(place: Path) -> dict[str, Path]:
    """The files that exist, by split, in the order of SPLITS."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        path = place / f"{split}.npz"
        if path.is_file():
            found[split] = path
    return found


def require_plain_names(keys: Iterable[str], path: Path) -> None:
    """For keys that become modalities without being named. Raises DataError."""
    for key in keys:
        try:
            plain_name(key)
        except ValueError as error:
            raise DataError(f"{path}: '{key}' {error}; name the modalities to read") from None


def sample_names(raw: Arrays, key: str | None, path: Path) -> tuple[str, ...]:
    """Names of the samples; () when no key holds them. Raises DataError."""
    if key is None:
        return ()
    return checks.names(checks.entry(dict(raw), key, str(path)), f"{path}: {key}")


def synthetic_names(part: slice) -> NDArray[np.str_]:
    """Names of the samples of one synthetic split."""
    return np.array([f"synthetic{i:06d}" for i in range(part.start, part.stop)])


def number_of_classes(folder: str, given: int | None, largest: Mapping[str, int]) -> int:
    """The given number, or as many classes as train holds.

    largest: the largest class of each split. Raises DataError.
    """
    classes = given or largest["train"] + 1
    hint = ""
    if not given:
        hint = " (as many as train holds; set `classes` if train lacks some)"
    for split, top in largest.items():
        if top >= classes:
            raise DataError(
                f"{folder}: {split} classes must be between 0 and {classes - 1}{hint}, got {top}"
            )
    if classes < 2:
        raise DataError(f"{folder}: train must hold at least 2 classes, got {classes}")
    return classes


class SplitArrays(Protocol):
    """One split as arrays."""

    def take(self, index: NDArray[np.int64]) -> Self: ...


P = TypeVar("P", bound=SplitArrays)


def hold_out(
    parts: Mapping[str, P],
    strata: NDArray[Any],
    group: NDArray[Any] | None,
    fraction: float,
    seed: int,
    place: Path,
    how: str,
) -> tuple[dict[str, P], tuple[str, ...]]:
    """The parts with a validation split carved out of train, and a note that says so.

    how: how samples are chosen, in words. Raises DataError.
    """
    train = parts["train"]
    try:
        kept, held = carve(strata, group, fraction, seed)
    except ValueError as error:
        raise DataError(
            f"{place}: no val.npz, and none can be carved out of train: {error}"
        ) from error
    share = f"{len(held)} of {len(strata)} train samples"
    note = f"no val.npz: {share} held out ({how}, seed {seed})"
    split = {"train": train.take(kept), "val": train.take(held), "test": parts["test"]}
    return split, (note,)
