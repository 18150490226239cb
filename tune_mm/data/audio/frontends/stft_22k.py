"""Log magnitude at 22.05 kHz, 3 s: the CREMA-D input of OGM-GE, AGM and DGL (as in their code).

Formula: log(|STFT| + 1e-7) of librosa.stft, n_fft 512, hop 353, periodic Hann window, frames
centred, zeros beyond the ends (older librosa reflected the signal there). Samples are first clipped
to [-1, 1]. Output: 257 x 188.

Clips: repeated from the start until they last 3 s, and cut there; of a longer clip the first 3 s
are used. Public code repeats three times only, which fails below 1 s. The papers state a window of
512 with an overlap of 353, which is `spectrogram_16k`, not what their code computes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tune_mm.config import Section
from tune_mm.data.audio.frontends import _waves
from tune_mm.data.audio.frontends.base import Frontend, Wave

RATE = 22_050
N_FFT = 512
HOP = 353
SECONDS = 3
FLOOR = 1e-7


class Stft22kConfig(Section):
    """See the module; nothing to choose."""

    name: Literal["stft_22k"] = "stft_22k"


class Stft22k(Frontend):
    """float32 [257, 188], never cropped."""

    Config: ClassVar[type[Section]] = Stft22kConfig

    def __init__(self, config: Stft22kConfig) -> None:
        self.rate = RATE
        self.length = _waves.samples(SECONDS, RATE)
        self.stored = (1 + N_FFT // 2, _waves.columns(self.length, N_FFT, HOP))
        self.shape = (1, *self.stored)

    def compute(self, wave: Wave) -> NDArray[np.float32]:
        clip = _waves.tile(wave, self.length).clip(-1, 1)
        return _waves.log(_waves.magnitude(clip, N_FFT, HOP), FLOOR).astype(np.float32, order="C")


plugin = Stft22k
