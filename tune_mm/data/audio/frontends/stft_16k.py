"""Log magnitude at 16 kHz, 10 s, of which 5 s are trained on: VGGSound and Kinetics-Sounds in
OGM-GE and DGL, CREMA-D in MLA (as in their code).

Formula: log(|STFT| + 1e-7) of librosa.stft, n_fft 256, hop 128, periodic Hann window, frames
centred, zeros beyond the ends. Samples are first clipped to [-1, 1]. Stored: 129 x 1251; a batch
holds 129 x 626 (5 s), drawn at random in training and central in evaluation.

Clips: repeated from the start until they last 10 s, and cut there; of a longer clip the first 10 s
are used. Deviation: public code cuts 5 s out of the waveform at random, in test as well, and
transforms those. Here the columns lie on the grid of hops, the edges of a crop see the samples
beside it (there they are padded by reflection or zeros, depending on librosa), and evaluation gives
the same numbers every time.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tune_mm.config import Section
from tune_mm.data.audio.frontends import _waves
from tune_mm.data.audio.frontends.base import Frontend, Wave

RATE = 16_000
N_FFT = 256
HOP = 128
SECONDS = 10
CROP_SECONDS = 5
FLOOR = 1e-7


class Stft16kConfig(Section):
    """See the module; nothing to choose."""

    name: Literal["stft_16k"] = "stft_16k"


class Stft16k(Frontend):
    """float32 [129, 1251], cropped to [129, 626]."""

    Config: ClassVar[type[Section]] = Stft16kConfig

    def __init__(self, config: Stft16kConfig) -> None:
        self.rate = RATE
        self.length = _waves.samples(SECONDS, RATE)
        self.stored = (1 + N_FFT // 2, _waves.columns(self.length, N_FFT, HOP))
        self.shape = (
            1,
            self.stored[0],
            _waves.columns(_waves.samples(CROP_SECONDS, RATE), N_FFT, HOP),
        )

    def compute(self, wave: Wave) -> NDArray[np.float32]:
        clip = _waves.tile(wave, self.length).clip(-1, 1)
        return _waves.log(_waves.magnitude(clip, N_FFT, HOP), FLOOR).astype(np.float32, order="C")


plugin = Stft16k
