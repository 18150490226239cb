"""A user's own arrays: `<root>/<folder>/{train,val,test}.npz`, one array per modality; no code
needed.

Keys of each file (N samples, T time steps, D channels):

    <modality>            [N, T, D] sequences or [N, D] vectors; floats, integers, booleans (read as float32, unscaled)
    <modality>_mask       optional [N, T], 1 where a step is real; or <modality>_length [N], real steps 1..T
    <label>               [N] classes 0..C-1, or values for `task: regression`
    <group>, <id>         optional [N]: who or what a sample is from; its name

modalities: keys, in order (a transformer fusion reads the first one's first step); none: all others
of train.npz. classes: their number; null: as many as train holds. relative: modalities of x, y, z
joints [N, T, 3 J] that are made relative to the first joint of the same step. standardize `train`:
z-scores each channel over the real steps of train. Steps that are padding become 0.

Without val.npz, `val_fraction` of train is held out under `split_seed`: by class (or by tenths of a
value), or whole groups when `group` is named, chosen so that the classes are spread alike. Test is
never touched.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tune_mm.config import Section
from tune_mm.core.types import Dataset, DataSpec, Task
from tune_mm.data.arrays import archive, checks
from tune_mm.data.arrays.checks import SPLITS, DataError, Float, Mask
from tune_mm.data.datasets._arrays import ArraySplit, shapes_of, splits_of
from tune_mm.data.datasets._npz import (
    NpzPlugin,
    PlainName,
    found_splits,
    hold_out,
    number_of_classes,
    require_distinct,
    require_plain_names,
    sample_names,
    synthetic_names,
)
from tune_mm.data.synthetic.vectors import SyntheticOptions, generate


class NpzConfig(Section):
    """See the module."""

    name: Literal["npz"] = "npz"
    # Folder below the data root.
    folder: str = Field("npz", pattern=r"^[\w-][\w.-]*$")
    # Keys of the arrays, in order; none: all others of train.npz.
    modalities: tuple[PlainName, ...] = ()
    # Key of the targets.
    label: str = Field("label", min_length=1)
    # Key of who or what a sample is from: never split between train and val.
    group: str | None = Field(None, min_length=1)
    # Key of the samples' names.
    id: str | None = Field(None, min_length=1)
    task: Literal["classification", "regression"] = "classification"
    # Number of classes; null: as many as train holds.
    classes: int | None = Field(None, ge=2)
    # `train`: z-score each channel over the real steps of train.
    standardize: Literal["none", "train"] = "none"
    # Modalities of joints that are made relative to the first joint of their step.
    relative: tuple[str, ...] = ()
    # Share of train that is held out when there is no val.npz.
    val_fraction: float = Field(0.1, gt=0, lt=1)
    # Seed of what is held out.
    split_seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _names_fit(self) -> NpzConfig:
        require_distinct(self.modalities)
        unknown = []
        for m in self.relative:
            if self.modalities and m not in self.modalities:
                unknown.append(m)
        if unknown:
            raise ValueError(
                f"relative: no modality '{unknown[0]}'; available: {', '.join(self.modalities)}"
            )
        return self


class Npz(NpzPlugin):
    """Arrays in three .npz files."""

    Config = NpzConfig
    folder: ClassVar[str] = "npz"
    axes: ClassVar[tuple[int, ...]] = (1, 2)

    @classmethod
    def load(cls, config: NpzConfig, place: Path) -> Dataset:
        modalities = config.modalities or _all_arrays(config, place / "train.npz")
        files = found_splits(place)
        parts = {}
        for split, path in files.items():
            parts[split] = _part(config, modalities, path)
        spec = DataSpec(shapes_of(parts, str(place)), _task(config, parts))
        notes: tuple[str, ...] = ()
        if "val" not in parts:
            parts, notes = _with_val(config, parts, place)
        _prepare(config, parts)
        return Dataset(config.folder, spec, splits_of(parts), notes=notes)

    @classmethod
    def options(cls, config: NpzConfig) -> SyntheticOptions:
        modalities = config.modalities or ("audio", "visual")
        classes = min(config.classes or 6, 8)
        if config.task == "regression":
            classes = 2
        shapes: dict[str, tuple[int, ...]] = {}
        for number, modality in enumerate(modalities):
            kind = number % 3
            # Widths that hold joints of x, y, z, so that `relative` applies to any of them.
            shapes[modality] = (16 - 4 * kind, 18 + 6 * kind)
        return SyntheticOptions(shapes, modalities[0], classes=classes)

    @classmethod
    def write(cls, config: NpzConfig, place: Path, options: SyntheticOptions) -> None:
        data = generate(options, scores=config.task == "regression")
        for split, part in options.bounds().items():
            own: dict[str, Any] = {config.label: data.target[part]}
            for modality, x in data.modalities.items():
                own[modality] = x.values[part]
                if x.values.ndim == 3:
                    own[f"{modality}_length"] = x.lengths[part]
            number = np.arange(part.start, part.stop)
            if config.group:
                # Eight groups in train and others in val and test, as with people.
                own[config.group] = 8 * SPLITS.index(split) + number % 8
            if config.id:
                own[config.id] = synthetic_names(part)
            np.savez_compressed(place / f"{split}.npz", **own)


def _all_arrays(config: NpzConfig, path: Path) -> tuple[str, ...]:
    """Keys that are modalities when none is named."""
    other = {config.label, config.group, config.id}
    keys = []
    for key, array in archive.read(path).items():
        named_otherwise = key in other or key.endswith(("_mask", "_length"))
        if array.ndim > 1 and not named_otherwise:
            keys.append(key)
    require_plain_names(keys, path)
    if not keys:
        raise DataError(f"{path}: no array [N, T, D] or [N, D] besides {config.label}")
    return tuple(keys)


def _part(config: NpzConfig, modalities: tuple[str, ...], path: Path) -> ArraySplit:
    raw = archive.read(path)
    label = checks.entry(raw, config.label, str(path))
    where = f"{path}: {config.label}"
    target: NDArray[Any]
    if config.task == "classification":
        target = checks.class_labels(label, where)
    else:
        target = checks.scores(label, where)
    part = ArraySplit(target, sample_names(raw, config.id, path))
    counts = {config.label: len(target)}
    for modality in modalities:
        where = f"{path}: {modality}"
        values = checks.features(checks.entry(raw, modality, str(path)), where)
        mask = _mask(raw, modality, values, path)
        if mask is not None:
            values[~mask] = 0
        checks.require_finite(values, where)
        part.values[modality] = values
        part.masks[modality] = mask
        counts[modality] = len(values)
    if config.group is not None:
        part.group = checks.entry(raw, config.group, str(path)).reshape(-1)
        counts[config.group] = len(part.group)
    checks.same_length(counts, str(path))
    return part


def _mask(raw: dict[str, NDArray[Any]], modality: str, values: Float, path: Path) -> Mask | None:
    """[N, T] from <modality>_mask or <modality>_length; None when the file has neither."""
    mask_key = f"{modality}_mask"
    length_key = f"{modality}_length"
    keys = [key for key in (mask_key, length_key) if key in raw]
    if not keys:
        return None
    where = f"{path}: {keys[0]}"
    problem = ""
    if values.ndim == 2:
        problem = f"'{modality}' is a vector"
    elif len(keys) == 2:
        problem = f"there is '{length_key}' too"
    if problem:
        raise DataError(f"{where}: {problem}; keep one of them, for sequences only")
    array = raw[keys[0]]
    if keys[0] == length_key:
        mask = checks.length_mask(array, values.shape[1], where)
    else:
        mask = _zeros_and_ones(array, where)
    if mask.shape != values.shape[:2]:
        wanted = f"{list(values.shape[:2])} like '{modality}'"
        raise DataError(f"{where}: must be {wanted}, got {list(mask.shape)}")
    empty = np.flatnonzero(~mask.any(axis=1))
    if len(empty):
        got = f"{len(empty)} have none, first {empty[0]}"
        raise DataError(f"{where}: every sample must have a real step, {got}")
    return mask


def _zeros_and_ones(array: NDArray[Any], where: str) -> Mask:
    """As booleans. Raises DataError for other values."""
    if array.dtype.kind not in "biuf" or not np.isin(array, (0, 1)).all():
        raise DataError(f"{where}: must hold 0 and 1 only, got {array.dtype}")
    return array.astype(bool)


def _task(config: NpzConfig, parts: dict[str, ArraySplit]) -> Task:
    if config.task == "regression":
        return Task("regression", 1)
    largest = {}
    for split, part in parts.items():
        largest[split] = int(part.target.max())
    return Task("classification", number_of_classes(config.folder, config.classes, largest))


def _with_val(
    config: NpzConfig, parts: dict[str, ArraySplit], place: Path
) -> tuple[dict[str, ArraySplit], tuple[str, ...]]:
    train = parts["train"]
    strata = train.target
    if config.task == "regression":
        strata = _tenths(train.target)
    how = "stratified"
    if config.group:
        how = f"whole '{config.group}' groups"
    return hold_out(parts, strata, train.group, config.val_fraction, config.split_seed, place, how)


def _tenths(values: NDArray[Any]) -> NDArray[np.int64]:
    """Which tenth of the values each is in."""
    bounds = np.quantile(values, np.linspace(0.1, 0.9, 9))
    bins: NDArray[np.int64] = np.digitize(values, bounds).astype(np.int64)
    return bins


def _prepare(config: NpzConfig, parts: dict[str, ArraySplit]) -> None:
    """Relative joints, then statistics of train, in place; padding stays 0."""
    train = parts["train"]
    for modality in train.values:
        if modality in config.relative:
            for part in parts.values():
                _relative(part.values[modality], f"{config.folder}: {modality}")
        if config.standardize == "train":
            mean, std = _statistics(train.values[modality], train.masks[modality])
            for part in parts.values():
                part.values[modality] -= mean
                part.values[modality] /= std
        for part in parts.values():
            mask = part.masks[modality]
            if mask is not None:
                part.values[modality][~mask] = 0
    unknown = [modality for modality in config.relative if modality not in train.values]
    if unknown:
        raise DataError(f"{config.folder}: relative: no modality '{unknown[0]}'")


def _relative(values: Float, where: str) -> None:
    """Joints [N, T, 3 J] (x, y, z of each) minus the first joint of the same step, in place."""
    if values.ndim != 3 or values.shape[2] % 3:
        got = list(values.shape)
        raise DataError(f"{where}: relative needs joints of x, y, z [N, T, 3 J], got {got}")
    joints = values.reshape(*values.shape[:2], -1, 3)
    joints -= joints[:, :, :1].copy()


def _statistics(values: Float, mask: Mask | None) -> tuple[Float, Float]:
    """Mean and standard deviation [D] over all real steps; a channel that never changes gets
    deviation 1.
    """
    steps = values.reshape(-1, values.shape[-1])
    if mask is not None:
        steps = values[mask]
    mean = steps.mean(axis=0, dtype=np.float64)
    std = np.sqrt(np.square(steps - mean).mean(axis=0, dtype=np.float64))
    # float32 rounding leaves a constant channel with a tiny deviation, which would blow it up.
    std[std <= 1e-6 * np.abs(mean)] = 1
    std[std == 0] = 1
    return mean.astype(np.float32), std.astype(np.float32)


plugin = Npz
