"""Small clips on disk whose content says which they are: clip k sounds in STFT bin 8 + 4 k and
looks of grey 10 k.
"""

from __future__ import annotations

import wave
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tune_mm import plugins
from tune_mm.core.types import Dataset, Split

RATE, N_FFT = 8_000, 256
AUDIO = {"name": "stft", "rate": RATE, "n_fft": N_FFT, "hop": 128, "seconds": 0.25}
VISUAL = {
    "frames": 1,
    "size": 8,
    "stored_size": None,
    "crop": False,
    "flip": False,
    "normalize": "none",
}


def put_wav(path: Path, k: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tone = 10_000 * np.sin(2 * np.pi * (8 + 4 * k) / N_FFT * np.arange(RATE // 4))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(tone.astype("<i2").tobytes())


def put_frames(folder: Path, k: int, names: Iterable[str] = ("00000.png",)) -> None:
    """Images of 8 x 8 pixels of grey 10 k."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (8, 8), (10 * k,) * 3).save(folder / name)


def put(audio: Path, frames: Path, ids: Iterable[str], start: int = 0, number: int = 1) -> None:
    """audio/<id>.wav and frames/<id>/ (`number` images) for clips start, start + 1, ..."""
    for k, name in enumerate(ids, start):
        put_wav(audio / f"{name}.wav", k)
        put_frames(frames / name, k, [f"{i:05d}.png" for i in range(number)])


def section(name: str, **values: Any) -> Any:
    """A `data:` section with a small front-end and small frames."""
    visual = {**VISUAL, **values.pop("visual", {})}
    return plugins.load("data", name).Config(audio=AUDIO, visual=visual, **values)


def load(config: Any, place: Path) -> Dataset:
    """Read anew at every call, unlike `base.load`."""
    found: Dataset = plugins.load("data", config.name).load(config, place)
    return found


def numbers(split: Split) -> dict[str, tuple[int, int]]:
    """By clip id: which clip its sound and its first frame are of."""
    inputs = split.batch(torch.arange(len(split))).inputs
    bins = inputs["audio"].value[:, 0].mean(-1).argmax(-1)
    greys = (inputs["visual"].value[:, 0, 0, 0, 0] * 255).round().long()
    return {
        name: ((int(b) - 8) // 4, int(g) // 10)
        for name, b, g in zip(split.ids, bins, greys, strict=True)
    }


def names(data: Dataset) -> dict[str, list[str]]:
    """Class names of the clips of each split, in order."""
    classes = data.spec.task.class_names
    return {s: [classes[i] for i in split.target.tolist()] for s, split in data.splits.items()}
