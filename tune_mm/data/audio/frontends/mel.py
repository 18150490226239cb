"""Log mel power with settings for one's own data; the defaults suit short spoken words at 8 kHz.

Formula: log(W |STFT|^2 + 1e-6), the STFT as in `stft`. W: `bins` triangles, linear in Hz, their
corners equally spaced over Slaney's mel scale (3 f / 200 below 1 kHz, 15 + 27 ln(f / 1000) / ln 6.4
above; Auditory Toolbox, 1998) from fmin to fmax, each divided by half its width in Hz:
librosa.filters.mel with its defaults. Then, with standardize: clip, (x - mean) / (std + 1e-9) over
the clip (zeros for a silent one). Output: bins x T, T = 1 + rate seconds // hop for an even n_fft.

Clips: of a longer one the central `seconds`; a shorter one is repeated from its start or followed
by zeros (fill).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field, model_validator

from tune_mm.config import Section
from tune_mm.data.audio.frontends import _waves
from tune_mm.data.audio.frontends._clips import ClipConfig, ClipFrontend

# Slaney's scale: linear below KNEE Hz, which is mel KNEE_MEL, logarithmic above with STEP per mel.
SLOPE = 3 / 200
KNEE = 1000.0
KNEE_MEL = 15.0
STEP = np.log(6.4) / 27


class MelConfig(ClipConfig):
    """See `ClipConfig`. bins: mel bands, from fmin to fmax Hz (null: half the rate)."""

    name: Literal["mel"] = "mel"
    rate: int = Field(8_000, ge=1_000, le=192_000)
    n_fft: int = Field(256, ge=8, le=65_536)
    seconds: float = Field(1.0, gt=0, le=3600)
    bins: int = Field(40, ge=1)
    fmin: float = Field(0.0, ge=0)
    fmax: float | None = Field(None, gt=0)

    @property
    def top(self) -> float:
        """fmax, or half the rate, in Hz."""
        if self.fmax is None:
            return self.rate / 2
        return self.fmax

    @model_validator(mode="after")
    def _bands_exist(self) -> MelConfig:
        if self.top > self.rate / 2:
            raise ValueError(
                f"fmax: must be at most half the rate ({self.rate / 2:g}), got {self.top:g}"
            )
        if self.fmin >= self.top:
            raise ValueError(f"fmin: must be below fmax ({self.top:g}), got {self.fmin:g}")
        # More bins than n_fft cannot all hold a frequency; their corners need not be made to know
        # it.
        if self.bins > self.n_fft or _empty(self):
            raise ValueError(
                f"bins: {self.bins} are too many between {self.fmin:g} and {self.top:g} Hz for n_fft {self.n_fft} at "
                f"{self.rate} Hz: some hold no frequency; use fewer bins or a larger n_fft"
            )
        return self


class Mel(ClipFrontend):
    """float32 [bins, T]."""

    Config: ClassVar[type[Section]] = MelConfig

    def __init__(self, config: Any) -> None:
        self.bins: int = config.bins
        super().__init__(config)
        self.bank = bank(config)

    @property
    def height(self) -> int:
        return self.bins

    def bands(self, magnitude: _waves.Double) -> _waves.Double:
        return self.bank @ np.square(magnitude)


def bank(config: MelConfig) -> _waves.Double:
    """W [bins, 1 + n_fft // 2]."""
    corners = _corners(config)
    return (
        _waves.triangles(corners, _frequencies(config))
        * (2 / (corners[2:] - corners[:-2]))[:, None]
    )


def _empty(config: MelConfig) -> bool:
    """Does a triangle lie between two frequencies of the FFT?"""
    corners = _corners(config)
    frequencies = _frequencies(config)
    within = np.searchsorted(frequencies, corners[2:], "left") - np.searchsorted(
        frequencies, corners[:-2], "right"
    )
    return bool((within < 1).any())


def _frequencies(config: MelConfig) -> _waves.Double:
    """[1 + n_fft // 2], in Hz."""
    return np.arange(1 + config.n_fft // 2, dtype=np.float64) * (config.rate / config.n_fft)


def _corners(config: MelConfig) -> _waves.Double:
    """[bins + 2], in Hz."""
    mel = np.linspace(_mel(config.fmin), _mel(config.top), config.bins + 2)
    return np.where(mel < KNEE_MEL, mel / SLOPE, KNEE * np.exp(STEP * (mel - KNEE_MEL)))


def _mel(hertz: float) -> float:
    if hertz < KNEE:
        return SLOPE * hertz
    return float(KNEE_MEL + np.log(hertz / KNEE) / STEP)


plugin = Mel
