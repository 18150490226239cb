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
        for name, given in (("class_names", self.class_names), ("weights", self.weights)):
            if self.classes and given and not isinstance(given, str) and len(given) != self.classes:
                raise ValueError(
                    f"{name} must have one entry for each of the {self.classes} classes, got {len(given)}"
                )
        return self


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
        parts: dict[str, _Part] = {}
        modalities = config.modalities
        for split, path in found_splits(place).items():
            parts[split] = _part(config, modalities, path)
            modalities = tuple(parts["train"].inputs)  # train is read first
        shapes = {}
        for s, part in parts.items():
            shapes[s] = {m: tuple(v.shape[1:]) for m, v in part.inputs.items()}
        whole = checks.same_shapes(shapes, str(place))
        task = _task(config, {s: part.target for s, part in parts.items()})
        notes: tuple[str, ...] = ()
        if "val" not in parts:
            parts, notes = _with_val(config, parts, place)
        _scale(config, [parts[s].inputs for s in SPLITS])
        try:
            sizes = {}
            for m, shape in whole.items():
                sizes[m] = (shape[0], *Geometry(config.crop, turn=config.turn).shape(*shape[1:]))
        except ValueError as error:
            raise DataError(f"{config.folder}: {error}") from None
        return Dataset(
            config.folder, DataSpec(sizes, task), {s: parts[s].split() for s in SPLITS}, notes=notes
        )

    @classmethod
    def options(cls, config: NpzSegmentationConfig) -> SyntheticOptions:
        modalities = config.modalities or ("before", "after")
        side = max(32, config.crop or 0)
        shapes = {m: (1 + i % 3, side, side) for i, m in enumerate(modalities)}
        return SyntheticOptions(
            shapes, modalities[0], 64, 24, 24, classes=min(config.classes or 3, 6), per_class=0
        )

    @classmethod
    def write(cls, config: NpzSegmentationConfig, place: Path, options: SyntheticOptions) -> None:
        made = images(options)
        for split, part in options.bounds().items():
            own: dict[str, Any] = {m: v[part] for m, v in made.modalities.items()}
            own[config.mask] = made.mask[part]
            if config.id:
                own[config.id] = synthetic_names(part)
            np.savez_compressed(place / f"{split}.npz", **own)


class _Part:
    """One split as arrays: inputs float32 [N, C, H, W], target uint8 [N, H, W] with VOID."""

    def __init__(self, inputs: dict[str, Pixels], target: Pixels, ids: tuple[str, ...]) -> None:
        self.inputs = inputs
        self.target = target
        self.ids = ids

    def take(self, index: NDArray[np.int64]) -> _Part:
        ids = tuple(self.ids[i] for i in index) if self.ids else ()
        return _Part({m: v[index] for m, v in self.inputs.items()}, self.target[index], ids)

    def split(self) -> Split:
        values = {}
        for m, v in self.inputs.items():
            values[m] = Padded(torch.from_numpy(np.ascontiguousarray(v)))
        return Split(values, torch.from_numpy(self.target), self.ids)


def _all_images(
    config: NpzSegmentationConfig, raw: Mapping[str, Pixels], path: Path
) -> tuple[str, ...]:
    keys = []
    for k, v in raw.items():
        if k not in {config.mask, config.id} and v.ndim in (3, 4):
            keys.append(k)
    require_plain_names(keys, path)
    if not keys:
        raise DataError(f"{path}: no array [N, C, H, W] or [N, H, W] besides {config.mask}")
    return tuple(keys)


def _part(config: NpzSegmentationConfig, modalities: tuple[str, ...], path: Path) -> _Part:
    """What a file holds; modalities: () for all."""
    raw = archive.read(path)
    modalities = modalities or _all_images(config, raw, path)
    target = _mask(config, checks.entry(raw, config.mask, str(path)), f"{path}: {config.mask}")
    ids = sample_names(raw, config.id, path)
    images = {m: checks.entry(raw, m, str(path)) for m in modalities}
    inputs = {}
    raw.clear()  # with `pop`: what is converted is let go before the next is
    for m in modalities:
        inputs[m] = _image(config, images.pop(m), f"{path}: {m}")
        if inputs[m].shape[2:] != target.shape[1:]:
            sizes = f"{list(inputs[m].shape[2:])} and {list(target.shape[1:])}"
            raise DataError(f"{path}: {m} and {config.mask} must have one size, got {sizes}")
    checks.same_length(
        {config.mask: len(target), **{m: len(v) for m, v in inputs.items()}}, str(path)
    )
    return _Part(inputs, target, ids)


