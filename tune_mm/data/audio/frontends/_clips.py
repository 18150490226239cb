"""What `stft` and `mel` share: their settings and the way from a clip to log(x + 1e-6)."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tune_mm.config import Section
from tune_mm.data.audio.frontends import _waves
from tune_mm.data.audio.frontends.base import Frontend, Wave

FLOOR = 1e-6


class ClipConfig(Section):
    """Settings for one's own data."""

    # In Hz; files are resampled to it.
    rate: int = Field(16_000, ge=1_000, le=192_000)
    # Window and FFT, in samples.
    n_fft: int = Field(512, ge=8, le=65_536)
    # Samples between columns.
    hop: int = Field(160, ge=1)
    # The length that every clip is brought to; of a longer clip the central part is used.
    seconds: float = Field(3.0, gt=0, le=3600)
    # What a batch holds of it, at random in training and central in evaluation (null: all).
    crop_seconds: float | None = Field(None, gt=0)
    # A shorter clip is repeated (tile) or followed by zeros (zero).
    fill: _waves.Fill = "zero"
    # clip: (x - mean) / std over each clip.
    standardize: Literal["none", "clip"] = "none"

    @model_validator(mode="after")
    def _settings_agree(self) -> ClipConfig:
        length = _waves.samples(self.seconds, self.rate)
        if self.hop > self.n_fft:
            raise ValueError(
                f"hop: must be at most n_fft ({self.n_fft}), which leaves no sample out, got {self.hop}"
            )
        if length < self.n_fft:
            raise ValueError(
                f"seconds: must hold at least n_fft ({self.n_fft}) samples, got {length} at {self.rate} Hz"
            )
        if self.crop_seconds is not None and self.crop_seconds > self.seconds:
            raise ValueError(
                f"crop_seconds: must be at most seconds ({self.seconds}), got {self.crop_seconds}"
            )
        return self


class ClipFrontend(Frontend):
    """float32 [H, T]; `bands` makes the H rows of log(x + 1e-6) from the magnitudes."""

    def __init__(self, config: Any) -> None:
        self.config: ClipConfig = config
        self.rate = config.rate
        self.length = _waves.samples(config.seconds, config.rate)
        if config.crop_seconds is None:
            kept = self.length
        else:
            kept = _waves.samples(config.crop_seconds, config.rate)
        self.stored = (self.height, _waves.columns(self.length, config.n_fft, config.hop))
        self.shape = (1, self.height, max(1, _waves.columns(kept, config.n_fft, config.hop)))

    @property
    @abstractmethod
    def height(self) -> int:
        """H."""

    @abstractmethod
    def bands(self, magnitude: _waves.Double) -> _waves.Double:
        """[H, T], >= 0, of magnitudes [1 + n_fft // 2, T]."""

    def compute(self, wave: Wave) -> NDArray[np.float32]:
        clip = _waves.fit(wave, self.length, self.config.fill)
        values = _waves.log(
            self.bands(_waves.magnitude(clip, self.config.n_fft, self.config.hop)), FLOOR
        )
        if self.config.standardize == "clip":
            values = _waves.standardized(values)
        return values.astype(np.float32, order="C")
