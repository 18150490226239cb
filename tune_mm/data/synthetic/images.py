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
class Images:
    """modalities: uint8 [N, C, H, W] each; mask: uint8 [N, H, W]."""

    modalities: Mapping[str, NDArray[np.uint8]]
    mask: NDArray[np.uint8]


def images(options: SyntheticOptions) -> Images:
    """All samples of the three splits, in the order of `options.bounds()`; shapes (C, H, W), of one
    H x W.
    """
    rng = np.random.default_rng([VERSION, options.seed])
    height, width = next(iter(options.shapes.values()))[1:]
    contrast = {
        m: CONTRAST * _signs(options.classes, shape[0], rng) for m, shape in options.shapes.items()
    }
    mask = np.zeros((options.total, height, width), np.uint8)
    values = {m: np.full((options.total, *s), 128.0, np.float32) for m, s in options.shapes.items()}
    for i in range(options.total):
        for k in range(DISCS):
            # The first disc's class goes round, so that every split holds all classes.
            chosen = 1 + (i if k == 0 else rng.integers(options.classes)) % (options.classes - 1)
            inside = _disc(height, width, rng)
            mask[i][inside] = chosen
            for m in _shown(options, rng):
                values[m][i][:, inside] = (128.0 + contrast[m][chosen])[:, None]
    noisy = {m: v + rng.normal(0, SPREAD * options.noise, v.shape) for m, v in values.items()}
    return Images({m: np.clip(v, 0, 255).astype(np.uint8) for m, v in noisy.items()}, mask)


def _signs(classes: int, channels: int, rng: np.random.Generator) -> NDArray[Any]:
    """Contrast of each class [classes, channels], in -1..1, the classes apart from each other."""
    steps = np.linspace(-1, 1, classes)
    return np.stack([rng.permutation(steps) for _ in range(channels)], 1)


def _disc(height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    y, x = np.mgrid[:height, :width]
    radius = rng.uniform(0.1, 0.3) * min(height, width)
    inside: NDArray[np.bool_] = (y - rng.uniform(0, height)) ** 2 + (
        x - rng.uniform(0, width)
    ) ** 2 < radius**2
    return inside


def _shown(options: SyntheticOptions, rng: np.random.Generator) -> list[str]:
    others = [m for m in options.shapes if m != options.dominant]
    out = [m for m in others if rng.random() < SHARE * (1 - options.imbalance)]
    if rng.random() < SHARE or not (out or others):
        out.append(options.dominant)
    return out or [others[rng.integers(len(others))]]
