"""What several data sets share: splits of arrays, and validation held out of a list."""

import numpy as np
import pytest

from tune_mm.core.types import Padded
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.datasets._arrays import ArraySplit, shapes_of, splits_of
from tune_mm.data.datasets._held_out import held_out


def split(padded: bool) -> ArraySplit:
    """Three samples: a sequence of two steps, of which one may be padding, and a vector."""
    mask = np.ones((3, 2), bool)
    mask[1, 1] = not padded
    values = {
        "text": np.arange(12, dtype=np.float32).reshape(3, 2, 2),
        "face": np.zeros((3, 4), np.float32),
    }
    masks = {"text": mask, "face": None}
    return ArraySplit(np.array([0, 1, 0]), ("a", "b", "c"), values, masks, np.array([7, 8, 9]))


def test_samples_are_taken_with_all_that_belongs_to_them() -> None:
    taken = split(padded=True).take(np.array([2, 1]))
    assert taken.ids == ("c", "b")
    assert taken.target.tolist() == [0, 1]
    assert taken.group is not None and taken.group.tolist() == [9, 8]
    assert taken.values["text"][:, 0, 0].tolist() == [8, 4]
    mask = taken.masks["text"]
    assert mask is not None and mask.tolist() == [[True, True], [True, False]]
    assert taken.masks["face"] is None


def test_a_mask_stays_where_any_split_has_padding() -> None:
    some = splits_of({"train": split(padded=False), "test": split(padded=True)})
    none = splits_of({"train": split(padded=False), "test": split(padded=False)})
    text = some["train"].inputs["text"]
    assert isinstance(text, Padded) and text.mask is not None
    text = none["train"].inputs["text"]
    assert isinstance(text, Padded) and text.mask is None


def test_splits_must_have_one_shape_by_modality() -> None:
    other = split(padded=False)
    assert shapes_of({"train": other}, "here") == {"text": (2, 2), "face": (4,)}
    other.values["face"] = np.zeros((3, 5), np.float32)
    with pytest.raises(DataError, match="here: 'face' must have one shape per sample"):
        shapes_of({"train": split(padded=False), "test": other}, "here")


def test_a_list_is_parted_in_its_order_and_by_its_strata() -> None:
    train = [f"{number:02d}" for number in range(20)]
    kept, held = held_out(train, np.arange(20) % 2, 0.2, 0, "here")
    assert sorted(kept + held) == train
    assert kept == sorted(kept) and held == sorted(held)
    assert [int(name) % 2 for name in held].count(1) == 2
    assert held_out(train, np.arange(20) % 2, 0.2, 0, "here") == (kept, held)


def test_too_few_samples_are_refused_by_the_callers_words() -> None:
    with pytest.raises(DataError, match="here: no list: 1 samples are too few"):
        held_out(["a"], np.zeros(1), 0.1, 0, "here: no list")
