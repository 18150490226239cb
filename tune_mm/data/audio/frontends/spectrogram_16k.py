"""Log power density at 16 kHz, standardised per clip: window 512 and overlap 353, the figures that
OGM-GE, DGL and others state in their papers, and what PMR's code stores.

Formula: x = log(P + 1e-7), P by scipy.signal.spectrogram with nperseg 512, noverlap 353 and its
defaults (Tukey window of shape 0.25, mean of each segment removed, density in 1/Hz); then (x -
mean) / (std + 1e-9) over the clip, zeros for a silent one. Output: 257 x T, T = (16000 seconds -
353) // 159: 299 for 3 s, 1004 for 10 s.

Clips: repeated from the start until they last `seconds`, and cut there; of a longer clip the first
`seconds` are used. Deviation: PMR's code loads at 22.05 kHz but counts the samples of 10 s as if at
16 kHz, so that its 10 s are 7.26 s.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tune_mm.config import Section
from tune_mm.data.audio.frontends import _waves
from tune_mm.data.audio.frontends.base import Frontend, Wave

RATE = 16_000
WINDOW = 512
OVERLAP = 353
FLOOR = 1e-7


class Spectrogram16kConfig(Section):
    """seconds: the length that every clip is brought to (the papers: 3 for CREMA-D, 10 for the
    others).
    """

    name: Literal["spectrogram_16k"] = "spectrogram_16k"
    seconds: float = Field(3.0, ge=1, le=3600)


class Spectrogram16k(Frontend):
    """float32 [257, T], never cropped."""

    Config: ClassVar[type[Section]] = Spectrogram16kConfig

    def __init__(self, config: Spectrogram16kConfig) -> None:
        self.rate = RATE
        self.length = _waves.samples(config.seconds, RATE)
        self.stored = (1 + WINDOW // 2, (self.length - OVERLAP) // (WINDOW - OVERLAP))
        self.shape = (1, *self.stored)

    def compute(self, wave: Wave) -> NDArray[np.float32]:
        from scipy.signal import spectrogram

        clip = _waves.tile(wave, self.length).astype(np.float64)
        power = spectrogram(clip, RATE, nperseg=WINDOW, noverlap=OVERLAP)[2]
        return _waves.standardized(_waves.log(power, FLOOR)).astype(np.float32, order="C")


plugin = Spectrogram16k
