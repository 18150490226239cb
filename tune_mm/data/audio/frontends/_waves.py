"""What the front-ends share: clips brought to one length, magnitudes, logarithms and mel triangles.

n: samples of a waveform; F = 1 + n_fft // 2 frequencies; T columns.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tune_mm.data.audio.frontends.base import Wave

Double = NDArray[np.float64]
Fill = Literal["tile", "zero"]
# The `standardized` deviation below which a clip is constant, and what is added to others (as
# public code does).
TINY = 1e-9


def samples(seconds: float, rate: int) -> int:
    """The number of samples of so many seconds at `rate` Hz."""
    return round(seconds * rate)


def tile(wave: Wave, length: int) -> Wave:
    """[length]: a shorter clip repeated from its start until it is long enough, a longer one cut at
    its end.
    """
    return np.tile(wave, -(-length // len(wave)))[:length]


def fit(wave: Wave, length: int, fill: Fill) -> Wave:
    """[length]: the central part of a longer clip; a shorter one repeated, or followed by zeros."""
    start = (len(wave) - length) // 2
    if start >= 0:
        return wave[start : start + length]
    if fill == "tile":
        return tile(wave, length)
    return np.pad(wave, (0, length - len(wave)))


def columns(length: int, n_fft: int, hop: int) -> int:
    """T of `magnitude` for a waveform of `length` samples."""
    return 1 + (length + 2 * (n_fft // 2) - n_fft) // hop


def magnitude(wave: Wave, n_fft: int, hop: int) -> Double:
    """|STFT| [F, T] of librosa.stft: periodic Hann window, frames centred on multiples of `hop`,
    zeros beyond the ends.

    In double precision: the rounding of single precision is larger than the 1e-7 under the
    front-ends' logarithms.
    """
    # Slow to import, and not needed where a store exists already.
    import librosa

    spectrum = librosa.stft(
        wave.astype(np.float64), n_fft=n_fft, hop_length=hop, window="hann", pad_mode="constant"
    )
    return np.asarray(np.abs(spectrum), dtype=np.float64)


def log(values: Double, floor: float) -> Double:
    """log(values + floor), natural."""
    return np.asarray(np.log(values + floor), dtype=np.float64)


def standardized(values: Double) -> Double:
    """(x - mean) / (std + 1e-9) over the whole clip; zeros for a clip that is constant."""
    deviation = values.std()
    if deviation < TINY:
        return np.zeros_like(values)
    return np.asarray((values - values.mean()) / (deviation + TINY), dtype=np.float64)


def triangles(edges: Double, points: Double) -> Double:
    """[B, P]: triangle b is 0 up to edge b, 1 at edge b + 1 and 0 from edge b + 2 on; edges [B +
    2], points [P].
    """
    left = edges[:-2, None]
    centre = edges[1:-1, None]
    right = edges[2:, None]
    rise = (points - left) / (centre - left)
    fall = (right - points) / (right - centre)
    return np.asarray(np.maximum(0, np.minimum(rise, fall)), dtype=np.float64)
