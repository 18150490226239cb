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
once, into a store (`_scans`) that all trials of a node share; a case that cannot be read is an
error, or left out with `skip_bad`.

Size of the store, in the folder that TUNE_MM_CACHE names: 518,400 bytes a slice of 240 x 240, 34 MB
a case of 65 slices with a tumour, 42 GB for all 1,251 cases. Where the disk fills up the run ends
and says so; cases that are stored stay so, and the next run resumes with the others.

Scores: Dice of the nested regions WT (whole tumour: classes 1, 2, 3), TC (core: 1, 3) and ET
(enhancing: 3), over all pixels of a split, and their mean. Loss: soft Dice and cross-entropy
weighted by class, as published.

Changes in training (`_scan_changes`). Paper: "random cropping, random flipping, color jitter,
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
from tune_mm.data.images.scan_changes import ScanChanges
from tune_mm.data.images.scans import CLASSES, Cases, open_cases, open_labels
from tune_mm.data.splits import listing
from tune_mm.data.splits.carve import carve
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
    """See the module, and `ScanChanges` for the changes. The size of the crop, noise and deviation
    are those of CGGM's code; random_crop: false crops the middle in training too, as that does; its
    flips and turns are others than flip and turn (see the module). weights: of the classes in the
    cross-entropy; dice: weight of the soft Dice loss.
    """

    name: Literal["brats"] = "brats"
    eval_slices: Literal["all", "middle", "list"] = "middle"
    crop: int | None = Field(160, ge=17)
    random_crop: bool = True
    flip: bool = True
    turn: bool = True
    contrast: float = Field(0.1, ge=0, lt=1)
    brightness: float = Field(0.1, ge=0)
    noise: float = Field(0.1, ge=0, le=1)
    deviation: float = Field(0.1, ge=0)
    weights: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.2, 0.3, 0.25, 0.25), min_length=4, max_length=4
    )
    dice: float = Field(1.0, ge=0)
    skip_bad: bool = False
    val_fraction: float = Field(0.1, gt=0, lt=1)
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
        c = config
        train = ScanChanges(
            c.crop, c.random_crop, c.flip, c.turn, c.contrast, c.brightness, c.noise, c.deviation
        )
        return {"train": train, "val": ScanChanges(c.crop), "test": ScanChanges(c.crop)}

    @classmethod
    def load(cls, config: BratsConfig, place: Path) -> Dataset:
        files = {
            split: listing.ending([place / folder], ".h5") for split, folder in FOLDERS.items()
        }
        checks.disjoint({split: tuple(own) for split, own in files.items()}, str(place))
        cases = open_cases(
            "brats",
            {case: path for own in files.values() for case, path in own.items()},
            MODALITIES,
        )
        notes = _bad(config, cases, place)
        split = _split(config, {s: list(own) for s, own in files.items()}, cases.bad, place, notes)
        size = _size(cases, split, place)
        samples = {"train": [(case, cases.middle(case)) for case in split["train"]]}
        if config.eval_slices == "list":
            listed = _listed(cases, split, place)
        else:
            listed = None
        for name in ("val", "test"):
            samples[name] = _fixed(config, cases, split[name]) if listed is None else listed[name]
        shape = _shape(config, size)
        if shape != size:
            notes.append(f"slices of {size[0]} x {size[1]} are cut to {shape[0]} x {shape[1]}")
        for name, own in samples.items():
            if name == "train":
                drawn = "drawn at every epoch, one per case,"
            else:
                drawn = f"fixed ({config.eval_slices}),"
            count = sum(len(cases.places(c)) for c in split[name])
            notes.append(
                f"{name}: {len(own)} slices, {drawn} of {count} with a tumour in {len(split[name])} cases"
            )
        task = Task("segmentation", CLASSES, CLASS_NAMES, config.weights, config.dice, REGIONS)
        splits = {s: _samples(cases, samples[s], s == "train") for s in SPLITS}
        return Dataset("brats", DataSpec(dict.fromkeys(MODALITIES, (1, *shape)), task), splits, notes=tuple(notes),
                       dropped=cases.bad)  # fmt: skip

    @classmethod
    def options(cls, config: BratsConfig) -> SyntheticOptions:
        """Shapes are H x W x D."""
        return SyntheticOptions(
            dict.fromkeys(MODALITIES, (24, 24, 10)),
            "flair",
            24,
            12,
            12,
            classes=CLASSES,
            per_class=0,
        )

    @classmethod
    def write(cls, config: BratsConfig, place: Path, options: SyntheticOptions) -> None:
        if len(set(options.shapes.values())) > 1:
            raise DataError(
                f"brats: shapes (H x W x D) must be one for all sequences, got {dict(options.shapes)}"
            )
        middle = write(place, options, {split: FOLDERS[split] for split in SPLITS})
        if config.eval_slices == "list":
            rows = []
            for split in ("val", "test"):
                for case, z in middle[split].items():
                    rows.append(f"{case},{z}\n")
            (place / LIST).write_text("".join(["case,slice\n", *rows]))


