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
from tune_mm.data.arrays.checks import DataError, Float, Mask
from tune_mm.data.base import DataPlugin
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
    """See the module. fold: which of the ten splits (each leaves out one speaker)."""

    name: Literal["iemocap"] = "iemocap"
    fold: int = Field(1, ge=1, le=FOLDS)
    lengths: Lengths = Lengths()
    pad: Literal["longest", "cap"] = "longest"


class Iemocap(DataPlugin):
    """IEMOCAP in the MMIN layout."""

    Config = IemocapConfig
    folder: ClassVar[str] = "iemocap"

    @classmethod
    def files(cls, config: IemocapConfig) -> tuple[str, ...]:
        targets = []
        for s in _SPLITS.values():
            for what in ("label", "int2name"):
                targets.append(f"target/{config.fold}/{s}_{what}.npy")
        return (*_FILES.values(), _STATISTICS, *targets)

    @classmethod
    def load(cls, config: IemocapConfig, place: Path) -> Dataset:
        ids = {
            split: _names(place / f"target/{config.fold}/{s}_int2name.npy")
            for split, s in _SPLITS.items()
        }
        labels = {
            split: _labels(place / f"target/{config.fold}/{s}_label.npy")
            for split, s in _SPLITS.items()
        }
        widths = {split: int(one_hot.shape[1]) for split, one_hot in labels.items()}
        folder = f"{place}: target/{config.fold}"
        if len(set(widths.values())) > 1:
            raise DataError(f"{folder}: labels must have one number of classes, got {widths}")
        for split in _SPLITS:
            checks.same_length(
                {"labels": len(labels[split]), "names": len(ids[split])}, f"{folder}: {split}"
            )
        values, masks = _sequences(config, place, ids)
        shapes = {m: v.shape[1:] for m, v in values["train"].items()}
        classes = widths["train"]
        spec = DataSpec(shapes, Task("classification", classes, tuple(map(str, range(classes)))))
        masks = checks.without_full(masks)
        splits = {}
        for s in _SPLITS:
            splits[s] = checks.split_of(
                values[s], masks[s], labels[s].argmax(axis=1).astype(np.int64), ids[s]
            )
        return Dataset("iemocap", spec, splits)

    @classmethod
    def options(cls, config: IemocapConfig) -> SyntheticOptions:
        return SyntheticOptions({"text": (12, 64), "audio": (40, 32), "visual": (16, 32)}, "text")

    @classmethod
    def write(cls, config: IemocapConfig, place: Path, options: SyntheticOptions) -> None:
        data = generate(options)
        ids = [f"Syn{1 + i % FOLDS:02d}_{i:05d}" for i in range(options.total)]
        for modality, name in _FILES.items():
            path = place / name
            path.parent.mkdir(parents=True, exist_ok=True)
            x = data.modalities[modality]
            with h5py.File(path, "w") as file:
                for i, utterance in enumerate(ids):
                    file.create_dataset(utterance, data=x.values[i, : x.lengths[i]])
        one_hot = np.eye(options.classes, dtype=np.int64)[data.target]
        _write_folds(place, options, np.array(ids, "S")[:, None], one_hot, data.modalities["audio"])


