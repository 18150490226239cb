"""A user's own images and masks: `<root>/<folder>/{train,val,test}.npz`, one array per modality; no
code needed.

Keys of each file (N samples, C channels, H x W pixels, all of one H x W):

    <modality>    [N, C, H, W] or [N, H, W]; integers, floats
    <mask>        [N, H, W] classes 0..C-1 of the pixels; `void` where nothing is known
    <id>          optional [N]: the sample's name

modalities: keys, in order; none: all others of train.npz. classes: their number; null: as many as
train holds. scale `unit`: integers divided by the largest value of their type (uint8: 255);
`train`: each channel z-scored over all pixels of train; `none`: as they are. crop, flip, turn: see
`Geometry`; the target is changed alike. weights: of the classes in the cross-entropy, or
`median`: median-frequency balancing (Eigen & Fergus, ICCV 2015) over train. dice: weight of the
soft Dice loss. regions: sets of classes by name, whose Dice score is reported.

Without val.npz, `val_fraction` of train is held out under `split_seed`, stratified by the most
frequent class other than 0. Test is never touched.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tune_mm.config import Section
from tune_mm.core.types import VOID, Dataset, DataSpec, Padded, Split, Task, Transform
from tune_mm.data.arrays import archive, checks
from tune_mm.data.arrays.checks import SPLITS, DataError
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
from tune_mm.data.images.frequency import class_counts, median_frequency
from tune_mm.data.images.geometry import Geometry
from tune_mm.data.synthetic.images import images
from tune_mm.data.synthetic.vectors import SyntheticOptions

Pixels = NDArray[Any]

BLOCK = 2**21  # values that are scaled at once: 16 MiB in float64


class NpzSegmentationConfig(Section):
    """See the module."""

    name: Literal["npz_segmentation"] = "npz_segmentation"
    # Folder below the data root.
    folder: str = Field("npz_segmentation", pattern=r"^[\w-][\w.-]*$")
    # Keys of the images, in order; none: all others of train.npz.
    modalities: tuple[PlainName, ...] = ()
    # Key of the pixels' classes.
    mask: str = Field("mask", min_length=1)
    # Key of the samples' names.
    id: str | None = Field(None, min_length=1)
    # Value of pixels whose class is not known.
    void: int | None = Field(None, ge=0)
    # Number of classes; null: as many as train holds.
    classes: int | None = Field(None, ge=2, lt=VOID)
    # Names of the classes, for metrics.
    class_names: tuple[PlainName, ...] = ()
    # Sets of classes by name, whose Dice score is reported.
    regions: dict[PlainName, tuple[int, ...]] = Field(default_factory=dict)
    # How values are scaled: see the module.
    scale: Literal["none", "unit", "train"] = "train"
    # Side of the square that is cut out.
    crop: int | None = Field(None, ge=8)
    # Mirror training images at random.
    flip: bool = True
    # Turn training images at random.
    turn: bool = False
    # Of the classes in the cross-entropy.
    weights: Literal["none", "median"] | tuple[Annotated[float, Field(gt=0)], ...] = "none"
    # Weight of the soft Dice loss.
    dice: float = Field(0.0, ge=0)
    # Share of train that is held out when there is no val.npz.
    val_fraction: float = Field(0.1, gt=0, lt=1)
    # Seed of what is held out.
    split_seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _fit(self) -> NpzSegmentationConfig:
        require_distinct(self.modalities)
        if self.classes:
            wrong = _of_another_length(self, self.classes)
            if wrong:
                raise ValueError(wrong)
        return self


def _of_another_length(config: NpzSegmentationConfig, classes: int) -> str:
    """What is wrong with settings that have one entry a class; "" when nothing is."""
    lengths = {"class_names": len(config.class_names)}
    if not isinstance(config.weights, str):
        lengths["weights"] = len(config.weights)
    for name, length in lengths.items():
        if length not in (0, classes):
            return f"{name} must have one entry for each of the {classes} classes, got {length}"
    return ""


class NpzSegmentation(NpzPlugin):
    """Images and masks in three .npz files."""

    Config = NpzSegmentationConfig
    folder: ClassVar[str] = "npz_segmentation"
    axes: ClassVar[tuple[int, ...]] = (3,)

    @classmethod
    def transforms(cls, config: NpzSegmentationConfig) -> Mapping[str, Transform]:
        cut = Geometry(config.crop)
        return {"train": Geometry(config.crop, config.flip, config.turn), "val": cut, "test": cut}

    @classmethod
    def load(cls, config: NpzSegmentationConfig, place: Path) -> Dataset:
        modalities = config.modalities
        parts: dict[str, _ImageSplit] = {}
        shapes: dict[str, dict[str, tuple[int, ...]]] = {}
        for split, path in found_splits(place).items():
            part = _part(config, modalities, path)
            modalities = tuple(part.inputs)  # of train, which is read first
            parts[split] = part
            shapes[split] = {m: tuple(own.shape[1:]) for m, own in part.inputs.items()}
        whole = checks.same_shapes(shapes, str(place))
        task = _task(config, {split: part.target for split, part in parts.items()})
        notes: tuple[str, ...] = ()
        if "val" not in parts:
            parts, notes = _with_val(config, parts, place)
        _scale(config, [parts[split].inputs for split in SPLITS])
        spec = DataSpec(_sizes(config, whole), task)
        splits = {split: parts[split].split() for split in SPLITS}
        return Dataset(config.folder, spec, splits, notes=notes)

    @classmethod
    def options(cls, config: NpzSegmentationConfig) -> SyntheticOptions:
        modalities = config.modalities or ("before", "after")
        side = max(32, config.crop or 0)
        classes = min(config.classes or 3, 6)
        shapes = {}
        for number, m in enumerate(modalities):
            shapes[m] = (1 + number % 3, side, side)
        return SyntheticOptions(shapes, modalities[0], 64, 24, 24, classes=classes, per_class=0)

    @classmethod
    def write(cls, config: NpzSegmentationConfig, place: Path, options: SyntheticOptions) -> None:
        made = images(options)
        for split, part in options.bounds().items():
            own: dict[str, Any] = {}
            for modality, values in made.modalities.items():
                own[modality] = values[part]
            own[config.mask] = made.mask[part]
            if config.id:
                own[config.id] = synthetic_names(part)
            np.savez_compressed(place / f"{split}.npz", **own)


@dataclass
class _ImageSplit:
    """One split, N samples."""

    # float32 [N, C, H, W] by modality.
    inputs: dict[str, Pixels]
    # uint8 [N, H, W] with VOID.
    target: Pixels
    # Names of the samples; () when they have none.
    ids: tuple[str, ...]

    def take(self, index: NDArray[np.int64]) -> _ImageSplit:
        inputs = {modality: values[index] for modality, values in self.inputs.items()}
        ids: tuple[str, ...] = ()
        if self.ids:
            ids = tuple(self.ids[i] for i in index)
        return _ImageSplit(inputs, self.target[index], ids)

    def split(self) -> Split:
        inputs: dict[str, Any] = {}
        for modality, values in self.inputs.items():
            inputs[modality] = Padded(torch.from_numpy(np.ascontiguousarray(values)))
        return Split(inputs, torch.from_numpy(self.target), self.ids)


def _sizes(
    config: NpzSegmentationConfig, whole: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """C x H x W of batches, by modality. Raises DataError where images are too small to be cut."""
    cut = Geometry(config.crop, turn=config.turn)
    sizes: dict[str, tuple[int, ...]] = {}
    for modality, (channels, height, width) in whole.items():
        try:
            sizes[modality] = (channels, *cut.shape(height, width))
        except ValueError as error:
            raise DataError(f"{config.folder}: {error}") from None
    return sizes


def _all_images(
    config: NpzSegmentationConfig, raw: Mapping[str, Pixels], path: Path
) -> tuple[str, ...]:
    other = {config.mask, config.id}
    keys = []
    for key, array in raw.items():
        if key not in other and array.ndim in (3, 4):
            keys.append(key)
    require_plain_names(keys, path)
    if not keys:
        raise DataError(f"{path}: no array [N, C, H, W] or [N, H, W] besides {config.mask}")
    return tuple(keys)


def _part(config: NpzSegmentationConfig, modalities: tuple[str, ...], path: Path) -> _ImageSplit:
    """What a file holds; modalities: () for all."""
    raw = archive.read(path)
    modalities = modalities or _all_images(config, raw, path)
    target = _mask(config, checks.entry(raw, config.mask, str(path)), f"{path}: {config.mask}")
    ids = sample_names(raw, config.id, path)
    images = {modality: checks.entry(raw, modality, str(path)) for modality in modalities}
    raw.clear()  # with `pop`: what is converted is let go before the next is
    inputs: dict[str, Pixels] = {}
    counts = {config.mask: len(target)}
    for modality in modalities:
        image = _image(config, images.pop(modality), f"{path}: {modality}")
        if image.shape[2:] != target.shape[1:]:
            sizes = f"{list(image.shape[2:])} and {list(target.shape[1:])}"
            raise DataError(f"{path}: {modality} and {config.mask} must have one size, got {sizes}")
        inputs[modality] = image
        counts[modality] = len(image)
    checks.same_length(counts, str(path))
    return _ImageSplit(inputs, target, ids)


def _image(config: NpzSegmentationConfig, raw: Pixels, where: str) -> Pixels:
    """float32 [N, C, H, W] that may be written to: `raw` itself where it is that already."""
    if raw.dtype.kind not in "fiu" or raw.ndim not in (3, 4) or 0 in raw.shape:
        got = f"{raw.dtype} {list(raw.shape)}"
        raise DataError(
            f"{where}: must be numbers [N, C, H, W] or [N, H, W] with no empty axis, got {got}"
        )
    images = raw
    if raw.ndim == 3:
        images = raw[:, None]
    values = np.require(images, np.float32, ("C", "W"))
    checks.require_finite(values, where)
    if config.scale == "unit" and raw.dtype.kind in "iu":
        values /= np.iinfo(raw.dtype).max
    return values


def _mask(config: NpzSegmentationConfig, raw: Pixels, where: str) -> Pixels:
    if raw.dtype.kind not in "iub" or raw.ndim != 3 or 0 in raw.shape:
        raise DataError(f"{where}: must be integers [N, H, W], got {raw.dtype} {list(raw.shape)}")
    known = np.ones(raw.shape, bool)
    if config.void is not None:
        known = raw != config.void
    classes = raw[known]
    if len(classes):
        least = int(classes.min())
        largest = int(classes.max())
        if least < 0 or largest >= VOID:
            allowed = f"must be between 0 and {VOID - 1}, got {least} to {largest}"
            hint = "`void` names the value of pixels that are not known"
            raise DataError(f"{where}: classes {allowed}; {hint}")
    out: Pixels = np.where(known, raw, VOID).astype(np.uint8)
    return out


def _task(config: NpzSegmentationConfig, targets: Mapping[str, Pixels]) -> Task:
    """Raises DataError for classes that train's masks, or the settings, do not have."""
    where = config.folder
    train = targets["train"]
    if (train == VOID).all():
        raise DataError(f"{where}: train has no known pixel")
    largest: dict[str, int] = {}
    for split, target in targets.items():
        largest[split] = int(np.where(target == VOID, 0, target).max())
    classes = number_of_classes(where, config.classes, largest)
    wrong = _of_another_length(config, classes)
    if wrong:
        raise DataError(f"{where}: {wrong}")
    for name, region in config.regions.items():
        if not region or not 0 <= min(region) <= max(region) < classes:
            got = ", ".join(map(str, region)) or "none"
            raise DataError(
                f"{where}: regions.{name} must be classes between 0 and {classes - 1}, got {got}"
            )
    weights: tuple[float, ...] = ()
    if config.weights == "median":
        weights = median_frequency(class_counts(train, classes), train[0].size)
    elif not isinstance(config.weights, str):
        weights = config.weights
    regions = tuple(config.regions.items())
    return Task("segmentation", classes, config.class_names, weights, config.dice, regions)


