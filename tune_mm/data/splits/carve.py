"""A validation split out of train: seeded, stratified, whole groups where there are groups."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tune_mm.data.arrays.checks import Index


def carve(
    strata: NDArray[Any], group: NDArray[Any] | None, fraction: float, seed: int
) -> tuple[Index, Index]:
    """Sorted indices of what stays in train and of what is held out for validation.

    strata: [N], whose shares validation keeps (classes, or bins of a value). group: [N], never
    split between the two. fraction: share of the samples to hold out. Raises ValueError when one of
    the two would be empty.
    """
    rng = np.random.default_rng(seed)
    strata = np.unique(strata, return_inverse=True)[1].reshape(-1)
    if group is None:
        held = _by_stratum(strata, fraction, rng)
    else:
        held = _by_group(strata, group, fraction, rng)
    if not 0 < held.sum() < len(held):
        raise ValueError(f"{len(held)} samples are too few to hold out a share of {fraction}")
    return np.flatnonzero(~held), np.flatnonzero(held)


def _by_stratum(strata: Index, fraction: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Each stratum gives its share, rounded so that the total is right; none gives its last sample."""
    sizes = np.bincount(strata)
    exact = sizes * fraction
    take = np.floor(exact).astype(int)
    missing = round(len(strata) * fraction) - int(take.sum())
    # Strata with the largest remainders give one more; a random order breaks ties.
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-(exact - take)[order], kind="stable")]
    spare = take + 1 < sizes
    take[order[spare[order]][:missing]] += 1
    held = np.zeros(len(strata), bool)
    for k, n in enumerate(take):
        members = rng.permutation(np.flatnonzero(strata == k))
        held[members[:n]] = True
    return held


def _by_group(
    strata: Index, group: NDArray[Any], fraction: float, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Adds the group that brings the counts per stratum nearest to the wanted ones, until none
    brings them nearer.
    """
    index = np.unique(group, return_inverse=True)[1].reshape(-1)
    number = int(index.max()) + 1
    if number < 2:
        raise ValueError(f"groups must be at least 2, got {number}")
    counts = np.zeros((number, int(strata.max()) + 1))
    np.add.at(counts, (index, strata), 1)
    wanted = counts.sum(axis=0) * fraction
    chosen = np.zeros(number, bool)
    while chosen.sum() < number - 1:
        have = counts[chosen].sum(axis=0)
        left = rng.permutation(np.flatnonzero(~chosen))
        distance = np.square(have + counts[left] - wanted).sum(axis=1)
        best = int(distance.argmin())
        nearer = distance[best] < np.square(have - wanted).sum()
        if chosen.any() and not nearer:
            break
        chosen[left[best]] = True
    return chosen[index]
