"""Kaldi's log mel filter bank, 128 bins, about 10 s at 16 kHz: OGM-GE's Kinetics-Sounds script,
MMPareto, Diagnosing & Re-learning, BalanceMM; the constants are those of their code (after AST,
Gong et al., Interspeech 2021).

Formula, as Kaldi's compute-fbank-feats without dither or energy: the waveform minus its mean;
frames of 400 samples (25 ms) every 160 (10 ms) that fit whole ("snip edges"); of each frame s, s -
mean(s), pre-emphasis s[i] - 0.97 s[i - 1] (the first with itself), symmetric Hann window, zeros to
512, |FFT|^2; 128 triangles, linear in and equally spaced over mel(f) = 1127 ln(1 + f / 700) from 20
Hz to 8 kHz; log(max(x, 2^-23)). The lowest triangles are narrower than the FFT's resolution and
some of them hold no frequency: these bins are log(2^-23), as in public code. At last (x + 4.503877)
/ (2 * 5.141276), public code's statistics. Output: 1024 x 128, time x mel.

Clips: the first 1024 frames (10.255 s) of a longer one; frames of zeros, in the log domain, follow
a shorter one. Deviation: a clip below 25 ms, of which Kaldi makes no frame, is filled with zeros to
one frame.
"""

from __future__ import annotations

from functools import cache
from typing import ClassVar, Literal

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tune_mm.config import Section
from tune_mm.data.audio.frontends import _waves
from tune_mm.data.audio.frontends.base import Frontend, Wave

RATE = 16_000
WINDOW = 400
SHIFT = 160
N_FFT = 512
BINS = 128
FRAMES = 1024
LOW = 20.0
HIGH = 8_000.0
EMPHASIS = 0.97
FLOOR = float(np.finfo(np.float32).eps)
MEAN = -4.503877
DEVIATION = 5.141276


class FbankConfig(Section):
    """See the module; nothing to choose."""

    name: Literal["fbank"] = "fbank"


class Fbank(Frontend):
    """float32 [1024, 128], never cropped; its time axis is the first."""

    Config: ClassVar[type[Section]] = FbankConfig
    time_axis: ClassVar[int] = 0

    def __init__(self, config: FbankConfig) -> None:
        self.rate = RATE
        self.stored = (FRAMES, BINS)
        self.shape = (1, *self.stored)

    def compute(self, wave: Wave) -> NDArray[np.float32]:
        found = log_mel(wave)[:FRAMES]
        padded = np.pad(found, ((0, FRAMES - len(found)), (0, 0)))
        return ((padded - MEAN) / (2 * DEVIATION)).astype(np.float32, order="C")


def log_mel(wave: Wave) -> _waves.Double:
    """Log mel energies [T, 128], T = 1 + (n - 400) // 160, of a waveform [n]; one frame of a
    shorter one.
    """
    clip = wave.astype(np.float64)
    clip = clip - clip.mean()
    if len(clip) < WINDOW:
        clip = np.pad(clip, (0, WINDOW - len(clip)))
    frames = sliding_window_view(clip, WINDOW)[::SHIFT]
    frames = frames - frames.mean(axis=1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], axis=1)
    frames = (frames - EMPHASIS * before) * np.hanning(WINDOW)
    power = np.square(np.abs(np.fft.rfft(frames, N_FFT)))
    return np.asarray(np.log(np.maximum(power @ _bank().T, FLOOR)), dtype=np.float64)


def _mel(hertz: _waves.Double) -> _waves.Double:
    return np.asarray(1127 * np.log1p(hertz / 700), dtype=np.float64)


@cache
def _bank() -> _waves.Double:
    """[128, 257]."""
    low, high = _mel(np.array([LOW, HIGH]))
    frequencies = np.arange(1 + N_FFT // 2, dtype=np.float64) * (RATE / N_FFT)
    return _waves.triangles(np.linspace(low, high, BINS + 2), _mel(frequencies))


plugin = Fbank
