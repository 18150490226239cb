"""NYUv2: 1,449 indoor scenes in colour and depth, pixels of 40 classes (Silberman et al., ECCV
2012); `<root>/nyuv2/`.

The layout that ESANet's preparation writes:

    train.txt, test.txt                    names, one a line: 795 and 654
    {train,test}/rgb/<name>.png            8-bit colour, 480 x 640
    {train,test}/depth/<name>.png          16-bit grey, millimetres, holes filled
    {train,test}/labels_40/<name>.png      8-bit grey: 0 void, 1..40 the classes of NYU40 in their published order

There is no validation list: `val_fraction` of train is held out, drawn under `split_seed`. (Which
pictures show one room is not in these files.) Test is never touched.

size: H x W of what a batch holds; null: as the files are, which must then have one size. Pictures
are decoded once into a store. Training batches: enlarged by a factor within `scale` and cut back,
mirrored (`flip`), the same for colours, depth and labels; `hue`, `saturation` and `value`: see
`colour.Jitter`, for colours alone. rgb is normalised by ImageNet's mean and standard deviation,
depth by those of train as published, 2841.95 and 1417.26 mm. weights: of the classes in the
cross-entropy, `median`: median-frequency balancing over train (all 795 pictures in ESANet's code,
here those that are not held out), void pixels counted in the pictures' sizes as there.

Shapes: rgb (3, 480, 640), depth (1, 480, 640).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from tune_mm.config import Section
from tune_mm.core.types import Dataset, DataSpec, Split, Task, Transform
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.base import DataPlugin
from tune_mm.data.datasets._held_out import held_out
from tune_mm.data.images import augment, pictures
from tune_mm.data.images.colour import Jitter
from tune_mm.data.images.frequency import median_frequency
from tune_mm.data.images.pictures import Look
from tune_mm.data.images.zoom import Zoom
from tune_mm.data.splits import listing
from tune_mm.data.synthetic.images import images
from tune_mm.data.synthetic.vectors import SyntheticOptions

LISTS = ("train", "test")
FOLDERS = {"rgb": "rgb", "depth": "depth", "labels": "labels_40"}
CHANNELS = {"rgb": 3, "depth": 1}
DEPTH = Look((2841.95,), (1417.26,))  # millimetres
CLASSES = (
    "wall",
    "floor",
    "cabinet",
    "bed",
    "chair",
    "sofa",
    "table",
    "door",
    "window",
    "bookshelf",
    "picture",
    "counter",
    "blinds",
    "desk",
    "shelves",
    "curtain",
    "dresser",
    "pillow",
    "mirror",
    "floor mat",
    "clothes",
    "ceiling",
    "books",
    "refrigerator",
    "television",
    "paper",
    "towel",
    "shower curtain",
    "box",
    "whiteboard",
    "person",
    "night stand",
    "toilet",
    "sink",
    "lamp",
    "bathtub",
    "bag",
    "other structure",
    "other furniture",
    "other prop",
)
# Synthetic files: millimetres per grey level, those of level 0, and rows without a class at the top.
STEP = 16
NEAREST = 800
BORDER = 2

Side = Annotated[int, Field(ge=8)]
Share = Annotated[float, Field(ge=0, le=1)]
Pictures = dict[str, dict[str, Path]]


class Nyuv2Config(Section):
    """See the module."""

    name: Literal["nyuv2"] = "nyuv2"
    # H x W of what a batch holds; null: as the files are.
    size: tuple[Side, Side] | None = None
    # Least and greatest factor by which training images are enlarged before they are cut.
    scale: tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1, le=4)]] = (1.0, 1.4)
    # Mirror training images at random.
    flip: bool = True
    # How far training changes colours: see `colour.Jitter`.
    hue: Share = 0.1
    saturation: Share = 0.1
    value: Share = 0.1
    # Of the classes in the cross-entropy: see the module.
    weights: Literal["median", "none"] = "median"
    # Share of train that is held out.
    val_fraction: float = Field(0.1, gt=0, lt=1)
    # Seed of what is held out.
    split_seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _scale_rises(self) -> Nyuv2Config:
        if self.scale[0] > self.scale[1]:
            raise ValueError(
                f"scale must be the least and the greatest factor, got {list(self.scale)}"
            )
        return self


class Nyuv2(DataPlugin):
    """NYUv2."""

    Config = Nyuv2Config
    folder: ClassVar[str] = "nyuv2"
    aliases = ("NYUv2", "nyu_v2")
    axes: ClassVar[tuple[int, ...]] = (3,)
    stored: ClassVar[bool] = True

    @classmethod
    def files(cls, config: Nyuv2Config) -> tuple[str, ...]:
        return tuple(f"{name}.txt" for name in LISTS)

    @classmethod
    def transforms(cls, config: Nyuv2Config) -> Mapping[str, Transform]:
        return {"train": Zoom(config.scale, config.flip, frozenset({"depth"}))}

    @classmethod
    def load(cls, config: Nyuv2Config, place: Path) -> Dataset:
        found = {name: _pictures_of(place, name) for name in LISTS}
        _no_name_twice(place, found)
        parts, note = _parts(config, found, place)
        first = next(iter(found["train"]["rgb"].values()))
        size = config.size or pictures.picture_size(first)
        resize = config.size is not None
        jitter = Jitter(config.hue, config.saturation, config.value)
        colours = Look(augment.IMAGENET_MEAN, augment.IMAGENET_STD, jitter)
        rgb = {**found["train"]["rgb"], **found["test"]["rgb"]}
        depth = {**found["train"]["depth"], **found["test"]["depth"]}
        rgb_store = pictures.open_pictures("nyuv2", "rgb", rgb, size, resize, look=colours)
        depth_store = pictures.open_pictures("nyuv2", "depth", depth, size, resize, look=DEPTH)
        splits: dict[str, Split] = {}
        weights: tuple[float, ...] = ()
        for split, (name, ids) in parts.items():
            # A store of each split's own: its labels then lie together, and are mapped, not copied.
            masks = {i: found[name]["labels"][i] for i in ids}
            labels = pictures.open_pictures("nyuv2", "labels", masks, size, resize, len(CLASSES))
            if split == "train" and config.weights == "median":
                weights = median_frequency(labels.counts, size[0] * size[1])
            inputs = {"rgb": rgb_store.stored(ids), "depth": depth_store.stored(ids)}
            splits[split] = Split(inputs, torch.from_numpy(labels.values), ids)
        task = Task("segmentation", len(CLASSES), CLASSES, weights)
        return Dataset("nyuv2", DataSpec(_shapes(size), task), splits, notes=(note,))

    @classmethod
    def options(cls, config: Nyuv2Config) -> SyntheticOptions:
        shapes = _shapes(config.size or (48, 64))
        return SyntheticOptions(shapes, "rgb", 64, 16, 24, classes=5, per_class=0)

    @classmethod
    def write(cls, config: Nyuv2Config, place: Path, options: SyntheticOptions) -> None:
        channels = {m: shape[0] for m, shape in options.shapes.items()}
        if channels != CHANNELS or options.classes > len(CLASSES):
            raise DataError(
                f"nyuv2: must be rgb of 3 channels and depth of 1, of at most {len(CLASSES)} classes, "
                f"got {dict(options.shapes)} and {options.classes} classes"
            )
        made = images(options)
        lists: dict[str, list[str]] = {name: [] for name in LISTS}
        for split, part in options.bounds().items():
            name = "test" if split == "test" else "train"
            for number in range(part.start, part.stop):
                picture = f"{number + 1:04d}"
                lists[name].append(f"{picture}\n")
                labels = made.mask[number] + np.uint8(1)
                labels[:BORDER] = 0
                grey = made.modalities["depth"][number, 0].astype(np.uint16)
                arrays = {
                    "rgb": made.modalities["rgb"][number].transpose(1, 2, 0),
                    "depth": NEAREST + STEP * grey,
                    "labels": labels,
                }
                for kind, array in arrays.items():
                    _write(place / name / FOLDERS[kind] / f"{picture}.png", array)
        for name, lines in lists.items():
            (place / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def _shapes(size: tuple[int, int]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for modality, channels in CHANNELS.items():
        found[modality] = (channels, *size)
    return found


def _pictures_of(place: Path, name: str) -> Pictures:
    """Files of a list by kind and id `<list>/<name>`. Raises DataError for a name that has none."""
    path = place / f"{name}.txt"
    out: Pictures = {kind: {} for kind in FOLDERS}
    for row in listing.rows(path, ("name",)):
        picture = row.fields[0]
        for kind, folder in FOLDERS.items():
            file = place / name / folder / f"{picture}.png"
            if not file.is_file():
                raise DataError(f"{row.where}: no file {file}")
            out[kind][f"{name}/{picture}"] = file
    if not out["rgb"]:
        raise DataError(f"{path}: must name at least one picture, got none")
    return out


def _no_name_twice(place: Path, found: Mapping[str, Pictures]) -> None:
    """Names are those of all 1,449: one that both lists have is one picture, in train and in test."""
    names = {}
    for split, own in found.items():
        names[split] = {i.partition("/")[2] for i in own["rgb"]}
    both = names["train"] & names["test"]
    if both:
        shared = f"must share no picture with train.txt, got {min(both)} in both"
        raise DataError(f"{place / 'test.txt'}: {shared}")


def _parts(
    config: Nyuv2Config, found: Mapping[str, Pictures], place: Path
) -> tuple[dict[str, tuple[str, tuple[str, ...]]], str]:
    """Of each split: the list that it comes from, and its ids in the order of the stores (sorted);
    a note.
    """
    train = sorted(found["train"]["rgb"])
    test = sorted(found["test"]["rgb"])
    kept, held = held_out(
        train,
        np.zeros(len(train)),
        config.val_fraction,
        config.split_seed,
        str(place / "train.txt"),
    )
    parts = {
        "train": ("train", tuple(kept)),
        "val": ("train", tuple(held)),
        "test": ("test", tuple(test)),
    }
    share = f"{len(held)} of {len(train)} train samples"
    return parts, f"no validation list: {share} held out (seed {config.split_seed})"


def _write(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


plugin = Nyuv2
