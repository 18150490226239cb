"""BraTS 2021 (Baid et al., arXiv 2107.02314): brain tumours in four MRI sequences, as CGGM trains
on them: by slices.

    {train,valid,test}/<case>.h5     image [4, H, W, D]: flair, t1ce, t1, t2, z-scored over the brain, background 0
                                     label [H, W, D]: 0 background, 1 necrotic core, 2 oedema, 3 (or
                                     4) enhancing tumour
    slices.csv                       with `eval_slices: list`: case,slice (along D, from 0); a case may have several

A training sample is a case: every epoch sees one of its slices with a tumour, drawn anew, the same
of all sequences. Validation and test are fixed: `all` slices with a tumour, the `middle` one (of
the largest tumour) of each case, or those of a `list`. (CGGM's code draws them anew at every
evaluation, and its paper does not say.) Without `valid`, `val_fraction` of the cases of train is
held out under `split_seed`, before bad ones are left out; test is never touched. Slices are read
once, into a store (`images/scans`) that all trials of a node share; a case that cannot be read is an
error, or left out with `skip_bad`.

Size of the store, in the folder that TUNE_MM_CACHE names: 518,400 bytes a slice of 240 x 240, 34 MB
a case of 65 slices with a tumour, 42 GB for all 1,251 cases. Where the disk fills up the run ends
and says so; cases that are stored stay so, and the next run resumes with the others.

Scores: Dice of the nested regions WT (whole tumour: classes 1, 2, 3), TC (core: 1, 3) and ET
(enhancing: 3), over all pixels of a split, and their mean. Loss: soft Dice and cross-entropy
weighted by class, as published.

Changes in training (`ScanChanges`). Paper: "random cropping, random flipping, color jitter,
adding noise"; no strengths. Public code: the 160 x 160 in the middle (its random crop is not used);
a turn by 0, 90 or 180 degrees, then always a flip, along one of the two axes; with probability 0.1
noise on all four sequences of a sample, of one standard deviation drawn from 0 to 0.1; no jitter.
Here: the crop is random (`random_crop: false` for the middle); a horizontal flip with probability
1/2, then a turn by 0 to 270 degrees, which makes all eight positions of a square equally likely,
the unchanged one among them, where the code's are mirrored ones alone; noise as the code's; jitter,
of each sequence by itself, of strengths that are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from tune_mm.config import Section
from tune_mm.core.types import Dataset, DataSpec, Split, Task, Transform
from tune_mm.data.arrays import checks
from tune_mm.data.arrays.checks import SPLITS, DataError
from tune_mm.data.base import DataPlugin
from tune_mm.data.datasets._held_out import held_out
from tune_mm.data.images.scan_changes import ScanChanges
from tune_mm.data.images.scans import CLASSES, Cases, open_cases, open_labels
from tune_mm.data.splits import listing
from tune_mm.data.synthetic.brats import write
from tune_mm.data.synthetic.vectors import SyntheticOptions
from tune_mm.errors import nearest

MODALITIES = ("flair", "t1ce", "t1", "t2")
FOLDERS = {"train": "train/", "val": "valid/", "test": "test/"}
LIST = "slices.csv"
CLASS_NAMES = ("background", "necrotic", "oedema", "enhancing")
REGIONS = (("wt", (1, 2, 3)), ("tc", (1, 3)), ("et", (3,)))

# A sample: its case, and which of the case's stored slices evaluation sees.
Sample = tuple[str, int]


class BratsConfig(Section):
    """See the module, and `ScanChanges` for the changes: crop, noise and deviation are those of
    CGGM's code.
    """

    name: Literal["brats"] = "brats"
    # Slices of validation and test.
    eval_slices: Literal["all", "middle", "list"] = "middle"
    # Side of the square that is cut out.
    crop: int | None = Field(160, ge=17)
    # False crops the middle in training too, as CGGM's code does.
    random_crop: bool = True
    # Mirror, and turn by quarters, at random; CGGM's code does it otherwise (see the module).
    flip: bool = True
    turn: bool = True
    # Largest deviation of the factor of a sequence from 1.
    contrast: float = Field(0.1, ge=0, lt=1)
    # Largest value that is added to a sequence.
    brightness: float = Field(0.1, ge=0)
    # Probability of noise on a sample, and the largest of its standard deviations.
    noise: float = Field(0.1, ge=0, le=1)
    deviation: float = Field(0.1, ge=0)
    # Of the classes in the cross-entropy.
    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.2, 0.3, 0.25, 0.25), min_length=4, max_length=4
    )
    # Weight of the soft Dice loss.
    dice: float = Field(1.0, ge=0)
    # Leave out cases that cannot be read.
    skip_bad: bool = False
    # Share of train's cases that is held out when there is no valid/.
    val_fraction: float = Field(0.1, gt=0, lt=1)
    # Seed of what is held out.
    split_seed: int = Field(0, ge=0)


class Brats(DataPlugin):
    """Slices of brain tumours in four sequences."""

    Config = BratsConfig
    folder: ClassVar[str] = "brats"
    axes: ClassVar[tuple[int, ...]] = (3,)
    stored: ClassVar[bool] = True

    @classmethod
    def files(cls, config: BratsConfig) -> tuple[str, ...]:
        lists = (LIST,) if config.eval_slices == "list" else ()
        return (*lists, FOLDERS["train"], FOLDERS["test"])

    @classmethod
    def optional(cls, config: BratsConfig) -> tuple[str, ...]:
        return (FOLDERS["val"],)

    @classmethod
    def there(cls, path: Path) -> bool:
        """A list, or a folder of cases."""
        return path.is_file() or any(path.glob("*.h5"))

    @classmethod
    def transforms(cls, config: BratsConfig) -> Mapping[str, Transform]:
        train = ScanChanges(
            config.crop,
            config.random_crop,
            config.flip,
            config.turn,
            config.contrast,
            config.brightness,
            config.noise,
            config.deviation,
        )
        cut = ScanChanges(config.crop)
        return {"train": train, "val": cut, "test": cut}

    @classmethod
    def load(cls, config: BratsConfig, place: Path) -> Dataset:
        files: dict[str, dict[str, Path]] = {}
        every: dict[str, Path] = {}
        for split, folder in FOLDERS.items():
            files[split] = listing.ending([place / folder], ".h5")
            every.update(files[split])
        published = {split: list(own) for split, own in files.items()}
        checks.disjoint(published, str(place))
        cases = open_cases("brats", every, MODALITIES)
        notes = _bad(config, cases, place)
        split_cases, carved = _split(config, published, cases.bad, place)
        notes += carved
        size = _size(cases, split_cases, place)
        samples = _chosen(config, cases, split_cases, place)
        shape = _shape(config, size)
        if shape != size:
            notes.append(f"slices of {size[0]} x {size[1]} are cut to {shape[0]} x {shape[1]}")
        for name, own in samples.items():
            notes.append(_about(config, name, own, cases, split_cases[name]))
        task = Task("segmentation", CLASSES, CLASS_NAMES, config.weights, config.dice, REGIONS)
        spec = DataSpec(dict.fromkeys(MODALITIES, (1, *shape)), task)
        splits = {name: _samples(cases, samples[name], name == "train") for name in SPLITS}
        return Dataset("brats", spec, splits, notes=tuple(notes), dropped=cases.bad)

    @classmethod
    def options(cls, config: BratsConfig) -> SyntheticOptions:
        """Shapes are H x W x D."""
        shapes = dict.fromkeys(MODALITIES, (24, 24, 10))
        return SyntheticOptions(shapes, "flair", 24, 12, 12, classes=CLASSES, per_class=0)

    @classmethod
    def write(cls, config: BratsConfig, place: Path, options: SyntheticOptions) -> None:
        if len(set(options.shapes.values())) > 1:
            got = dict(options.shapes)
            raise DataError(f"brats: shapes (H x W x D) must be one for all sequences, got {got}")
        middle = write(place, options, {split: FOLDERS[split] for split in SPLITS})
        if config.eval_slices == "list":
            lines = ["case,slice\n"]
            for split in ("val", "test"):
                lines += [f"{case},{z}\n" for case, z in middle[split].items()]
            (place / LIST).write_text("".join(lines))


def _bad(config: BratsConfig, cases: Cases, place: Path) -> list[str]:
    """A note of what is left out. Raises DataError unless it is to be."""
    bad = list(cases.bad.values())
    if not bad:
        return []
    count = f"{len(bad)} of {len(cases.number) + len(bad)} cases"
    if not config.skip_bad:
        few = "; ".join(bad[:3])
        if len(bad) > 3:
            few += f" and {len(bad) - 3} more"
        hint = "data.skip_bad=true (--skip-bad) leaves them out"
        raise DataError(f"{place}: {count} cannot be read: {few}; {hint}")
    return [f"{count} cannot be read and are left out (skip_bad)"]


def _split(
    config: BratsConfig, files: Mapping[str, list[str]], bad: Mapping[str, str], place: Path
) -> tuple[dict[str, list[str]], list[str]]:
    """Cases by split, without the bad ones; a note where validation is carved out of train.

    Carved are all cases of train, the bad ones too: one that turns bad, or good, moves no other.
    Raises DataError for an empty split.
    """
    every = dict(files)
    notes: list[str] = []
    train = files["train"]
    if train and not (place / FOLDERS["val"]).is_dir():
        every["train"], every["val"] = held_out(
            train,
            np.zeros(len(train)),
            config.val_fraction,
            config.split_seed,
            f"{place}: no valid/, and none can be carved out of train",
        )
        share = f"{len(every['val'])} of {len(train)} train cases"
        notes.append(f"no valid/: {share} held out (seed {config.split_seed})")
    readable: dict[str, list[str]] = {}
    for split, own in every.items():
        readable[split] = [case for case in own if case not in bad]
        if not readable[split]:
            source = _source(place, split)
            raise DataError(f"{source}: must hold a case <name>.h5 that can be read, got none")
    return readable, notes


def _source(place: Path, split: str) -> Path:
    """The folder that the cases of a split come from."""
    folder = place / FOLDERS[split]
    if folder.is_dir():
        return folder
    return place / FOLDERS["train"]


def _size(cases: Cases, split: Mapping[str, Sequence[str]], place: Path) -> tuple[int, int]:
    """H x W of all slices. Raises DataError where cases differ."""
    every: list[str] = []
    for own in split.values():
        every += own
    first = cases[every[0]].size
    for case in every:
        found = cases[case].size
        if found != first:
            got = f"{list(first)} ({every[0]}) and {list(found)} ({case})"
            raise DataError(f"{place}: slices must have one size, got {got}")
    return first


def _shape(config: BratsConfig, size: tuple[int, int]) -> tuple[int, int]:
    try:
        return ScanChanges(config.crop, turn=config.turn).shape(*size)
    except ValueError as error:
        raise DataError(f"brats: {error}") from None


def _chosen(
    config: BratsConfig, cases: Cases, split: Mapping[str, Sequence[str]], place: Path
) -> dict[str, list[Sample]]:
    """The samples of each split. Raises DataError naming file and line of the list."""
    chosen = {"train": _middle(cases, split["train"])}
    if config.eval_slices == "list":
        return {**chosen, **_listed(cases, split, place)}
    if config.eval_slices == "middle":
        fixed = _middle
    else:
        fixed = _all_slices
    for name in ("val", "test"):
        chosen[name] = fixed(cases, split[name])
    return chosen


def _middle(cases: Cases, own: Sequence[str]) -> list[Sample]:
    return [(case, cases.middle(case)) for case in own]


def _all_slices(cases: Cases, own: Sequence[str]) -> list[Sample]:
    found: list[Sample] = []
    for case in own:
        for row in range(len(cases.places(case))):
            found.append((case, row))
    return found


def _about(
    config: BratsConfig, name: str, own: Sequence[Sample], cases: Cases, split: Sequence[str]
) -> str:
    """A note of the slices of a split."""
    how = f"fixed ({config.eval_slices}),"
    if name == "train":
        how = "drawn at every epoch, one per case,"
    count = sum(len(cases.places(case)) for case in split)
    return f"{name}: {len(own)} slices, {how} of {count} with a tumour in {len(split)} cases"


def _listed(
    cases: Cases, split: Mapping[str, Sequence[str]], place: Path
) -> dict[str, list[Sample]]:
    """The samples of `slices.csv` by split. Raises DataError naming file and line."""
    split_of: dict[str, str] = {}
    found: dict[str, list[Sample]] = {"val": [], "test": []}
    for name in found:
        split_of.update(dict.fromkeys(split[name], name))
    rows = listing.rows(place / LIST, ("case", "slice"))
    if rows and rows[0].fields == ("case", "slice"):
        rows = rows[1:]
    listed: set[str] = set()
    for row in rows:
        case, text = row.fields
        if case in cases.bad:
            continue
        if case not in split_of:
            hint = nearest(case, split_of)
            raise DataError(f"{row.where}: no case '{case}' in validation or test{hint}")
        places = cases.places(case)
        if not text.isdecimal() or int(text) not in places:
            allowed = f"a slice of '{case}' with a tumour, {places[0]} to {places[-1]}"
            raise DataError(f"{row.where}: must be {allowed}, got {text!r}")
        sample = (case, places.index(int(text)))
        own = found[split_of[case]]
        if sample in own:
            twice = f"slice {text} of '{case}' twice"
            raise DataError(f"{row.where}: every slice must be listed once, got {twice}")
        own.append(sample)
        listed.add(case)
    for case, name in split_of.items():
        if case not in listed:
            raise DataError(
                f"{place / LIST}: must name a slice of every case of {name}, got none of '{case}'"
            )
    return found


def _samples(cases: Cases, chosen: Sequence[Sample], training: bool) -> Split:
    """All stays in stores, from which a batch is read, but for the target: it is mapped."""
    inputs: dict[str, Any] = {}
    for channel, modality in enumerate(MODALITIES):
        inputs[modality] = cases.samples(chosen, channel)
    target = torch.from_numpy(open_labels("brats", cases, chosen))
    if training:
        names = tuple(case for case, _ in chosen)
        return Split(inputs, target, names, drawn=cases.samples(chosen, None))
    return Split(inputs, target, tuple(f"{case}:{cases.places(case)[row]}" for case, row in chosen))


plugin = Brats