def _bad(config: BratsConfig, cases: Cases, place: Path) -> list[str]:
    """A note of what is left out. Raises DataError unless it is to be."""
    bad, total = cases.bad, len(cases.number) + len(cases.bad)
    if bad and not config.skip_bad:
        few = "; ".join(list(bad.values())[:3]) + (
            f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        )
        hint = "data.skip_bad=true (--skip-bad) leaves them out"
        raise DataError(f"{place}: {len(bad)} of {total} cases cannot be read: {few}; {hint}")
    if bad:
        return [f"{len(bad)} of {total} cases cannot be read and are left out (skip_bad)"]
    return []


def _split(
    config: BratsConfig,
    files: Mapping[str, list[str]],
    bad: Mapping[str, str],
    place: Path,
    notes: list[str],
) -> dict[str, list[str]]:
    """Cases by split, without the bad ones; adds a note where validation is carved out of train.

    Carved are all cases of train, the bad ones too: one that turns bad, or good, moves no other.
    Raises DataError for an empty split.
    """
    out = dict(files)
    if not (place / FOLDERS["val"]).is_dir() and out["train"]:
        train = out["train"]
        try:
            kept, held = carve(np.zeros(len(train)), None, config.val_fraction, config.split_seed)
        except ValueError as error:
            raise DataError(
                f"{place}: no valid/, and none can be carved out of train: {error}"
            ) from error
        out |= {"train": [train[i] for i in kept], "val": [train[i] for i in held]}
        notes.append(
            f"no valid/: {len(held)} of {len(train)} train cases held out (seed {config.split_seed})"
        )
    out = {split: [case for case in own if case not in bad] for split, own in out.items()}
    for split, own in out.items():
        if not own:
            raise DataError(
                f"{_source(place, split)}: must hold a case <name>.h5 that can be read, got none"
            )
    return out


def _source(place: Path, split: str) -> Path:
    """The folder that the cases of a split come from."""
    folder = place / FOLDERS[split]
    if folder.is_dir():
        return folder
    return place / FOLDERS["train"]


def _size(cases: Cases, split: Mapping[str, Sequence[str]], place: Path) -> tuple[int, int]:
    """H x W of all slices. Raises DataError where cases differ."""
    every = [case for own in split.values() for case in own]
    first = cases[every[0]].size
    for case in every:
        found = cases[case].size
        if found != first:
            raise DataError(
                f"{place}: slices must have one size, got {list(first)} ({every[0]}) and {list(found)} ({case})"
            )
    return first


def _shape(config: BratsConfig, size: tuple[int, int]) -> tuple[int, int]:
    try:
        return ScanChanges(config.crop, turn=config.turn).shape(*size)
    except ValueError as error:
        raise DataError(f"brats: {error}") from None


def _fixed(config: BratsConfig, cases: Cases, own: Sequence[str]) -> list[Sample]:
    if config.eval_slices == "middle":
        return [(case, cases.middle(case)) for case in own]
    found = []
    for case in own:
        for row in range(len(cases.places(case))):
            found.append((case, row))
    return found


def _listed(
    cases: Cases, split: Mapping[str, Sequence[str]], place: Path
) -> dict[str, list[Sample]]:
    """The samples of `slices.csv` by split. Raises DataError naming file and line."""
    where = {case: name for name in ("val", "test") for case in split[name]}
    rows = listing.rows(place / LIST, ("case", "slice"))
    found: dict[str, list[Sample]] = {"val": [], "test": []}
    for row in rows[1:] if rows and rows[0].fields == ("case", "slice") else rows:
        case, text = row.fields
        if case in cases.bad:
            continue
        if case not in where:
            raise DataError(
                f"{row.where}: no case '{case}' in validation or test{nearest(case, where)}"
            )
        places = cases.places(case)
        if not text.isdecimal() or int(text) not in places:
            allowed = f"a slice of '{case}' with a tumour, {places[0]} to {places[-1]}"
            raise DataError(f"{row.where}: must be {allowed}, got {text!r}")
        sample = (case, places.index(int(text)))
        if sample in found[where[case]]:
            raise DataError(
                f"{row.where}: every slice must be listed once, got slice {text} of '{case}' twice"
            )
        found[where[case]].append(sample)
    for case, name in where.items():
        if case not in {c for c, _ in found[name]}:
            raise DataError(
                f"{place / LIST}: must name a slice of every case of {name}, got none of '{case}'"
            )
    return found


def _samples(cases: Cases, chosen: Sequence[Sample], training: bool) -> Split:
    """All stays in stores, from which a batch is read, but for the target: it is mapped."""
    inputs: dict[str, Any] = {}
    for i, m in enumerate(MODALITIES):
        inputs[m] = cases.samples(chosen, i)
    target = torch.from_numpy(open_labels("brats", cases, chosen))
    ids = tuple(case if training else f"{case}:{cases.places(case)[row]}" for case, row in chosen)
    return Split(inputs, target, ids, drawn=cases.samples(chosen, None) if training else None)


plugin = Brats
