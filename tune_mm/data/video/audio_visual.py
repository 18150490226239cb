"""What data sets of clips share: a wav file and a folder of frames per clip, paired by the clip's
id.

A clip that lacks a side, or has fewer frames than `min_frames`, is left out and listed with the
reason: pairs never shift. Files are read once, into stores; those that cannot be read are an error,
or left out with `skip_bad`.

Without a published validation split, `val_fraction` of train is held out under `split_seed`: whole
speakers where they are known (val_by `auto` or `speaker`), else stratified by label. Test is never
touched.

Shapes: audio (1, H, W), what the front-end makes of a wav; visual (T, C, S, S).
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from tune_mm.config import Section
from tune_mm.config.sections import AudioFrontend
from tune_mm.core.types import Dataset, DataSpec, Split, Task
from tune_mm.data.arrays.checks import SPLITS, DataError
from tune_mm.data.audio.spectrograms import SpectrogramStore, open_spectrograms
from tune_mm.data.base import DataPlugin
from tune_mm.data.splits.carve import carve
from tune_mm.data.splits.listing import images
from tune_mm.data.store.threads import each
from tune_mm.data.synthetic.vectors import SyntheticOptions
from tune_mm.data.video.frames import FramesConfig, FrameStore, open_frames


class AudioVisualConfig(Section):
    """What every data set of clips can be asked for."""

    # A front-end.
    audio: AudioFrontend
    # Which frames, and what a batch makes of them.
    visual: FramesConfig = FramesConfig()
    # A clip with fewer is left out.
    min_frames: int = Field(1, ge=1)
    # Leave out clips whose files cannot be read.
    skip_bad: bool = False
    # The share of train to validate on, drawn how: see the module.
    val_fraction: float = Field(0.1, gt=0, lt=1)
    split_seed: int = Field(0, ge=0)
    val_by: Literal["auto", "label", "speaker"] = "auto"


@dataclass(frozen=True)
class Clip:
    """One sample; what it lacks is None."""

    id: str
    label: str
    # Its wav.
    audio: Path | None
    # The folder of its images.
    frames: Path | None
    # Who it is from.
    speaker: str | None = None


@dataclass(frozen=True)
class Listing:
    """What a data set's lists say."""

    # By published split: train and test, perhaps val.
    clips: Mapping[str, Sequence[Clip]]
    # In the order of the labels.
    class_names: tuple[str, ...]
    # Rows that are not used, with the reason.
    dropped: Mapping[str, str] = field(default_factory=dict)
    # What else a user should know.
    notes: tuple[str, ...] = ()


