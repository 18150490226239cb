"""Clips and the independent arithmetic that the tests of the front-ends share."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_mm import plugins
from tune_mm.data.audio.frontends.base import Frontend

Wave = NDArray[np.float32]
Double = NDArray[np.float64]


def made(name: str, **fields: Any) -> Frontend:
    plugin = plugins.load("frontends", name)
    frontend: Frontend = plugin(plugin.Config(**fields))
    return frontend


def noise(rate: int, seconds: float, seed: int = 0, amplitude: float = 0.1) -> Wave:
    values = np.random.default_rng(seed).standard_normal(max(1, round(rate * seconds)))
    return (amplitude * values).astype(np.float32)


def sine(hertz: float, rate: int, seconds: float, amplitude: float = 0.5) -> Wave:
    return (amplitude * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)).astype(
        np.float32
    )


def looped(wave: Wave, length: int) -> Double:
    """Sample i of the clip repeated for ever."""
    return np.array([wave[i % len(wave)] for i in range(length)], dtype=np.float64)


def column(clip: Double, n_fft: int, hop: int, t: int) -> Double:
    """|FFT| of the frame centred on sample t hop, under 0.5 - 0.5 cos(2 pi i / n_fft), zeros beyond
    the clip.
    """
    frame = np.zeros(n_fft)
    for i in range(n_fft):
        place = t * hop - n_fft // 2 + i
        if 0 <= place < len(clip):
            frame[i] = clip[place] * (0.5 - 0.5 * math.cos(2 * math.pi * i / n_fft))
    return np.asarray(np.abs(np.fft.rfft(frame)))
