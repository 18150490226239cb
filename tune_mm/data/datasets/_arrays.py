"""Splits that lie in memory as arrays: sequences and vectors with a mask of the real steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_mm.core.types import Split
from tune_mm.data.arrays import checks
from tune_mm.data.arrays.checks import Float, Mask

Shape = tuple[int, ...]


@dataclass
class ArraySplit:
    """One split, N samples."""

    # Classes or scores [N].
    target: NDArray[Any]
    # Names of the samples; () when they have none.
    ids: tuple[str, ...] = ()
    # [N, T, D] or [N, D] by modality.
    values: dict[str, Float] = field(default_factory=dict)
    # [N, T] by modality; None where every step is real.
    masks: dict[str, Mask | None] = field(default_factory=dict)
    # Who or what each sample is from.
    group: NDArray[Any] | None = None

    def take(self, index: NDArray[np.int64]) -> ArraySplit:
        """The samples at `index`, in this order."""
        taken = ArraySplit(self.target[index])
        if self.ids:
            taken.ids = tuple(self.ids[i] for i in index)
        if self.group is not None:
            taken.group = self.group[index]
        for modality, values in self.values.items():
            mask = self.masks[modality]
            if mask is not None:
                mask = mask[index]
            taken.values[modality] = values[index]
            taken.masks[modality] = mask
        return taken


def shapes_of(parts: Mapping[str, ArraySplit], where: str) -> dict[str, Shape]:
    """The shape of a sample by modality. Raises DataError where splits differ."""
    shapes: dict[str, dict[str, Shape]] = {}
    for split, part in parts.items():
        shapes[split] = {modality: own.shape[1:] for modality, own in part.values.items()}
    return checks.same_shapes(shapes, where)


def splits_of(parts: Mapping[str, ArraySplit]) -> dict[str, Split]:
    """The splits as tensors, without masks of modalities that have no padded step."""
    masks = checks.without_full({split: part.masks for split, part in parts.items()})
    splits: dict[str, Split] = {}
    for split, part in parts.items():
        splits[split] = checks.split_of(part.values, masks[split], part.target, part.ids)
    return splits
