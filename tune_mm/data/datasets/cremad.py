"""CREMA-D: six emotions in 7,442 clips of 91 actors, from speech and face; `<root>/cremad/`.

Layout (as OGM-GE, DGL and BalanceMM share it):

    train.csv, test.csv (6,698 and 744 clips), perhaps val.csv    rows `name,LABEL`, no header
    AudioWAV/<name>.wav
    Image-01-FPS/<name>/00000.jpg ...                             `fps: n` reads Image-<n, two digits>-FPS

The folder may be called CREMA-D or CREMAD too. The actor is what stands before the first `_`. The
published lists share all actors between train and test; validation, which they lack, is held out by
actor.

label_order `dgl`: NEU HAP SAD FEA DIS ANG (OGM-GE, DGL); `alphabetical`: ANG DIS FEA HAP NEU SAD
(MMPareto, D&R): the index of a class in checkpoints and confusion matrices differs.

Shapes: audio (1, 257, 188) with the default front-end, visual (1, 3, 224, 224).
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from tune_mm.config.sections import AudioFrontend
from tune_mm.data.arrays.checks import SPLITS
from tune_mm.data.audio.frontends.stft_22k import Stft22kConfig
from tune_mm.data.splits.listing import folders, known, rows, wavs
from tune_mm.data.synthetic.clips import clips, names
from tune_mm.data.synthetic.vectors import SyntheticOptions
from tune_mm.data.video.audio_visual import AudioVisual, AudioVisualConfig, Clip, Listing

LABELS = {
    "dgl": ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"),
    "alphabetical": ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD"),
}
# Eleven actors, so that some of them can be held out.
_SYNTHETIC_ACTORS = 11


class CremadConfig(AudioVisualConfig):
    """See the module."""

    name: Literal["cremad"] = "cremad"
    # What is made of a wav file.
    audio: AudioFrontend = Stft22kConfig()
    # Frames per second: which folder of frames is read.
    fps: int = Field(1, ge=1, le=99)
    # Order of the classes: see the module.
    label_order: Literal["dgl", "alphabetical"] = "dgl"


class Cremad(AudioVisual):
    """CREMA-D."""

    Config = CremadConfig
    folder: ClassVar[str] = "cremad"
    aliases = ("CREMA-D", "CREMAD")

    @classmethod
    def files(cls, config: CremadConfig) -> tuple[str, ...]:
        return ("train.csv", "test.csv")

    @classmethod
    def folders(cls, config: CremadConfig) -> tuple[tuple[str, ...], ...]:
        return (("AudioWAV",), (f"Image-{config.fps:02d}-FPS",))

    @classmethod
    def listing(cls, config: CremadConfig, place: Path) -> Listing:
        (audio,), (frames,) = cls.folders(config)
        sounds = wavs([place / audio])
        pictures = folders([place / frames])
        labels = LABELS[config.label_order]
        found: dict[str, list[Clip]] = {}
        for split in SPLITS:
            path = place / f"{split}.csv"
            if split == "val" and not path.is_file():
                continue
            found[split] = []
            for row in rows(path, ("name", "LABEL")):
                name, label = row.fields
                known(label, labels, row.where)
                actor = name.partition("_")[0]
                clip = Clip(name, label, sounds.get(name), pictures.get(name), actor)
                found[split].append(clip)
        return Listing(found, labels)

    @classmethod
    def write(cls, config: CremadConfig, place: Path, options: SyntheticOptions) -> None:
        labels = names(LABELS["dgl"], options)
        (audio,), (frames,) = cls.folders(config)
        lists: dict[str, list[str]] = {"train": [], "test": []}
        for clip in clips(options, config.min_frames):
            label = labels[clip.label]
            actor = 1001 + clip.number % _SYNTHETIC_ACTORS
            name = f"{actor}_{clip.number:05d}_{label}_XX"
            clip.write(place / audio / f"{name}.wav", place / frames / name)
            split = "test" if clip.split == "test" else "train"
            lists[split].append(f"{name},{label}\n")
        for split, lines in lists.items():
            (place / f"{split}.csv").write_text("".join(lines))


plugin = Cremad