def _write_folds(
    place: Path, options: SyntheticOptions, ids: Any, one_hot: Any, audio: Sequences
) -> None:
    """Ten folds of the same samples: fold k is turned by (k - 1) tenths, so fold 1 has them in
    order.
    """
    real = checks.length_mask(audio.lengths, audio.values.shape[1], "audio")
    with h5py.File(place / _STATISTICS, "w") as file:
        for fold in range(1, FOLDS + 1):
            order = np.roll(np.arange(options.total), -((fold - 1) * options.total // FOLDS))
            folder = place / "target" / str(fold)
            folder.mkdir(parents=True)
            for split, part in options.bounds().items():
                np.save(folder / f"{_SPLITS[split]}_label.npy", one_hot[order[part]])
                np.save(folder / f"{_SPLITS[split]}_int2name.npy", ids[order[part]])
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
        raise DataError(
            f"{path}: must be one-hot [N, C] with C >= 2, got {raw.dtype} {list(raw.shape)}"
        )
    bad = ((raw != 0) & (raw != 1)).any(axis=1) | (raw.sum(axis=1) != 1)
    if bad.any():
        raise DataError(
            f"{path}: each row must be one-hot, got {raw[bad][0].tolist()} in row {int(bad.argmax())}"
        )
    return raw


def _sequences(
    config: IemocapConfig, place: Path, ids: dict[str, tuple[str, ...]]
) -> tuple[dict[str, dict[str, Float]], dict[str, dict[str, Mask | None]]]:
    """Values [N, T, D] and masks [N, T] by split and modality."""
    values: dict[str, dict[str, Float]] = {s: {} for s in ids}
    masks: dict[str, dict[str, Mask | None]] = {s: {} for s in ids}
    for modality, name in _FILES.items():
        path = place / name
        cap = getattr(config.lengths, modality)
        with _opened(path) as file:
            lengths, width = _shapes(file, path, ids, cap)
            if config.pad == "cap":
                steps = cap
            else:
                steps = max(max(own, default=1) for own in lengths.values())
            for split, own in ids.items():
                values[split][modality] = _filled(file, path, own, lengths[split], (steps, width))
                masks[split][modality] = checks.length_mask(
                    np.array(lengths[split], np.int64), steps, str(path)
                )
    _normalize(config, place, values, masks)
    return values, masks


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """The open file. Raises DataError when it, or a part that is read, is damaged."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except OSError as error:
        raise DataError(f"{path}: is not a readable HDF5 file: {error}") from error


def _shapes(
    file: Any, path: Path, ids: dict[str, tuple[str, ...]], cap: int
) -> tuple[dict[str, list[int]], int]:
    """Steps of each utterance by split, at most `cap` and at least 1, and the width. Raises
    DataError.
    """
    everyone = [i for own in ids.values() for i in own]
    missing = [i for i in everyone if i not in file]
    if missing:
        raise DataError(
            f"{path}: no utterance '{missing[0]}'; {len(missing)} of the fold's {len(everyone)} are missing"
        )
    shapes = {i: _shape(file, path, i) for i in everyone}
    width = next((s[1] for s in shapes.values() if len(s) == 2), 0)
    for name, shape in shapes.items():
        if len(shape) != 2 or shape[1] != width or width == 0:
            raise DataError(f"{path}: '{name}' must be [T, {width or 'D'}], got {list(shape)}")
    return {s: [max(1, min(shapes[i][0], cap)) for i in own] for s, own in ids.items()}, width


def _shape(file: Any, path: Path, name: str) -> tuple[int, ...]:
    """Of a data set of the file itself; () of a group, which has none. Raises DataError for one
    that lies elsewhere.
    """
    found = file[name]
    outside = (
        found.file.filename != file.filename
        or getattr(found, "is_virtual", False)
        or getattr(found, "external", ())
    )
    if outside:
        raise DataError(f"{path}: '{name}' must lie in the file itself, got a link to another file")
    return getattr(found, "shape", ())


def _filled(
    file: Any, path: Path, ids: Iterable[str], lengths: list[int], shape: tuple[int, int]
) -> Float:
    """[N, T, D], zeros beyond each length. An utterance of no steps (no face was found) is one step
    of zeros.
    """
    out = np.zeros((len(lengths), *shape), np.float32)
    for row, name, length in zip(out, ids, lengths, strict=True):
        steps = file[name][:length]
        if steps.dtype.kind not in "fiu" or not np.isfinite(steps).all():
            raise DataError(
                f"{path}: '{name}' must be finite numbers, got {steps.dtype} with NaN, infinity or text"
            )
        row[: len(steps)] = steps
    return out


def _normalize(
    config: IemocapConfig,
    place: Path,
    values: dict[str, dict[str, Float]],
    masks: dict[str, dict[str, Mask | None]],
) -> None:
    """z-scores audio in place with the fold's statistics; padding stays 0."""
    path = place / _STATISTICS
    with _opened(path) as file:
        if f"{config.fold}/mean" not in file or f"{config.fold}/std" not in file:
            raise DataError(
                f"{path}: no mean and std of fold '{config.fold}'; available: {', '.join(file)}"
            )
        for name in ("mean", "std"):
            _shape(file, path, f"{config.fold}/{name}")
        mean, std = (
            np.asarray(file[f"{config.fold}/{k}"][()], np.float32).reshape(-1)
            for k in ("mean", "std")
        )
    width = values["train"]["audio"].shape[2]
    if not (
        mean.shape == std.shape == (width,) and np.isfinite(mean).all() and np.isfinite(std).all()
    ):
        raise DataError(
            f"{path}: mean and std must be {width} finite numbers, got {len(mean)} and {len(std)}"
        )
    std[std == 0] = 1
    for split, own in values.items():
        own["audio"] -= mean
        own["audio"] /= std
        mask = masks[split]["audio"]
        if mask is not None:
            own["audio"][~mask] = 0


plugin = Iemocap
