"""Synthetic clips: `synthetic.vectors` as short sounds and pictures, in real wav and jpeg files.

audio [K]: a sum of K tones between 250 and 3400 Hz, tone k with amplitude exp(x_k / 2), plus noise,
at 8 kHz for 0.4 to 1 s, the peak at 0.9: differences of the x are differences of log amplitudes, in
any spectrogram. visual [K]: pixel = 128 + 110 tanh(x @ patterns / 3) plus noise. Pattern k is a
cosine of order k // 3 from top to bottom in color channel k % 3: mirrored frames are the same, and
crops keep the first three whole.

Imbalance and noise are those of `synthetic.vectors`; what is added here is small. Shapes: K values,
n samples, H x W x 3.
"""

from __future__ import annotations

import wave
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tune_mm.data.arrays.checks import DataError
from tune_mm.data.synthetic.vectors import VERSION, Array, SyntheticOptions, generate

RATE = 8_000
SECONDS = (0.4, 1.0)
TONES = (250.0, 3_400.0)
HEIGHT = 40
WIDTH = 48

Samples = NDArray[np.int16]
Frame = NDArray[np.uint8]


@dataclass(frozen=True)
class SyntheticClip:
    """One clip."""

    split: str
    # Of all splits' samples, from 0.
    number: int
    # Its class, from 0.
    label: int
    # [n] at RATE Hz.
    sound: Samples
    frames: tuple[Frame, ...]

    def write(self, audio: Path, frames: Path, suffix: str = ".jpg") -> None:
        """The wav file `audio` and `frames`/00000.jpg ... (or .png); folders are made. Raises
        OSError.
        """
        audio.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(audio), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(RATE)
            file.writeframes(self.sound.astype("<i2").tobytes())
        frames.mkdir(parents=True)
        for i, frame in enumerate(self.frames):
            Image.fromarray(frame).save(frames / f"{i:05d}{suffix}", quality=90)


def clips(options: SyntheticOptions, least_frames: int = 1) -> Iterator[SyntheticClip]:
    """All clips of train, val and test, in this order, of `least_frames` frames or one or two more.

    options.shapes: a vector for audio and one for visual. The same options give the same clips.
    Raises DataError.
    """
    for modality in ("audio", "visual"):
        shape = options.shapes.get(modality, ())
        if len(shape) != 1 or len(options.shapes) != 2:
            raise DataError(
                f"shapes must be audio=D and visual=D for clips, got {dict(options.shapes)}"
            )
    data = generate(options)
    heard, seen = (data.modalities[m].values for m in ("audio", "visual"))
    for split, part in options.bounds().items():
        for number in range(part.start, part.stop):
            rng = np.random.default_rng([VERSION, options.seed, number])
            count = int(rng.integers(least_frames, least_frames + 3))
            frames = tuple(frame(seen[number], rng) for _ in range(count))
            yield SyntheticClip(
                split, number, int(data.target[number]), sound(heard[number], rng), frames
            )


def names(known: tuple[str, ...], options: SyntheticOptions) -> tuple[str, ...]:
    """The first `options.classes` names. Raises DataError when there are not so many."""
    if options.classes > len(known):
        raise DataError(
            f"classes must be <= {len(known)} (the names of this data set), got {options.classes}"
        )
    return known[: options.classes]


def sound(values: Array, rng: np.random.Generator) -> Samples:
    """int16 [n] of values [K]: see the module. The phases of the tones are random."""
    count = int(RATE * rng.uniform(*SECONDS))
    frequencies = np.geomspace(*TONES, len(values))
    phases = rng.uniform(0, 2 * np.pi, len(values))
    # Values beyond 8 would leave one tone alone above the noise.
    amplitudes = np.exp(np.clip(values, -8, 8) / 2)
    angles = 2 * np.pi * frequencies[:, None] * np.arange(count) / RATE + phases[:, None]
    tones = amplitudes @ np.sin(angles)
    tones += 0.01 * np.abs(tones).max() * rng.standard_normal(count)
    samples: Samples = np.round(0.9 * 32_767 * tones / np.abs(tones).max()).astype(np.int16)
    return samples


def frame(values: Array, rng: np.random.Generator) -> Frame:
    """uint8 [HEIGHT, WIDTH, 3] of values [K]: see the module."""
    rows = (np.arange(HEIGHT) + 0.5) / HEIGHT
    columns = np.zeros((HEIGHT, 3))
    for k, value in enumerate(values):
        columns[:, k % 3] += value * np.cos(np.pi * (k // 3) * rows)
    pixels = np.repeat(128 + 110 * np.tanh(columns / 3)[:, None], WIDTH, axis=1)
    pixels += 4 * rng.standard_normal(pixels.shape)
    image: Frame = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    return image
