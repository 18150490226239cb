"""Your own clips: a list of ids and labels per split, a folder of wav files, a folder of frames; no
code needed.

Layout below `<root>/<folder>/` (names are fields):

    train.csv, test.csv, perhaps val.csv     rows `id,label`, with or without a line of headings
    audio/<id>.wav
    frames/<id>/*.jpg (or .jpeg, .png)       in natural order: frame_2 before frame_10

The labels are the names in train.csv, in order: by value where all are integers, else alphabetical.
speaker_pattern: a regular expression whose first group, searched in the id, is the speaker;
validation is then held out by speaker where there is no list of it.

Shapes: audio (1, 40, 51) with the default front-end, visual (1, 3, 224, 224).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from tune_mm.config.sections import AudioFrontend
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.audio.frontends.mel import MelConfig
from tune_mm.data.base import MARKER
from tune_mm.data.splits.listing import (
    ListedRow,
    folders,
    known,
    require_classes,
    rows,
    wavs,
)
from tune_mm.data.synthetic.clips import clips
from tune_mm.data.synthetic.vectors import SyntheticOptions
from tune_mm.data.video.audio_visual import AudioVisual, AudioVisualConfig, Clip, Listing

HEADINGS = ("label", "labels", "class", "target")
# One folder or file below another, none above it.
Name = Annotated[str, Field(pattern=r"^[\w-][\w.-]*(/[\w-][\w.-]*)*$")]


def _pattern(text: str) -> str:
    try:
        groups = re.compile(text).groups
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    if groups < 1:
        raise ValueError("must hold a group ( ) that is the speaker")
    return text


class AvFolderConfig(AudioVisualConfig):
    """See the module."""

    name: Literal["av_folder"] = "av_folder"
    # What is made of a wav file.
    audio: AudioFrontend = MelConfig()
    # Folder below the data root.
    folder: str = Field("av_folder", pattern=r"^[\w-][\w.-]*$")
    # Folder of the wav files.
    audio_folder: Name = "audio"
    # Folder of the folders of frames.
    frames_folder: Name = "frames"
    # List of each split; that of val may be missing.
    train: Name = "train.csv"
    val: Name = "val.csv"
    test: Name = "test.csv"
    # Expression whose first group, searched in the id, is the speaker.
    speaker_pattern: Annotated[str, AfterValidator(_pattern)] | None = None


class AvFolder(AudioVisual):
    """Clips in folders of one's own."""

    Config = AvFolderConfig
    folder: ClassVar[str] = "av_folder"

    @classmethod
    def folder_of(cls, config: AvFolderConfig) -> str:
        return config.folder

    @classmethod
    def files(cls, config: AvFolderConfig) -> tuple[str, ...]:
        return (config.train, config.test)

    @classmethod
    def folders(cls, config: AvFolderConfig) -> tuple[tuple[str, ...], ...]:
        return ((config.audio_folder,), (config.frames_folder,))

    @classmethod
    def listing(cls, config: AvFolderConfig, place: Path) -> Listing:
        sounds = wavs([place / config.audio_folder])
        pictures = folders([place / config.frames_folder])
        read: dict[str, list[ListedRow]] = {}
        for split, file in _lists(config).items():
            path = place / file
            if split == "val" and not path.is_file():
                continue
            read[split] = _without_headings(rows(path, ("id", "label")), sounds, pictures)
        labels = _ordered({row.fields[1] for row in read["train"]})
        require_classes(labels, place / config.train)
        pattern = config.speaker_pattern
        if (place / MARKER).is_file():
            # Synthetic ids are not those that the pattern was written for.
            pattern = None
        found: dict[str, list[Clip]] = {split: [] for split in read}
        for split, own in read.items():
            for row in own:
                name, label = row.fields
                known(label, labels, row.where)
                speaker = _speaker(pattern, row)
                clip = Clip(name, label, sounds.get(name), pictures.get(name), speaker)
                found[split].append(clip)
        return Listing(found, labels)

    @classmethod
    def write(cls, config: AvFolderConfig, place: Path, options: SyntheticOptions) -> None:
        lists: dict[str, list[str]] = {split: [] for split in _lists(config)}
        for clip in clips(options, config.min_frames):
            name = f"synthetic{clip.number:06d}"
            sound = place / config.audio_folder / f"{name}.wav"
            clip.write(sound, place / config.frames_folder / name, ".png")
            lists[clip.split].append(f"{name},{clip.label}\n")
        for split, file in _lists(config).items():
            path = place / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lists[split]))


def _lists(config: AvFolderConfig) -> dict[str, str]:
    """The list of each split."""
    return {"train": config.train, "val": config.val, "test": config.test}


def _without_headings(
    found: list[ListedRow], sounds: Mapping[str, Path], pictures: Mapping[str, Path]
) -> list[ListedRow]:
    """The rows without a first one that names its columns and no clip."""
    if not found or found[0].fields[1].lower() not in HEADINGS:
        return found
    name = found[0].fields[0]
    if name in sounds or name in pictures:
        return found
    return found[1:]


def _ordered(labels: set[str]) -> tuple[str, ...]:
    """By value where all are integers, else alphabetical."""
    every = sorted(labels)
    if all(re.fullmatch(r"-?[0-9]+", label) for label in every):
        every.sort(key=int)
    return tuple(every)


def _speaker(pattern: str | None, row: ListedRow) -> str | None:
    """Raises DataError when there is a pattern and the id does not match it."""
    if pattern is None:
        return None
    match = re.search(pattern, row.fields[0])
    if match is None or match[1] is None:
        raise DataError(f"{row.where}: speaker_pattern {pattern!r} finds none in '{row.fields[0]}'")
    return match[1]


plugin = AvFolder
