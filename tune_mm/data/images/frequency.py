"""Weights of classes by how often they occur: median-frequency balancing.

Source: Eigen & Fergus, ICCV 2015, Sec. 4.3.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def class_counts(masks: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels of each class in each image, int64 [N, classes], of masks [N, H, W].

    Pixels of other values are left out.
    """
    counts = np.empty((len(masks), classes), np.int64)
    for row, mask in zip(counts, masks, strict=True):
        occurrences = np.bincount(mask.ravel(), minlength=classes)
        row[:] = occurrences[:classes]
    return counts


def median_frequency(counts: NDArray[Any], pixels: int) -> tuple[float, ...]:
    """Weight of each class: the median of all frequencies over its own; 0 if it is nowhere.

    The frequency is its share of all pixels, unknown ones too, of the images that hold it.
    counts: as `class_counts` gives them; pixels: of one image, H W.
    """
    images_with = (counts > 0).sum(0)
    occurs = images_with > 0
    frequency = counts.sum(0) / np.maximum(pixels * images_with, 1)
    weights = np.zeros(len(frequency))
    weights[occurs] = np.median(frequency[occurs]) / frequency[occurs]
    return tuple(weights.tolist())
