"""Seven small cases in the layout of BraTS, and what is loaded of them without any change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tune_mm.core.types import Dataset
from tune_mm.data import base
from tune_mm.data.datasets.brats import BratsConfig

PLAIN: dict[str, Any] = {
    "crop": None,
    "flip": False,
    "turn": False,
    "contrast": 0.0,
    "brightness": 0.0,
    "noise": 0.0,
}
SIZE = (20, 18, 7)
TUMOUR = {2: 1, 3: 6, 5: 4}  # slice: rows of tumour


def scan(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """image[m, y, x, z] = 100 m + 10 z + the case's number + y / 4, exact in float16; label: rows
    of 1, 2 and 4.
    """
    m, y, _, z = np.meshgrid(range(4), *(range(n) for n in SIZE), indexing="ij")
    label = np.zeros(SIZE, np.uint8)
    for place, rows in TUMOUR.items():
        label[:rows, :, place] = np.array([1, 2, 4])[np.arange(SIZE[1]) % 3]
    return (100.0 * m + 10 * z + seed + y / 4).astype(np.float32), label


def put(path: Path, image: Any, label: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = image, label


def put_seven(folder: Path) -> Path:
    """Three cases to train on, two each to evaluate."""
    for number, name in enumerate(
        ("train/a", "train/b", "train/c", "valid/d", "valid/e", "test/f", "test/g")
    ):
        put(folder / "brats" / f"{name}.h5", *scan(number))
    return folder / "brats"


def load(place: Path, **values: Any) -> Dataset:
    config = BratsConfig(**{**PLAIN, **values})
    return base.load(config, base.resolve(config, place.parent))
