"""The files that a finished run leaves for use elsewhere: its best tensors and, where asked for,
gradient vectors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from tune_mm.core import checkpoint

BEST = "best.pt"
GRADIENTS = "gradients.npz"
NAMES = (BEST, GRADIENTS)


def write(folder: Path, best: Mapping[str, Tensor], vectors: Mapping[str, Tensor]) -> None:
    """Write `best` as best.pt, `vectors` as gradients.npz (float32, readable without pickle);
    nothing of what is empty.

    Raises OSError.
    """
    if best:
        checkpoint.save(dict(best), folder / BEST)
    if vectors:
        arrays = {}
        for name, value in vectors.items():
            arrays[name] = value.float().cpu().numpy()
        np.savez_compressed(folder / GRADIENTS, **arrays)  # type: ignore[arg-type]  # its stub takes no arrays by name
