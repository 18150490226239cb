"""What every audio front-end provides: from a waveform to the spectrogram that is stored and the
crop trained on.

A front-end is one file in this folder that exports `plugin`, a subclass of `Frontend`. Its settings
are part of the key of the store: another setting is another store.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tune_mm.config import Section

Wave = NDArray[np.float32]


class Frontend(ABC):
    """One audio front-end."""

    # Its fields, all with defaults.
    Config: ClassVar[type[Section]]
    # Raise it when the same settings would give other values.
    VERSION: ClassVar[int] = 1
    # Of `stored`: 0 or 1.
    time_axis: ClassVar[int] = 1
    # The sampling rate in Hz that `compute` expects.
    rate: int
    # (H, W) of what `compute` returns.
    stored: tuple[int, int]
    # Of one sample as a batch holds it, (1, H, W): `stored` itself, or a crop of it along
    # `time_axis`, drawn at random in training and central in evaluation.
    shape: tuple[int, int, int]

    @abstractmethod
    def __init__(self, config: Any) -> None: ...

    @abstractmethod
    def compute(self, wave: Wave) -> NDArray[np.float32]:
        """float32 `stored`, finite, of a mono waveform float32 [n], n >= 1, at `rate` Hz, values in
        about [-1, 1].
        """