def _image(config: NpzSegmentationConfig, raw: Pixels, where: str) -> Pixels:
    """float32 [N, C, H, W] that may be written to: `raw` itself where it is that already."""
    if raw.dtype.kind not in "fiu" or raw.ndim not in (3, 4) or 0 in raw.shape:
        got = f"{raw.dtype} {list(raw.shape)}"
        raise DataError(
            f"{where}: must be numbers [N, C, H, W] or [N, H, W] with no empty axis, got {got}"
        )
    values = np.require(raw if raw.ndim == 4 else raw[:, None], np.float32, ("C", "W"))
    checks.require_finite(values, where)
    if config.scale == "unit" and raw.dtype.kind in "iu":
        values /= np.iinfo(raw.dtype).max
    return values


def _mask(config: NpzSegmentationConfig, raw: Pixels, where: str) -> Pixels:
    if raw.dtype.kind not in "iub" or raw.ndim != 3 or 0 in raw.shape:
        raise DataError(f"{where}: must be integers [N, H, W], got {raw.dtype} {list(raw.shape)}")
    if config.void is not None:
        known = raw != config.void
    else:
        known = np.ones(raw.shape, bool)
    classes = raw[known]
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < VOID:
        got = f"{int(classes.min())} to {int(classes.max())}"
        hint = "`void` names the value of pixels that are not known"
        raise DataError(f"{where}: classes must be between 0 and {VOID - 1}, got {got}; {hint}")
    out: Pixels = np.where(known, raw, VOID).astype(np.uint8)
    return out


def _task(config: NpzSegmentationConfig, targets: Mapping[str, Pixels]) -> Task:
    """Raises DataError for classes that train's masks, or the settings, do not have."""
    where = config.folder
    train = targets["train"]
    known = train[train != VOID]
    if not len(known):
        raise DataError(f"{where}: train has no known pixel")
    largest = {}
    for split, target in targets.items():
        largest[split] = int(np.where(target == VOID, 0, target).max())
    classes = number_of_classes(where, config.classes, largest)
    for name, given in (("class_names", config.class_names), ("weights", config.weights)):
        if given and not isinstance(given, str) and len(given) != classes:
            raise DataError(
                f"{where}: {name} must have one entry for each of the {classes} classes, got {len(given)}"
            )
    for name, region in config.regions.items():
        if not region or not 0 <= min(region) <= max(region) < classes:
            got = ", ".join(map(str, region)) or "none"
            raise DataError(
                f"{where}: regions.{name} must be classes between 0 and {classes - 1}, got {got}"
            )
    if not isinstance(config.weights, str):
        weights = config.weights
    else:
        weights = ()
    if config.weights == "median":
        weights = median_frequency(class_counts(train, classes), train[0].size)
    return Task(
        "segmentation",
        classes,
        config.class_names,
        weights,
        config.dice,
        tuple(config.regions.items()),
    )


def _with_val(
    config: NpzSegmentationConfig, parts: dict[str, _Part], place: Path
) -> tuple[dict[str, _Part], tuple[str, ...]]:
    strata = np.array([_main(mask) for mask in parts["train"].target])
    how = "stratified by main class"
    return hold_out(parts, strata, None, config.val_fraction, config.split_seed, place, how)


def _main(mask: Pixels) -> int:
    """The most frequent class other than 0 (0: there is none)."""
    counts = np.bincount(mask[(mask != VOID) & (mask != 0)].ravel(), minlength=1)
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
    return (values[i : i + step] for i in range(0, len(values), step))


plugin = NpzSegmentation
