"""AVE: 28 audio-visual events in clips of ten seconds (Tian et al., ECCV 2018); `<root>/ave/`.

Layout:

    trainSet.txt, valSet.txt, testSet.txt    rows `Category&VideoID&Quality&StartTime&EndTime`: the published split
    Audios/<VideoID>.wav                     or audio/
    Image-01-FPS-SE/<VideoID>/*.jpg          or Image-01-FPS/

A video may stand in more than one row, with another event. It is used once, with its first row in
the first of train, val, test that has it: never in test when train or val has it. The other rows
are listed as left out, by list and line. The classes are the sorted names in trainSet.txt.

Shapes: audio (1, 257, 1004) with the default front-end (10 s), visual (3, 3, 224, 224).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from tune_mm.config.sections import AudioFrontend
from tune_mm.data.audio.frontends.spectrogram_16k import Spectrogram16kConfig
from tune_mm.data.splits.listing import (
    ListedRow,
    folders,
    known,
    require_classes,
    rows,
    wavs,
)
from tune_mm.data.synthetic.clips import clips, names
from tune_mm.data.synthetic.vectors import SyntheticOptions
from tune_mm.data.video.audio_visual import AudioVisual, AudioVisualConfig, Clip, Listing
from tune_mm.data.video.frames import FramesConfig

LISTS = {"train": "trainSet.txt", "val": "valSet.txt", "test": "testSet.txt"}
COLUMNS = ("Category", "VideoID", "Quality", "StartTime", "EndTime")
AUDIO = ("Audios", "audio")
FRAMES = ("Image-01-FPS-SE", "Image-01-FPS")
# Of the published names, for synthetic files.
_NAMES = (
    "Accordion",
    "Acoustic guitar",
    "Baby cry, infant cry",
    "Banjo",
    "Bark",
    "Bus",
    "Cat",
    "Chainsaw",
    "Church bell",
    "Clock",
    "Female speech, woman speaking",
    "Fixed-wing aircraft, airplane",
    "Flute",
    "Frying (food)",
    "Goat",
    "Helicopter",
    "Horse",
    "Male speech, man speaking",
    "Mandolin",
    "Motorcycle",
    "Race car, auto racing",
    "Rodents, rats, mice",
    "Shofar",
    "Toilet flush",
    "Train horn",
    "Truck",
    "Ukulele",
    "Violin, fiddle",
)


class AveConfig(AudioVisualConfig):
    """See the module."""

    name: Literal["ave"] = "ave"
    # What is made of a wav file.
    audio: AudioFrontend = Spectrogram16kConfig(seconds=10)
    # Which frames a clip is seen by, and what a batch makes of them.
    visual: FramesConfig = FramesConfig(frames=3)


class Ave(AudioVisual):
    """AVE."""

    Config = AveConfig
    folder: ClassVar[str] = "ave"
    aliases = ("AVE_Dataset", "AVE")

    @classmethod
    def files(cls, config: AveConfig) -> tuple[str, ...]:
        return tuple(LISTS.values())

    @classmethod
    def folders(cls, config: AveConfig) -> tuple[tuple[str, ...], ...]:
        return AUDIO, FRAMES

    @classmethod
    def listing(cls, config: AveConfig, place: Path) -> Listing:
        sounds = wavs(place / name for name in AUDIO)
        pictures = folders(place / name for name in FRAMES)
        read = {split: _rows(place / file) for split, file in LISTS.items()}
        labels = tuple(sorted({row.fields[0] for row in read["train"]}))
        require_classes(labels, place / LISTS["train"])
        found: dict[str, list[Clip]] = {split: [] for split in LISTS}
        first: dict[str, str] = {}
        dropped: dict[str, str] = {}
        for split, own in read.items():
            for row in own:
                label, name = row.fields[:2]
                known(label, labels, row.where)
                line = row.where.removeprefix(f"{place}/")
                if name in first:
                    dropped[f"{name} ({line})"] = f"used as {first[name]} says"
                    continue
                first[name] = line
                found[split].append(Clip(name, label, sounds.get(name), pictures.get(name)))
        return Listing(found, labels, dropped)

    @classmethod
    def write(cls, config: AveConfig, place: Path, options: SyntheticOptions) -> None:
        labels = names(_NAMES, options)
        lists: dict[str, list[str]] = {split: [] for split in LISTS}
        for clip in clips(options, config.min_frames):
            name = f"synthetic{clip.number:06d}"
            clip.write(place / AUDIO[0] / f"{name}.wav", place / FRAMES[0] / name)
            lists[clip.split].append(f"{labels[clip.label]}&{name}&good&0&10\n")
        for split, file in LISTS.items():
            (place / file).write_text("".join(lists[split]))


def _rows(path: Path) -> list[ListedRow]:
    """The rows of a list without the line of headings that some copies have."""
    found = rows(path, COLUMNS, delimiter="&")
    if found and found[0].fields == COLUMNS:
        return found[1:]
    return found


plugin = Ave
