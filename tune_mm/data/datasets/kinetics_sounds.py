"""Kinetics-Sounds: the classes of Kinetics that are heard as well as seen (Arandjelovic &
Zisserman, 2017).

Layout below `<root>/kinetics_sounds/` (the tree of DGL's public code, its folder `kinect_sound`):

    class.txt                                                 one line of class names, parted by commas
    audio/{train,test}/<class>/<clip>.wav
    visual/{train_img,val_img}/Image-01-FPS/<class>/<clip>/*.jpg
    my_train.txt, my_test.txt                                 optional: rows `<clip>,10,<label>`

Spaces within a class name count as `_`, in class.txt and in folders. The class of a clip is its
folder; what lies in val_img (or test_img) and in audio/test is the TEST split. The two lists
(OGM-GE's), where both are there, choose the clips and say which are train and test, wherever a clip
lies; their label, a name or an index into class.txt, must agree with the folder. Published figures
differ in the number of classes (31 to 34): class.txt decides.

Shapes: audio (1, 129, 626) with the default front-end, visual (3, 3, 224, 224).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from tune_mm.config.sections import AudioFrontend
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.audio.frontends.stft_16k import Stft16kConfig
from tune_mm.data.splits.listing import ListedRow, folders, known, rows, text, wavs
from tune_mm.data.synthetic.clips import clips, names
from tune_mm.data.synthetic.vectors import SyntheticOptions
from tune_mm.data.video.audio_visual import AudioVisual, AudioVisualConfig, Clip, Listing
from tune_mm.data.video.frames import FramesConfig

CLASSES = "class.txt"
LISTS = {"train": "my_train.txt", "test": "my_test.txt"}
AUDIO = {"train": ("audio/train",), "test": ("audio/test",)}
FRAMES = {
    "train": ("visual/train_img/Image-01-FPS",),
    "test": ("visual/val_img/Image-01-FPS", "visual/test_img/Image-01-FPS"),
}
# Some of the published names, for synthetic files.
_NAMES = (
    "blowing_nose",
    "blowing_out_candles",
    "bowling",
    "chopping_wood",
    "dribbling_basketball",
    "laughing",
    "mowing_lawn",
    "playing_accordion",
    "playing_bagpipes",
    "playing_bass_guitar",
    "playing_clarinet",
    "playing_drums",
)


class KineticsSoundsConfig(AudioVisualConfig):
    """See the module."""

    name: Literal["kinetics_sounds"] = "kinetics_sounds"
    # What is made of a wav file.
    audio: AudioFrontend = Stft16kConfig()
    # Which frames a clip is seen by, and what a batch makes of them.
    visual: FramesConfig = FramesConfig(frames=3)
    # A clip with fewer frames is left out.
    min_frames: int = Field(3, ge=1)


class KineticsSounds(AudioVisual):
    """Kinetics-Sounds."""

    Config = KineticsSoundsConfig
    folder: ClassVar[str] = "kinetics_sounds"
    aliases = ("kinect_sound", "Kinetics-Sounds", "KineticSound")

    @classmethod
    def files(cls, config: KineticsSoundsConfig) -> tuple[str, ...]:
        return (CLASSES,)

    @classmethod
    def folders(cls, config: KineticsSoundsConfig) -> tuple[tuple[str, ...], ...]:
        return (*AUDIO.values(), *FRAMES.values())

    @classmethod
    def listing(cls, config: KineticsSoundsConfig, place: Path) -> Listing:
        labels = _class_names(place / CLASSES)
        found = {split: _clips(place, split, labels) for split in AUDIO}
        lists: dict[str, Path] = {}
        missing: list[str] = []
        for split, file in LISTS.items():
            if (place / file).is_file():
                lists[split] = place / file
            else:
                missing.append(file)
        if not lists:
            return Listing(found, labels)
        if missing:
            there = next(iter(lists.values()))
            raise DataError(
                f"{there}: needs {missing[0]} beside it; "
                "add it, or remove the one to use all folders"
            )
        return _chosen(found, lists, labels)

    @classmethod
    def write(cls, config: KineticsSoundsConfig, place: Path, options: SyntheticOptions) -> None:
        labels = names(_NAMES, options)
        spoken = [label.replace("_", " ") for label in labels]
        (place / CLASSES).write_text(", ".join(spoken) + "\n")
        for clip in clips(options, config.min_frames):
            split = "test" if clip.split == "test" else "train"
            label = labels[clip.label]
            name = f"synth{clip.number:06d}_000010_000020"
            sound = place / AUDIO[split][0] / label / f"{name}.wav"
            clip.write(sound, place / FRAMES[split][0] / label / name)


def _spelled(name: str) -> str:
    """A class name with `_` between its words."""
    return "_".join(name.split())


def _class_names(path: Path) -> tuple[str, ...]:
    """Raises DataError unless there are two or more names, each once."""
    parts = text(path).replace("\n", ",").split(",")
    found = tuple(_spelled(part) for part in parts if part.strip())
    if len(found) < 2 or len(set(found)) < len(found):
        got = ", ".join(found)
        raise DataError(
            f"{path}: must hold 2 or more class names, each once, parted by commas; got {got}"
        )
    return found


def _clips(place: Path, split: str, labels: Sequence[str]) -> list[Clip]:
    """The clips in the folders of a split, by class and name. Raises DataError for a folder that is
    no class.
    """
    sounds = _by_class(place, AUDIO[split], labels, wavs)
    pictures = _by_class(place, FRAMES[split], labels, folders)
    found: list[Clip] = []
    for label in labels:
        heard = sounds[label]
        seen = pictures[label]
        for name in sorted({*heard, *seen}):
            found.append(Clip(name, label, heard.get(name), seen.get(name)))
    return found


def _by_class(
    place: Path,
    parents: Iterable[str],
    labels: Sequence[str],
    listed: Callable[[Iterable[Path]], dict[str, Path]],
) -> dict[str, dict[str, Path]]:
    """Clips by id and class, out of the folders of the classes."""
    folders_of: dict[str, list[Path]] = {label: [] for label in labels}
    for parent in parents:
        for name, folder in folders([place / parent]).items():
            where = f"{place / CLASSES} (folder {folder})"
            label = known(_spelled(name), labels, where)
            folders_of[label].append(folder)
    return {label: listed(own) for label, own in folders_of.items()}


def _chosen(found: dict[str, list[Clip]], lists: dict[str, Path], labels: Sequence[str]) -> Listing:
    """The clips that the lists name, in their order and splits."""
    place = next(iter(lists.values())).parent
    there: dict[str, Clip] = {}
    for own in found.values():
        for clip in own:
            before = there.get(clip.id, clip)
            there[clip.id] = _joined(before, clip, place)
    chosen: dict[str, list[Clip]] = {}
    left = set(there)
    for split, path in lists.items():
        listed = rows(path, ("clip", "seconds", "label"))
        chosen[split] = [_listed(row, there, labels) for row in listed]
        left.difference_update(clip.id for clip in chosen[split])
    notes: tuple[str, ...] = ()
    if left:
        neither = " nor ".join(LISTS.values())
        notes = (f"{len(left)} clips in the folders are in neither {neither}",)
    return Listing(chosen, tuple(labels), notes=notes)


def _joined(before: Clip, clip: Clip, place: Path) -> Clip:
    """One clip out of what two folders hold of it. Raises DataError when they are of two classes."""
    if before.label != clip.label:
        both = f"{before.label} and {clip.label}"
        raise DataError(f"{place}: clip '{clip.id}' lies in folders of two classes: {both}")
    return Clip(clip.id, clip.label, before.audio or clip.audio, before.frames or clip.frames)


def _listed(row: ListedRow, there: dict[str, Clip], labels: Sequence[str]) -> Clip:
    """The clip of a row. Raises DataError when its label is no class or not that of the folder."""
    name, _, given = row.fields
    if given.isdecimal() and given.isascii():
        if int(given) >= len(labels):
            allowed = f"an index into {CLASSES} (0..{len(labels) - 1})"
            raise DataError(f"{row.where}: label must be {allowed}, got {given}")
        label = labels[int(given)]
    else:
        label = known(_spelled(given), labels, row.where)
    clip = there.get(name, Clip(name, label, None, None))
    if clip.label != label:
        where = f"'{name}' lies in the folder {clip.label}"
        raise DataError(f"{row.where}: label '{given}' is {label}, but {where}")
    return clip


plugin = KineticsSounds
