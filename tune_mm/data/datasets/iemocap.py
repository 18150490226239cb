"""IEMOCAP: emotion of utterances from audio, visual and text features in the MMIN layout;
`<root>/iemocap/`.

    A/comparE.h5             utterance id -> [T, 130]          target/<fold>/{trn,val,tst}_label.npy     one-hot [N, C]
    A/comparE_mean_std.h5    fold '1'..'10' -> mean, std       target/<fold>/{trn,val,tst}_int2name.npy  bytes [N, 1]
    V/denseface.h5           utterance id -> [T, 342]
    L/bert_large.h5          utterance id -> [T, 1024]

Widths and the number of classes are what the files hold. The files do not say which class is which:
classes are called "0", "1", ... Audio is z-scored with the fold's statistics (a deviation of 0
counts as 1). Sequences are cut at `lengths` and padded with zeros, with a mask: pad `longest` pads
to the longest of the fold (at most the cap), `cap` always to the cap, as CGGM does. Text comes
first because a transformer fusion reads its first position.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tune_mm.config import Section
from tune_mm.core.types import Dataset, DataSpec, Task
from tune_mm.data.arrays import checks
from tune_mm.data.arrays.checks import DataError, Float
from tune_mm.data.base import DataPlugin
from tune_mm.data.datasets._arrays import ArraySplit, shapes_of, splits_of
from tune_mm.data.synthetic.vectors import Sequences, SyntheticOptions, generate

FOLDS = 10
_SPLITS = {"train": "trn", "val": "val", "test": "tst"}
_FILES = {"text": "L/bert_large.h5", "audio": "A/comparE.h5", "visual": "V/denseface.h5"}
_STATISTICS = "A/comparE_mean_std.h5"


class Lengths(Section):
    """Longest sequence per modality, in steps; what is longer is cut at the end."""

    text: int = Field(22, ge=1)
    audio: int = Field(350, ge=1)
    visual: int = Field(50, ge=1)


class IemocapConfig(Section):
    """See the module."""

    name: Literal["iemocap"] = "iemocap"
    # Which of the ten splits; each leaves out one speaker.
    fold: int = Field(1, ge=1, le=FOLDS)
    # Longest sequences.
    lengths: Lengths = Lengths()
    # Pad to the longest sequence of the fold, or always to `lengths`.
    pad: Literal["longest", "cap"] = "longest"


class Iemocap(DataPlugin):
    """IEMOCAP in the MMIN layout."""

    Config = IemocapConfig
    folder: ClassVar[str] = "iemocap"

    @classmethod
    def files(cls, config: IemocapConfig) -> tuple[str, ...]:
        targets = []
        for split in _SPLITS:
            for kind in ("label", "int2name"):
                targets.append(_target(config.fold, split, kind))
        return (*_FILES.values(), _STATISTICS, *targets)

    @classmethod
    def load(cls, config: IemocapConfig, place: Path) -> Dataset:
        parts: dict[str, ArraySplit] = {}
        widths: dict[str, int] = {}
        for split in _SPLITS:
            ids = _names(place / _target(config.fold, split, "int2name"))
            one_hot = _labels(place / _target(config.fold, split, "label"))
            counts = {"labels": len(one_hot), "names": len(ids)}
            checks.same_length(counts, f"{place}: target/{config.fold}: {split}")
            widths[split] = one_hot.shape[1]
            parts[split] = ArraySplit(one_hot.argmax(axis=1).astype(np.int64), ids)
        classes = widths["train"]
        if set(widths.values()) != {classes}:
            where = f"{place}: target/{config.fold}"
            raise DataError(f"{where}: labels must have one number of classes, got {widths}")
        for modality in _FILES:
            _read_sequences(config, place, modality, parts)
        _normalize(config, place, parts)
        class_names = tuple(str(number) for number in range(classes))
        task = Task("classification", classes, class_names)
        spec = DataSpec(shapes_of(parts, str(place)), task)
        return Dataset("iemocap", spec, splits_of(parts))

    @classmethod
    def options(cls, config: IemocapConfig) -> SyntheticOptions:
        return SyntheticOptions({"text": (12, 64), "audio": (40, 32), "visual": (16, 32)}, "text")

    @classmethod
    def write(cls, config: IemocapConfig, place: Path, options: SyntheticOptions) -> None:
        data = generate(options)
        ids = []
        for number in range(options.total):
            ids.append(f"Syn{1 + number % FOLDS:02d}_{number:05d}")
        for modality, name in _FILES.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            x = data.modalities[modality]
            with h5py.File(path, "w") as file:
                for utterance, steps, length in zip(ids, x.values, x.lengths, strict=True):
                    file.create_dataset(utterance, data=steps[:length])
        one_hot = np.eye(options.classes, dtype=np.int64)[data.target]
        names = np.array(ids, "S")[:, None]
        _write_folds(place, options, names, one_hot, data.modalities["audio"])


def _target(fold: int, split: str, kind: str) -> str:
    """The file of a split's labels or names, below the data's folder."""
    return f"target/{fold}/{_SPLITS[split]}_{kind}.npy"


def _write_folds(
    place: Path, options: SyntheticOptions, ids: Any, one_hot: Any, audio: Sequences
) -> None:
    """Ten folds of the same samples: fold k is turned by (k - 1) tenths, so fold 1 has them in
    order.
    """
    real = checks.length_mask(audio.lengths, audio.values.shape[1], "audio")
    with h5py.File(place / _STATISTICS, "w") as file:
        for fold in range(1, FOLDS + 1):
            turn = (fold - 1) * options.total // FOLDS
            order = np.roll(np.arange(options.total), -turn)
            (place / "target" / str(fold)).mkdir(parents=True)
            for split, part in options.bounds().items():
                np.save(place / _target(fold, split, "label"), one_hot[order[part]])
                np.save(place / _target(fold, split, "int2name"), ids[order[part]])
            train = order[options.bounds()["train"]]
            steps = audio.values[train][real[train]]
            file.create_dataset(f"{fold}/mean", data=steps.mean(axis=0))
            file.create_dataset(f"{fold}/std", data=steps.std(axis=0))


def _read(path: Path) -> NDArray[Any]:
    try:
        array: NDArray[Any] = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, MemoryError, OverflowError) as error:
        raise DataError(f"{path}: is not a readable .npy file without pickles: {error}") from error
    return array


def _names(path: Path) -> tuple[str, ...]:
    raw = _read(path)
    if raw.dtype.kind not in "SU" or raw.ndim not in (1, 2) or raw.size != len(raw):
        raise DataError(f"{path}: must be names [N, 1], got {raw.dtype} {list(raw.shape)}")
    return checks.names(raw.reshape(-1), str(path))


def _labels(path: Path) -> NDArray[Any]:
    raw = _read(path)
    if raw.ndim != 2 or raw.dtype.kind not in "fiub" or raw.shape[1] < 2:
        got = f"{raw.dtype} {list(raw.shape)}"
        raise DataError(f"{path}: must be one-hot [N, C] with C >= 2, got {got}")
    known = ((raw == 0) | (raw == 1)).all(axis=1)
    bad = ~known | (raw.sum(axis=1) != 1)
    if bad.any():
        row = int(bad.argmax())
        got = f"{raw[row].tolist()} in row {row}"
        raise DataError(f"{path}: each row must be one-hot, got {got}")
    return raw


def _read_sequences(
    config: IemocapConfig, place: Path, modality: str, parts: dict[str, ArraySplit]
) -> None:
    """Adds values [N, T, D] and masks [N, T] of a modality to the parts. Raises DataError."""
    path = place / _FILES[modality]
    cap = getattr(config.lengths, modality)
    ids: list[str] = []
    for part in parts.values():
        ids += part.ids
    with _opened(path) as file:
        lengths, width = _shapes(file, path, ids, cap)
        steps = cap
        if config.pad == "longest":
            steps = max(lengths.values(), default=1)
        for part in parts.values():
            own = np.array([lengths[name] for name in part.ids], np.int64)
            part.values[modality] = _filled(file, path, part.ids, own, (steps, width))
            part.masks[modality] = checks.length_mask(own, steps, str(path))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file. Raises DataError when it, or a part that is read, is damaged."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: is not a readable HDF5 file: {error}") from error


def _shapes(file: Any, path: Path, ids: list[str], cap: int) -> tuple[dict[str, int], int]:
    """Steps of each utterance, at most `cap` and at least 1, and the width. Raises DataError."""
    missing = [name for name in ids if name not in file]
    if missing:
        count = f"{len(missing)} of the fold's {len(ids)}"
        raise DataError(f"{path}: no utterance '{missing[0]}'; {count} are missing")
    shapes = {name: _shape(file, path, name) for name in ids}
    width = next((shape[1] for shape in shapes.values() if len(shape) == 2), 0)
    lengths: dict[str, int] = {}
    for name, shape in shapes.items():
        if len(shape) != 2 or shape[1] != width or width == 0:
            raise DataError(f"{path}: '{name}' must be [T, {width or 'D'}], got {list(shape)}")
        lengths[name] = max(1, min(shape[0], cap))
    return lengths, width


def _shape(file: Any, path: Path, name: str) -> tuple[int, ...]:
    """Of a data set of the file itself; () of a group, which has none. Raises DataError for one
    that lies elsewhere.
    """
    found = file[name]
    linked = found.file.filename != file.filename
    if linked or getattr(found, "is_virtual", False) or getattr(found, "external", ()):
        raise DataError(f"{path}: '{name}' must lie in the file itself, got a link to another file")
    return getattr(found, "shape", ())


def _filled(
    file: Any, path: Path, ids: Iterable[str], lengths: NDArray[np.int64], shape: tuple[int, int]
) -> Float:
    """[N, T, D], zeros beyond each length. An utterance of no steps (no face was found) is one step
    of zeros.
    """
    out = np.zeros((len(lengths), *shape), np.float32)
    for row, name, length in zip(out, ids, lengths, strict=True):
        steps = file[name][:length]
        if steps.dtype.kind not in "fiu" or not np.isfinite(steps).all():
            got = f"{steps.dtype} with NaN, infinity or text"
            raise DataError(f"{path}: '{name}' must be finite numbers, got {got}")
        row[: len(steps)] = steps
    return out


def _normalize(config: IemocapConfig, place: Path, parts: dict[str, ArraySplit]) -> None:
    """z-scores audio in place with the fold's statistics; padding stays 0."""
    path = place / _STATISTICS
    with _opened(path) as file:
        mean = _statistic(file, path, config.fold, "mean")
        std = _statistic(file, path, config.fold, "std")
    width = parts["train"].values["audio"].shape[2]
    fit = mean.shape == std.shape == (width,)
    if not (fit and np.isfinite(mean).all() and np.isfinite(std).all()):
        got = f"{len(mean)} and {len(std)}"
        raise DataError(f"{path}: mean and std must be {width} finite numbers, got {got}")
    std[std == 0] = 1
    for part in parts.values():
        part.values["audio"] -= mean
        part.values["audio"] /= std
        mask = part.masks["audio"]
        if mask is not None:
            part.values["audio"][~mask] = 0


def _statistic(file: Any, path: Path, fold: int, kind: str) -> Float:
    """float32 [D], the mean or the std of a fold. Raises DataError when one of the two is missing."""
    if f"{fold}/mean" not in file or f"{fold}/std" not in file:
        known = ", ".join(file)
        raise DataError(f"{path}: no mean and std of fold '{fold}'; available: {known}")
    name = f"{fold}/{kind}"
    _shape(file, path, name)
    return np.asarray(file[name][()], np.float32).reshape(-1)


plugin = Iemocap