def _with_val(
    config: NpzSegmentationConfig, parts: dict[str, _ImageSplit], place: Path
) -> tuple[dict[str, _ImageSplit], tuple[str, ...]]:
    strata = np.array([_main(mask) for mask in parts["train"].target])
    how = "stratified by main class"
    return hold_out(parts, strata, None, config.val_fraction, config.split_seed, place, how)


def _main(mask: Pixels) -> int:
    """The most frequent class other than 0 (0: there is none)."""
    classes = mask[(mask != VOID) & (mask != 0)]
    counts = np.bincount(classes.ravel(), minlength=1)
    return int(counts.argmax())


def _scale(config: NpzSegmentationConfig, splits: list[dict[str, Pixels]]) -> None:
    """z-scores by train, in place."""
    if config.scale != "train":
        return
    axes = (0, 2, 3)
    for modality, train in splits[0].items():
        pixels = train.size // train.shape[1]
        total = sum(block.sum(axes, np.float64, keepdims=True) for block in _blocks(train))
        mean = total / pixels
        squares = sum(np.square(block - mean).sum(axes, keepdims=True) for block in _blocks(train))
        std = np.sqrt(squares / pixels)
        std[std <= 1e-6 * np.maximum(np.abs(mean), 1)] = 1
        for split in splits:
            for block in _blocks(split[modality]):
                block[:] = (block - mean) / std  # in float64, as `mean` is


def _blocks(values: Pixels) -> Iterator[Pixels]:
    """Views of some samples each, so that what is computed of them is small beside all."""
    step = max(1, BLOCK // values[0].size)
    for start in range(0, len(values), step):
        yield values[start : start + step]


plugin = NpzSegmentation