class AudioVisual(DataPlugin):
    """Base of the data sets of clips: `folders` and `listing` are theirs, the rest is here."""

    axes: ClassVar[tuple[int, ...]] = (1,)
    stored: ClassVar[bool] = True

    @classmethod
    @abstractmethod
    def folders(cls, config: Any) -> tuple[tuple[str, ...], ...]:
        """Folders of wav files and frames below `place`: in each tuple the spellings of one, which
        must be there.
        """

    @classmethod
    @abstractmethod
    def listing(cls, config: Any, place: Path) -> Listing:
        """All clips by published split. Raises DataError naming file and line."""

    @classmethod
    def present(cls, config: Any, place: Path) -> bool:
        """Are the lists there? Raises DataError when they are, but a folder of wav files or frames
        is not.
        """
        if not super().present(config, place):
            return False
        for spellings in cls.folders(config):
            if not any((place / name).is_dir() for name in spellings):
                raise DataError(
                    f"{cls.folder_of(config)}: incomplete in {place}: no folder {' or '.join(spellings)}"
                )
        return True

    @classmethod
    def options(cls, config: Any) -> SyntheticOptions:
        # A vector has no steps to average: half the noise makes it as clear as a sequence.
        shapes = {"audio": (8,), "visual": (8,)}
        return SyntheticOptions(shapes, "audio", train=200, val=60, test=60, classes=6, noise=0.5)

    @classmethod
    def load(cls, config: AudioVisualConfig, place: Path) -> Dataset:
        name = cls.folder_of(config)
        listing = cls.listing(config, place)
        _require_distinct(listing.clips, place)
        pairs = _pair(name, listing, config.min_frames)
        looked = []
        for spellings in cls.folders(config):
            for folder in spellings:
                looked.append(folder)
        _require_clips(pairs.clips, place, f"with audio and frames in {', '.join(looked)}")
        both = [clip for clips in pairs.clips.values() for clip in clips]
        audio = open_spectrograms(name, {c.id: c.audio for c in both if c.audio}, config.audio)
        visual = open_frames(name, {c.id: pairs.files[c.id] for c in both}, config.visual)
        bad = _unreadable(both, audio, visual, config.skip_bad, place)
        clips = {s: [c for c in own if c.id not in bad] for s, own in pairs.clips.items()}
        _require_clips(clips, place, "that can be read")
        clips, carved = _with_val(clips, config, place)
        notes = [*pairs.notes, *listing.notes, *carved, *_about(clips, listing.class_names)]
        if bad:
            notes.insert(
                len(pairs.notes),
                f"{len(bad)} of {len(both)} clips cannot be read and are left out (skip_bad)",
            )
        task = Task("classification", len(listing.class_names), listing.class_names)
        spec = DataSpec({"audio": audio.shape, "visual": visual.shape}, task)
        splits = {}
        for s in SPLITS:
            splits[s] = _split(clips[s], task.class_names, audio, visual)
        return Dataset(name, spec, splits, notes=tuple(notes), dropped={**pairs.dropped, **bad})


def _require_distinct(clips: Mapping[str, Sequence[Clip]], place: Path) -> None:
    """Raises DataError with the first id that occurs twice, in a split or in two."""
    seen: dict[str, str] = {}
    for split, own in clips.items():
        for clip in own:
            if clip.id in seen:
                if seen[clip.id] == split:
                    both = f"twice in {split}"
                else:
                    both = f"in {seen[clip.id]} and in {split}"
                raise DataError(f"{place}: every clip must be listed once, got '{clip.id}' {both}")
            seen[clip.id] = split


def _require_clips(clips: Mapping[str, Sequence[Clip]], place: Path, what: str) -> None:
    for split, own in clips.items():
        if not own:
            raise DataError(f"{place}: {split} has no clip {what}")


class _Pairs(NamedTuple):
    """Clips that have both sides, their images by id, and what was left out."""

    clips: dict[str, list[Clip]]
    files: dict[str, tuple[Path, ...]]
    dropped: dict[str, str]
    notes: list[str]


def _pair(name: str, listing: Listing, min_frames: int) -> _Pairs:
    every = [clip for own in listing.clips.values() for clip in own]

    def frames(number: int) -> tuple[Path, ...]:
        folder = every[number].frames
        if folder:
            return images(folder)
        return ()

    found = each(frames, len(every), f"{name}: listing frames")
    files = {clip.id: own for clip, own in zip(every, found, strict=True)}
    why = {}
    for clip in every:
        why[clip.id] = _missing(clip, len(files[clip.id]), min_frames)
    dropped = {clip: reason for clip, reason in why.items() if reason}
    left = [*dropped.values(), *("repeated" for _ in listing.dropped)]
    notes = []
    if left:
        kinds = ", ".join(f"{n} {kind}" for kind, n in Counter(left).items())
        total = len(every) + len(listing.dropped)
        notes.append(
            f"{len(left)} of {total} clips left out: {kinds} (python -m tune_mm.data describe lists them)"
        )
    clips = {s: [c for c in own if not why[c.id]] for s, own in listing.clips.items()}
    return _Pairs(clips, files, {**listing.dropped, **dropped}, notes)


