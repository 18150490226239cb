"""Weights of classes by how often they occur: median-frequency balancing (Eigen & Fergus, ICCV
2015, Sec. 4.3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def class_counts(masks: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels of each class in each image, int64 [N, classes], of masks [N, H, W]; other values are
    left out.
    """
    return np.stack([np.bincount(mask.ravel(), minlength=classes)[:classes] for mask in masks])


def median_frequency(counts: NDArray[Any], pixels: int) -> tuple[float, ...]:
    """Weight of each class: the median of the classes' frequencies over its own, which is its share
    of all pixels, unknown ones too, of the images that hold it; 0 for a class that is nowhere.

    counts: as `class_counts` gives them; pixels: of one image, H W.
    """
    held = pixels * (counts > 0).sum(0)
    frequency = counts.sum(0) / np.maximum(held, 1)
    middle = float(np.median(frequency[held > 0]))
    return tuple(float(middle / f) if f > 0 else 0.0 for f in frequency)
