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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from tune_mm.config.sections import AudioFrontend
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.audio.frontends.mel import MelConfig
from tune_mm.data.base import MARKER
from tune_mm.data.splits.listing import Row, folders, known, rows, wavs
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
    audio: AudioFrontend = MelConfig()
    folder: str = Field("av_folder", pattern=r"^[\w-][\w.-]*$")
    audio_folder: Name = "audio"
    frames_folder: Name = "frames"
    train: Name = "train.csv"
    val: Name = "val.csv"
    test: Name = "test.csv"
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
        sounds, pictures = (
            wavs([place / config.audio_folder]),
            folders([place / config.frames_folder]),
        )
        lists = {"train": config.train, "val": config.val, "test": config.test}
        read = {
            split: _without_headings(rows(place / file, ("id", "label")), sounds, pictures)
            for split, file in lists.items()
            if split != "val" or (place / file).is_file()
        }
        labels = _ordered(row.fields[1] for row in read["train"])
        if len(labels) < 2:
            raise DataError(
                f"{place / config.train}: must hold at least 2 classes, got {', '.join(labels) or 'none'}"
            )

        # Synthetic ids are not those that the pattern was written for.
        pattern = None if (place / MARKER).is_file() else config.speaker_pattern

        def clip(row: Row) -> Clip:
            name, label = row.fields[0], known(row.fields[1], labels, row.where)
            return Clip(name, label, sounds.get(name), pictures.get(name), _speaker(pattern, row))

        return Listing({split: [clip(row) for row in own] for split, own in read.items()}, labels)

    @classmethod
    def write(cls, config: AvFolderConfig, place: Path, options: SyntheticOptions) -> None:
        lists: dict[str, list[str]] = {config.train: [], config.val: [], config.test: []}
        files = {"train": config.train, "val": config.val, "test": config.test}
        for clip in clips(options, config.min_frames):
            name = f"synthetic{clip.number:06d}"
            clip.write(
                place / config.audio_folder / f"{name}.wav",
                place / config.frames_folder / name,
                ".png",
            )
            lists[files[clip.split]].append(f"{name},{clip.label}\n")
        for file, lines in lists.items():
            (place / file).parent.mkdir(parents=True, exist_ok=True)
            (place / file).write_text("".join(lines))


def _without_headings(
    found: list[Row], sounds: Mapping[str, Path], pictures: Mapping[str, Path]
) -> list[Row]:
    """The rows without a first one that names its columns and no clip."""
    if not found or found[0].fields[1].lower() not in HEADINGS:
        return found
    name = found[0].fields[0]
    return found if name in sounds or name in pictures else found[1:]


def _ordered(labels: Iterable[str]) -> tuple[str, ...]:
    """Each label once: by value where all are integers, else alphabetical."""
    every = sorted(set(labels))
    whole = all(re.fullmatch(r"-?[0-9]+", label) for label in every)
    return tuple(sorted(every, key=int) if whole else every)


def _speaker(pattern: str | None, row: Row) -> str | None:
    """Raises DataError when there is a pattern and the id does not match it."""
    if pattern is None:
        return None
    match = re.search(pattern, row.fields[0])
    if match is None or match[1] is None:
        raise DataError(f"{row.where}: speaker_pattern {pattern!r} finds none in '{row.fields[0]}'")
    return match[1]


plugin = AvFolder
