"""Synthetic images of several modalities with a mask of classes: discs, seen by each modality in
part.

Every image has discs of random classes on class 0. A disc is shown by the dominant modality with
probability SHARE, by each other one with SHARE (1 - imbalance), and by one of them at least. Where
it is shown, a channel differs from the background by the class's own contrast; noise is added to
every pixel. Masks hold every disc.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_mm.data.synthetic.vectors import SHARE, VERSION, SyntheticOptions

DISCS = 3
SPREAD = 40.0  # grey levels of noise, at noise 1
CONTRAST = 90.0


@dataclass(frozen=True)
class SyntheticImages:
    """Images of all samples, and the classes of their pixels."""

    # uint8 [N, C, H, W] each
    modalities: Mapping[str, NDArray[np.uint8]]
    # uint8 [N, H, W]
    mask: NDArray[np.uint8]


def images(options: SyntheticOptions) -> SyntheticImages:
    """All samples of the three splits, in the order of `options.bounds()`; shapes (C, H, W), of one
    H x W.
    """
    rng = np.random.default_rng([VERSION, options.seed])
    height, width = next(iter(options.shapes.values()))[1:]
    contrast = {}
    values = {}
    for modality, shape in options.shapes.items():
        contrast[modality] = CONTRAST * _signs(options.classes, shape[0], rng)
        values[modality] = np.full((options.total, *shape), 128.0, np.float32)
    mask = np.zeros((options.total, height, width), np.uint8)
    for i in range(options.total):
        for k in range(DISCS):
            number = i  # the first disc's class cycles, so that every split holds all classes
            if k > 0:
                number = int(rng.integers(options.classes))
            chosen = 1 + number % (options.classes - 1)
            inside = _disc(height, width, rng)
            mask[i][inside] = chosen
            for modality in shown_modalities(options, rng):
                level = 128.0 + contrast[modality][chosen]
                values[modality][i][:, inside] = level[:, None]
    pixels = {}
    for modality, plain in values.items():
        noisy = plain + rng.normal(0, SPREAD * options.noise, plain.shape)
        pixels[modality] = np.clip(noisy, 0, 255).astype(np.uint8)
    return SyntheticImages(pixels, mask)


def _signs(classes: int, channels: int, rng: np.random.Generator) -> NDArray[Any]:
    """Contrast of each class [classes, channels], in -1..1, the classes apart from each other."""
    steps = np.linspace(-1, 1, classes)
    return np.stack([rng.permutation(steps) for _ in range(channels)], 1)


def _disc(height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    radius = rng.uniform(0.1, 0.3) * min(height, width)
    distance_y = y - rng.uniform(0, height)
    distance_x = x - rng.uniform(0, width)
    inside: NDArray[np.bool_] = distance_y**2 + distance_x**2 < radius**2
    return inside


def shown_modalities(options: SyntheticOptions, rng: np.random.Generator) -> list[str]:
    """The modalities that show a shape, at least one."""
    others = [m for m in options.shapes if m != options.dominant]
    shown = []
    for m in others:
        if rng.random() < SHARE * (1 - options.imbalance):
            shown.append(m)
    if rng.random() < SHARE or not others:
        shown.append(options.dominant)
    if not shown:
        shown.append(others[rng.integers(len(others))])
    return shown
