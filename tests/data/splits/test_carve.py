"""Laws of the carved validation split, over random labels and groups."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tune_mm.data.splits.carve import carve

LABELS = st.lists(st.integers(0, 4), min_size=20, max_size=120).map(np.array)
FRACTIONS = st.floats(0.05, 0.5)


@settings(max_examples=100, deadline=None)
@given(LABELS, FRACTIONS, st.integers(0, 5))
def test_every_sample_is_in_one_of_the_two(labels: np.ndarray, fraction: float, seed: int) -> None:
    kept, held = carve(labels, None, fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert abs(len(held) - fraction * len(labels)) <= 0.5 + len(set(labels.tolist()))
    for label in set(labels.tolist()):
        size = int((labels == label).sum())
        assert abs(int((labels[held] == label).sum()) - fraction * size) <= 1
        # Train keeps every class.
        assert label in labels[kept]


@settings(max_examples=100, deadline=None)
@given(LABELS, FRACTIONS, st.integers(2, 12), st.integers(0, 5))
def test_groups_are_never_split(
    labels: np.ndarray, fraction: float, groups: int, seed: int
) -> None:
    who = np.arange(len(labels)) % groups
    kept, held = carve(labels, who, fraction, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert len(kept) > 0
    assert len(held) > 0
    assert not set(who[kept]) & set(who[held])


def test_groups_are_chosen_so_that_classes_stay_alike() -> None:
    # Ten people; the first five did only class 0, the others only class 1.
    who = np.repeat(np.arange(10), 10)
    labels = (who >= 5).astype(int)
    _, held = carve(labels, who, 0.2, 0)
    assert np.bincount(labels[held]).tolist() == [10, 10]


def test_the_seed_decides() -> None:
    labels = np.arange(60) % 3
    assert np.array_equal(carve(labels, None, 0.2, 1)[1], carve(labels, None, 0.2, 1)[1])
    assert not np.array_equal(carve(labels, None, 0.2, 1)[1], carve(labels, None, 0.2, 2)[1])


def test_names_are_groups_too() -> None:
    who = np.array(["a", "b", "c", "d"] * 5)
    kept, held = carve(np.arange(20) % 2, who, 0.25, 0)
    assert not set(who[kept]) & set(who[held])


@pytest.mark.parametrize(
    ("labels", "group", "message"),
    [
        ([0, 1], None, r"2 samples are too few to hold out a share of 0\.1"),
        ([0, 1, 0], [7, 7, 7], "groups must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_carved_is_said(
    labels: list[int], group: list[int] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        carve(np.array(labels), None if group is None else np.array(group), 0.1, 0)
