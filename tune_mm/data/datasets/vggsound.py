"""VGGSound: 309 classes of sounding things in YouTube clips of ten seconds (Chen et al., 2020);
`<root>/vggsound/`.

Layout, that of DGL's public code or, in brackets, of OGM-GE's:

    vggsound.csv                                       rows `youtube id,start second,label,split` (train or test)
    audio/train-audios/train-set/<clip>.wav            [train-audios/train-set/]
    audio/test-audios/test-set/<clip>.wav              [test-audios/test-set/]
    video/train-set-img/Image-01-FPS/<clip>/*.jpg      [train-videos/train-set-img/Image-01-FPS/]
    video/test-set-img/Image-01-FPS/<clip>/*.jpg       [test-videos/test-set-img/Image-01-FPS/]

<clip> is `<youtube id>_<start>` with the start padded to six digits or not, for frames with or
without `.mp4` at the end. The split is that of the csv, in whichever of the folders a clip lies.

The classes are the sorted names in the csv. (The public codes number them by first appearance among
the clips that exist, which depends on the disk.) Clips that are no longer on YouTube are listed as
left out.

Shapes: audio (1, 129, 626) with the default front-end, visual (3, 3, 224, 224).
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from tune_mm.config.sections import AudioFrontend
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.audio.frontends.stft_16k import Stft16kConfig
from tune_mm.data.splits.listing import ListedRow, folders, require_classes, rows, wavs
from tune_mm.data.synthetic.clips import clips, names
from tune_mm.data.synthetic.vectors import SyntheticOptions
from tune_mm.data.video.audio_visual import AudioVisual, AudioVisualConfig, Clip, Listing
from tune_mm.data.video.frames import FramesConfig

LIST = "vggsound.csv"
COLUMNS = ("youtube id", "start second", "label", "split")
AUDIO = {
    "train": ("audio/train-audios/train-set", "train-audios/train-set"),
    "test": ("audio/test-audios/test-set", "test-audios/test-set"),
}
FRAMES = {
    "train": ("video/train-set-img/Image-01-FPS", "train-videos/train-set-img/Image-01-FPS"),
    "test": ("video/test-set-img/Image-01-FPS", "test-videos/test-set-img/Image-01-FPS"),
}
# Some of the published names, for synthetic files.
_NAMES = (
    "people marching",
    "duck quacking",
    "airplane flyby",
    "dog barking",
    "playing cello",
    "cat meowing",
    "skateboarding",
    "car engine knocking",
    "playing harp",
    "wind chime",
    "sheep bleating",
    "female speech, woman speaking",
)
# Second at which synthetic clips start.
_START = 30


class VggsoundConfig(AudioVisualConfig):
    """See the module."""

    name: Literal["vggsound"] = "vggsound"
    # What is made of a wav file.
    audio: AudioFrontend = Stft16kConfig()
    # Which frames a clip is seen by, and what a batch makes of them.
    visual: FramesConfig = FramesConfig(frames=3)
    # A clip with fewer frames is left out.
    min_frames: int = Field(3, ge=1)


class Vggsound(AudioVisual):
    """VGGSound."""

    Config = VggsoundConfig
    folder: ClassVar[str] = "vggsound"
    aliases = ("VGGSound", "VGGsound")

    @classmethod
    def files(cls, config: VggsoundConfig) -> tuple[str, ...]:
        return (LIST,)

    @classmethod
    def folders(cls, config: VggsoundConfig) -> tuple[tuple[str, ...], ...]:
        return (*AUDIO.values(), *FRAMES.values())

    @classmethod
    def listing(cls, config: VggsoundConfig, place: Path) -> Listing:
        read = rows(place / LIST, COLUMNS)
        labels = tuple(sorted({row.fields[2] for row in read}))
        require_classes(labels, place / LIST)
        sounds = wavs(_places(place, AUDIO), _padded)
        pictures = folders(_places(place, FRAMES), _padded)
        found: dict[str, list[Clip]] = {"train": [], "test": []}
        for row in read:
            split = row.fields[3]
            if split not in found:
                raise DataError(f"{row.where}: split must be train or test, got '{split}'")
            name = _name(row)
            found[split].append(Clip(name, row.fields[2], sounds.get(name), pictures.get(name)))
        return Listing(found, labels)

    @classmethod
    def write(cls, config: VggsoundConfig, place: Path, options: SyntheticOptions) -> None:
        labels = names(_NAMES, options)
        with (place / LIST).open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            for clip in clips(options, config.min_frames):
                split = "test" if clip.split == "test" else "train"
                video = f"synth{clip.number:06d}"
                name = f"{video}_{_START:06d}"
                audio = place / AUDIO[split][0] / f"{name}.wav"
                frames = place / FRAMES[split][0] / f"{name}.mp4"
                clip.write(audio, frames)
                writer.writerow((video, _START, labels[clip.label], split))


def _places(place: Path, folders_of: Mapping[str, tuple[str, ...]]) -> list[Path]:
    """Every folder of both splits, in every spelling."""
    found = []
    for spellings in folders_of.values():
        found += [place / name for name in spellings]
    return found


def _padded(name: str) -> str:
    """`<youtube id>_<start>` with the start padded to six digits; another name stays as it is."""
    video, _, start = name.rpartition("_")
    if not _is_whole(start):
        return name
    return f"{video}_{int(start):06d}"


def _is_whole(number: str) -> bool:
    return number.isdecimal() and number.isascii()


def _name(row: ListedRow) -> str:
    """The id of the row's clip. Raises DataError when the start is no whole number of seconds."""
    video, start = row.fields[:2]
    if not _is_whole(start):
        raise DataError(f"{row.where}: start must be a whole number of seconds, got '{start}'")
    return f"{video}_{int(start):06d}"


plugin = Vggsound
