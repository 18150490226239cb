"""What a user is told of a loaded data set."""

import dataclasses

import torch

from tune_mm.core.types import VOID, Dataset, DataSpec, Padded, Split, Task
from tune_mm.data.summary import described, summary


def dataset(task: Task, target: torch.Tensor, mask: torch.Tensor | None = None) -> Dataset:
    """The same samples in train and test, of one modality with three steps."""
    values = torch.zeros(len(target), 3, 2)
    split = Split({"text": Padded(values, mask)}, target, ())
    return Dataset("made", DataSpec({"text": (3, 2)}, task), {"train": split, "test": split})


def test_classes_are_counted() -> None:
    made = dataset(Task("classification", 3), torch.tensor([2, 0, 2, 1]))
    assert described(made) == [
        "task: classification, 3 classes",
        "text: [3, 2]",
        "train: 4 samples, per class 0:1 1:1 2:2",
        "test: 4 samples, per class 0:1 1:1 2:2",
    ]


def test_scores_are_spread_and_padding_is_told() -> None:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    lines = described(dataset(Task("regression", 1), torch.tensor([-1.5, 3.0]), mask))
    assert lines[:3] == [
        "task: regression",
        "text: [3, 2], 33% of train's steps are padding",
        "train: 2 samples, values -1.5 to 3, mean 0.75",
    ]


def test_shares_of_pixels_are_of_those_that_are_known() -> None:
    target = torch.tensor([[[0, 1], [1, VOID]]], dtype=torch.uint8)
    lines = described(dataset(Task("segmentation", 2), target))
    assert lines[2] == "train: 1 samples, pixels 0:33.3% 1:66.7%, 25.0% unknown"
    known = described(dataset(Task("segmentation", 2), target[:, :1]))
    assert known[2] == "train: 1 samples, pixels 0:50.0% 1:50.0%"


def test_notes_and_what_was_left_out_come_last() -> None:
    made = dataset(Task("classification", 2), torch.tensor([0, 1]))
    told = dataclasses.replace(made, notes=("carved",), dropped={"a": "is damaged"})
    assert described(told)[-2:] == ["note: carved", "left out: a: is damaged"]
    kept = summary(told)
    assert kept["notes"] == ["carved"]
    assert kept["dropped"] == {"a": "is damaged"}
    assert kept["samples"] == {"train": 2, "test": 2}
