"""UPMC Food-101: 101 dishes from a photo and the text of its web page, as features of frozen
models; `<root>/food101/`.

Train, dev and test (62,971, 5,000 and 22,715 in MMBT's lists) in one of four layouts, see
`features/food_lists`:

    layout: cggm        train.json, dev.json, test.json
    layout: mmbt        train.jsonl, dev.jsonl, test.jsonl
    layout: balancemm   texts/train_titles.csv, texts/test_titles.csv
    layout: mla         my_train_food.txt, my_test_food.txt, perhaps my_dev_food.txt

dev is the validation split. Where there is no list of it, `val_fraction` of train is held out,
stratified by class, under `split_seed`, whatever of train can be read. (CGGM's public code leaves
dev unused and validates on test.)

Trials train on last hidden states of frozen models (ViT-B/16 and BERT in CGGM), which are extracted
once:

    python -m tune_mm.data extract food101 --root DIR --image-model VIT --text-model BERT --views 4

The store lies in `features` (below the data's folder, or an absolute path, such as that of a copy
on a faster disk); where none there fits, one of `<root>/food101/features` is taken. `store` is the
start of its key where several fit; augment: training batches draw one of the views per image,
evaluation takes the plain one. Images are prepared by the model's own rules (CGGM's public code
normalises none, and blurs all of training's). A view is a random resized crop (at least 8 % of the
area) and a flip; published augmentations beyond these are left out: colour jitter and noise of
CGGM's paper, colour jitter, grayscale and blur of its public code.

The visual modality comes first because a transformer fusion reads its first position, the class
token of ViT.

Shapes: visual (197, 768), text (50, 768) with these models, in batches as float32; padded tokens
are 0 and masked.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from tune_mm.config import Section
from tune_mm.core.types import Dataset, DataSpec, Split, Task
from tune_mm.data.arrays.checks import SPLITS, DataError
from tune_mm.data.datasets._held_out import held_out
from tune_mm.data.features import synthetic_food
from tune_mm.data.features.food_lists import CLASSES, LISTS, Layout, lists, read
from tune_mm.data.features.store import FeaturePlugin, FeatureStore, Sample, find_store
from tune_mm.data.synthetic.vectors import SyntheticOptions

STORES = "features"


class Food101Config(Section):
    """See the module."""

    name: Literal["food101"] = "food101"
    # Which lists, images and texts: see the module.
    layout: Layout = "cggm"
    # Folder of the stores, below the data's folder or absolute.
    features: str = Field(STORES, min_length=1)
    # Start of the store's key, where several fit.
    store: str = Field("", pattern=r"^[0-9a-f]{0,16}$")
    # Training batches draw one of the views per image.
    augment: bool = True
    # Share of train that is held out when there is no list of dev.
    val_fraction: float = Field(0.1, gt=0, lt=1)
    # Seed of what is held out.
    split_seed: int = Field(0, ge=0)


class Food101(FeaturePlugin):
    """UPMC Food-101."""

    Config = Food101Config
    folder: ClassVar[str] = "food101"
    aliases = ("Food101", "food-101", "UPMC_Food101", "UPMC-Food-101")

    @classmethod
    def files(cls, config: Food101Config) -> tuple[str, ...]:
        return tuple(LISTS[config.layout].format(split) for split in ("train", "test"))

    @classmethod
    def optional(cls, config: Food101Config) -> tuple[str, ...]:
        return (LISTS[config.layout].format("dev"),)

    @classmethod
    def present(cls, config: Food101Config, place: Path) -> bool:
        """Are the lists there? Raises DataError when those of another layout are there instead."""
        if super().present(config, place):
            return True
        for layout in LISTS:
            own = lists(layout, place)
            if own["train"].is_file() and own["test"].is_file():
                wanted = cls.files(config)[0]
                there = own["train"].relative_to(place)
                raise DataError(
                    f"food101: no {wanted} in {place}, but {there}: use data.layout={layout}"
                )
        return False

    @classmethod
    def samples(cls, config: Food101Config, place: Path) -> dict[str, list[Sample]]:
        found = read(config.layout, place)
        for split, own in found.items():
            if not own:
                path = lists(config.layout, place)[split]
                raise DataError(f"{path}: must list at least one sample, got none")
        return found

    @classmethod
    def stores(cls, config: Food101Config, place: Path) -> tuple[Path, ...]:
        named = place / Path(config.features).expanduser()
        default = place / STORES
        if named == default:
            return (default,)
        return (named, default)

    @classmethod
    def load(cls, config: Food101Config, place: Path) -> Dataset:
        published = cls.samples(config, place)
        every: list[Sample] = []
        for own in published.values():
            every += own
        store = find_store(cls.stores(config, place), every, config.store, _command(config, place))
        notes = [f"features {store.opened.folder.name}: {store.about}"]
        dropped = {}
        for s in every:
            if s.id in store.bad:
                dropped[s.id] = store.bad[s.id]
        if dropped:
            count = f"{len(dropped)} of {len(every)} samples"
            notes.append(f"{count} could not be read and are left out")
        if "val" not in published:
            # Before bad samples are dropped, so that what can be read does not decide who is held
            # out.
            published, note = _carved(published, config, place)
            notes.append(note)
        kept: dict[str, list[Sample]] = {}
        for split, own in published.items():
            kept[split] = [sample for sample in own if sample.id not in dropped]
            if not kept[split]:
                raise DataError(
                    f"{store.opened.folder}: no sample of {split} could be read; "
                    "mend the images, then extract"
                )
        unseen = sorted(set(CLASSES) - {sample.label for sample in kept["train"]})
        if unseen:
            few = ", ".join(unseen[:5])
            notes.append(f"no sample in train of {len(unseen)} classes: {few} ...")
        spec = DataSpec(store.shapes, Task("classification", len(CLASSES), CLASSES))
        splits: dict[str, Split] = {}
        for split in SPLITS:
            drawn = config.augment and split == "train"
            splits[split] = _split(kept[split], store, drawn)
        return Dataset("food101", spec, splits, notes=tuple(notes), dropped=dropped)

    @classmethod
    def options(cls, config: Food101Config) -> SyntheticOptions:
        shapes = {"visual": (10, 32), "text": (12, 32)}
        return SyntheticOptions(shapes, "text", train=240, val=72, test=72, classes=6)

    @classmethod
    def write(cls, config: Food101Config, place: Path, options: SyntheticOptions) -> None:
        synthetic_food.write(config.layout, place, place / STORES, options)


def _command(config: Food101Config, place: Path) -> str:
    """What makes the features, for a shell."""
    words = ["python", "-m", "tune_mm.data", "extract", "food101", "--root", str(place)]
    defaults = Food101Config()
    if config.layout != defaults.layout:
        words += ["--set", f"layout={config.layout}"]
    if config.features != defaults.features:
        words += ["--set", f"features={config.features}"]
    return f"{shlex.join(words)} --image-model PATH --text-model PATH"


def _carved(
    published: dict[str, list[Sample]], config: Food101Config, place: Path
) -> tuple[dict[str, list[Sample]], str]:
    """The samples with a validation split out of train, and a note that says so. Raises DataError."""
    train = published["train"]
    labels = np.array([sample.label for sample in train])
    rest, held = held_out(
        train,
        labels,
        config.val_fraction,
        config.split_seed,
        f"{place}: no dev list, and no validation split can be carved out of train",
    )
    splits = {"train": rest, "val": held, "test": published["test"]}
    count = f"{len(held)} of {len(train)} train samples"
    how = f"stratified by label, seed {config.split_seed}"
    return splits, f"no published validation split: {count} held out ({how})"


def _split(samples: list[Sample], store: FeatureStore, drawn: bool) -> Split:
    ids = tuple(sample.id for sample in samples)
    number = {name: i for i, name in enumerate(CLASSES)}
    target = torch.tensor([number[sample.label] for sample in samples], dtype=torch.int64)
    inputs = {"visual": store.images(ids, drawn), "text": store.said(ids)}
    return Split(inputs, target, ids)


plugin = Food101
