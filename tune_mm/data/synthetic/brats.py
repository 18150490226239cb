"""Synthetic cases in the layout of BraTS: an ellipse of brain with a nested tumour, which each
sequence shows in part.

The tumour is an ellipsoid of oedema (2) around an enhancing shell (3) around a necrotic core (1).
It is shown by the dominant sequence with probability SHARE, by each other one with SHARE (1 -
imbalance), and by one of them at least: then every class differs from the brain by a contrast of
the sequence's own. Noise is added to all of the brain; what is not brain is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from tune_mm.data.synthetic.images import shown_modalities
from tune_mm.data.synthetic.vectors import VERSION, SyntheticOptions

CONTRAST = {
    "flair": (1.0, 2.5, 2.0),
    "t1ce": (-1.0, 0.5, 3.0),
    "t1": (-1.5, -1.0, -0.5),
    "t2": (2.5, 2.0, 1.0),
}
NOISE = 0.7  # standard deviation in the brain, at noise 1
# radii, relative to the tumour's
CORE = 0.35
SHELL = 0.65


def write(
    place: Path, options: SyntheticOptions, folders: Mapping[str, str]
) -> dict[str, dict[str, int]]:
    """All cases; shapes are H x W x D, of one size. Returns the slice with the largest tumour by
    split and case.
    """
    rng = np.random.default_rng([VERSION, options.seed])
    middle: dict[str, dict[str, int]] = {}
    for split, part in options.bounds().items():
        (place / folders[split]).mkdir(parents=True)
        middle[split] = {}
        for number in range(part.start, part.stop):
            case = f"BraTS2021_{90000 + number}"
            image, label = _case(options, rng)
            with h5py.File(place / folders[split] / f"{case}.h5", "w") as file:
                file.create_dataset("image", data=image)
                file.create_dataset("label", data=label)
            middle[split][case] = int((label != 0).sum((0, 1)).argmax())
    return middle


def _case(
    options: SyntheticOptions, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """image [M, H, W, D], label [H, W, D]."""
    size = next(iter(options.shapes.values()))
    axes = [np.linspace(-1, 1, n) for n in size]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"))
    brain = (grid[:2] ** 2).sum(0) < 0.9
    centre = rng.uniform(-0.3, 0.3, 3)
    radii = rng.uniform(0.35, 0.55, 3)
    offset = (grid - centre[:, None, None, None]) / radii[:, None, None, None]
    distance = np.sqrt((offset**2).sum(0))
    label = np.zeros(size, np.uint8)
    for radius, number in ((1.0, 2), (SHELL, 3), (CORE, 1)):
        label[(distance < radius) & brain] = number
    # In the tumour's middle every class has a pixel, however few there are.
    row, column, depth = (
        int(np.abs(axis - c).argmin()) for axis, c in zip(axes, centre, strict=True)
    )
    label[row, column, depth] = 1
    image = rng.normal(0, NOISE * max(options.noise, 1e-3), (len(options.shapes), *size))
    shown = shown_modalities(options, rng)
    for i, m in enumerate(options.shapes):
        if m in shown:
            image[i] += _contrast(m, label)
    return (image * brain).astype(np.float32), label


def _contrast(modality: str, label: NDArray[np.uint8]) -> NDArray[Any]:
    return np.array((0.0, *CONTRAST[modality]))[label]
