"""A validation split of data sets whose samples are lists of names or files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from tune_mm.data.arrays.checks import DataError
from tune_mm.data.splits.carve import carve

T = TypeVar("T")


def held_out(
    train: Sequence[T], strata: NDArray[Any], fraction: float, seed: int, problem: str
) -> tuple[list[T], list[T]]:
    """What stays in train and what is held out for validation, each in train's order.

    strata: [N], whose shares validation keeps; problem: what is said before the reason when there
    are too few samples. Raises DataError.
    """
    try:
        kept, held = carve(strata, None, fraction, seed)
    except ValueError as error:
        raise DataError(f"{problem}: {error}") from error
    return [train[i] for i in kept], [train[i] for i in held]