def _missing(clip: Clip, frames: int, least: int) -> str:
    """What a clip lacks; "" when it is whole."""
    sides = []
    for side, lacks in (("audio", clip.audio is None), ("frames", frames == 0)):
        if lacks:
            sides.append(side)
    if sides:
        return f"without {' and '.join(sides)}"
    if frames < least:
        return f"with fewer than {least} frames"
    return ""


def _unreadable(
    clips: Sequence[Clip], audio: SpectrogramStore, visual: FrameStore, skip: bool, place: Path
) -> dict[str, str]:
    """Clips that cannot be read, with the reason. Raises DataError unless they are to be left out."""
    bad = {c.id: "; ".join(s.bad[c.id] for s in (audio, visual) if c.id in s.bad) for c in clips}
    bad = {name: reason for name, reason in bad.items() if reason}
    if bad and not skip:
        few = "; ".join(list(bad.values())[:3]) + (
            f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        )
        hint = "data.skip_bad=true (--skip-bad) leaves them out"
        raise DataError(f"{place}: {len(bad)} of {len(clips)} clips cannot be read: {few}; {hint}")
    return bad


def _with_val(
    clips: dict[str, list[Clip]], config: AudioVisualConfig, place: Path
) -> tuple[dict[str, list[Clip]], list[str]]:
    """The clips with a validation split carved out of train where none is published, and a note
    that says so.
    """
    if "val" in clips:
        return clips, []
    train = clips["train"]
    speakers = _speakers(train, config, place)
    strata = np.array([c.label for c in train])
    group = np.array(speakers) if speakers else None
    try:
        kept, held = carve(strata, group, config.val_fraction, config.split_seed)
    except ValueError as error:
        raise DataError(
            f"{place}: no validation split, and none can be carved out of train: {error}"
        ) from error
    if speakers:
        how = "whole speakers"
    else:
        how = "stratified by label"
    note = f"no published validation split: {len(held)} of {len(train)} train clips held out"
    carved = {
        "train": [train[i] for i in kept],
        "val": [train[i] for i in held],
        "test": clips["test"],
    }
    return carved, [f"{note} ({how}, seed {config.split_seed})"]


def _speakers(clips: Sequence[Clip], config: AudioVisualConfig, place: Path) -> list[str]:
    """The speaker of each clip; none where validation is not carved by speaker."""
    speakers = []
    for c in clips:
        if c.speaker is not None:
            speakers.append(c.speaker)
    whole = len(speakers) == len(clips)
    if config.val_by == "speaker" and not whole:
        raise DataError(
            f"{place}: val_by 'speaker' needs the speaker of every clip; use val_by 'label'"
        )
    if (
        config.val_by == "label"
        or not whole
        or (config.val_by == "auto" and len(set(speakers)) < 2)
    ):
        return []
    return speakers


def _about(clips: Mapping[str, Sequence[Clip]], class_names: Sequence[str]) -> list[str]:
    """What makes figures hard to compare: classes that cannot be learned, speakers of test that
    train has heard.
    """
    seen = {c.label for c in clips["train"]}
    unseen = []
    for name in class_names:
        if name not in seen:
            unseen.append(name)
    if unseen:
        notes = [f"no clip in train of {len(unseen)} classes: {', '.join(unseen)}"]
    else:
        notes = []
    speakers = {}
    for s in ("train", "test"):
        speakers[s] = {c.speaker for c in clips[s] if c.speaker is not None}
    both = len(speakers["train"] & speakers["test"])
    if both:
        notes.append(f"{both} of {len(speakers['test'])} speakers of test are in train too")
    return notes


def _split(
    clips: Sequence[Clip], names: Sequence[str], audio: SpectrogramStore, visual: FrameStore
) -> Split:
    ids = tuple(c.id for c in clips)
    number = {name: i for i, name in enumerate(names)}
    target = torch.tensor([number[c.label] for c in clips], dtype=torch.int64)
    return Split({"audio": audio.stored(ids), "visual": visual.stored(ids)}, target, ids)
