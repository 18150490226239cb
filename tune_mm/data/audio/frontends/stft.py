"""Log magnitude with settings for one's own data.

Formula: log(|STFT| + 1e-6) of librosa.stft: periodic Hann window of n_fft samples, frames centred
on multiples of hop, zeros beyond the ends; then, with standardize: clip, (x - mean) / (std + 1e-9)
over the clip (zeros for a silent one). Output: (1 + n_fft // 2) x T, T = 1 + rate seconds // hop
for an even n_fft.

Clips: of a longer one the central `seconds`; a shorter one is repeated from its start or followed
by zeros (fill).
"""

from __future__ import annotations

from typing import ClassVar, Literal

from tune_mm.config import Section
from tune_mm.data.audio.frontends import _waves
from tune_mm.data.audio.frontends._clips import ClipConfig, ClipFrontend


class StftConfig(ClipConfig):
    """See `ClipConfig`."""

    name: Literal["stft"] = "stft"


class Stft(ClipFrontend):
    """float32 [1 + n_fft // 2, T]."""

    Config: ClassVar[type[Section]] = StftConfig

    @property
    def height(self) -> int:
        return 1 + self.config.n_fft // 2

    def bands(self, magnitude: _waves.Double) -> _waves.Double:
        return magnitude


plugin = Stft
