"""IEMOCAP in the MMIN layout: folds, statistics, cutting and padding, and what goes wrong with such
files.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tune_mm.core.types import Dataset
from tune_mm.data import base
from tune_mm.data.datasets.iemocap import FOLDS, Iemocap, IemocapConfig, Lengths


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A made data set; tests may change its files."""
    config = IemocapConfig()
    return base.make(config, tmp_path, Iemocap.options(config).changed(train=60, val=20, test=20))


def load(place: Path, **config: Any) -> Dataset:
    return Iemocap.load(IemocapConfig(**config), place)


def test_every_fold_holds_all_samples_once_in_other_places(place: Path) -> None:
    folds = [load(place, fold=k) for k in range(1, FOLDS + 1)]
    for data in folds:
        assert len({i for split in data.splits.values() for i in split.ids}) == 100
    tests = [frozenset(data.splits["test"].ids) for data in folds]
    assert len(set(tests)) == FOLDS


def test_a_sample_is_the_same_in_every_fold_but_for_the_statistics(place: Path) -> None:
    a, b = load(place, fold=1).splits["train"], load(place, fold=2).splits["train"]
    name = (set(a.ids) & set(b.ids)).pop()
    i, j = a.ids.index(name), b.ids.index(name)
    assert a.target[i] == b.target[j]
    assert torch.equal(a.inputs["text"].value[i], b.inputs["text"].value[j])
    assert not torch.equal(a.inputs["audio"].value[i], b.inputs["audio"].value[j])


def test_audio_is_z_scored_with_the_folds_statistics(place: Path) -> None:
    train = load(place).splits["train"].inputs["audio"]
    assert train.mask is not None
    steps = train.value[train.mask]
    assert steps.mean(dim=0).abs().max() < 1e-4
    assert (steps.std(dim=0, correction=0) - 1).abs().max() < 1e-4
    assert (train.value[~train.mask] == 0).all()


def test_values_come_back_as_written(place: Path) -> None:
    split = load(place).splits["val"]
    with h5py.File(place / "V/denseface.h5") as visual, h5py.File(place / "A/comparE.h5") as audio:
        with h5py.File(place / "A/comparE_mean_std.h5") as statistics:
            mean, std = statistics["1/mean"][()], statistics["1/std"][()]
        for i, name in enumerate(split.ids):
            steps = visual[name][()]
            assert np.array_equal(split.inputs["visual"].value[i, : len(steps)].numpy(), steps)
            steps = (audio[name][()] - mean) / std
            np.testing.assert_allclose(
                split.inputs["audio"].value[i, : len(steps)].numpy(), steps, atol=1e-5
            )


def test_a_deviation_of_zero_counts_as_one(place: Path) -> None:
    with h5py.File(place / "A/comparE_mean_std.h5", "r+") as file:
        file["1/std"][0] = 0
        mean = file["1/mean"][0]
    split = load(place).splits["val"]
    with h5py.File(place / "A/comparE.h5") as file:
        first = file[split.ids[0]][0, 0]
    assert split.inputs["audio"].value[0, 0, 0].item() == pytest.approx(first - mean, abs=1e-5)


def test_cutting_and_padding(place: Path) -> None:
    lengths = Lengths(text=5, audio=350, visual=16)
    longest = load(place, lengths=lengths)
    assert {m: s[0] for m, s in longest.spec.shapes.items()} == {
        "text": 5,
        "audio": 40,
        "visual": 16,
    }
    cap = load(place, lengths=lengths, pad="cap")
    assert cap.spec.shapes["audio"][0] == 350
    audio, padded = longest.splits["test"].inputs["audio"], cap.splits["test"].inputs["audio"]
    assert audio.mask is not None
    assert padded.mask is not None
    assert torch.equal(padded.value[:, :40], audio.value)
    assert torch.equal(padded.mask[:, :40], audio.mask)
    assert not padded.mask[:, 40:].any()
    assert (padded.value[:, 40:] == 0).all()


def test_classes_are_numbered_and_as_many_as_the_labels_have(place: Path) -> None:
    task = load(place).spec.task
    assert task.class_names == ("0", "1", "2", "3")
    labels = np.load(place / "target/1/trn_label.npy")
    assert load(place).splits["train"].target.tolist() == labels.argmax(axis=1).tolist()


def test_an_utterance_without_steps_is_one_step_of_zeros(place: Path) -> None:
    name = load(place).splits["train"].ids[3]
    with h5py.File(place / "V/denseface.h5", "r+") as file:
        del file[name]
        file.create_dataset(name, data=np.zeros((0, 32), np.float32))
    visual = load(place).splits["train"].inputs["visual"]
    assert visual.mask is not None
    assert visual.mask[3].sum() == 1
    assert visual.mask[3, 0]
    assert (visual.value[3] == 0).all()


def damage(place: Path, change: str) -> None:
    labels = np.load(place / "target/1/val_label.npy")
    with (
        h5py.File(place / "L/bert_large.h5", "r+") as text,
        h5py.File(place / "A/comparE_mean_std.h5", "r+") as audio,
    ):
        name = "Syn01_00000"
        match change:
            case "missing":
                del text[name], text["Syn02_00001"]
            case "width":
                del text[name]
                text.create_dataset(name, data=np.zeros((4, 3), np.float32))
            case "vector":
                del text[name]
                text.create_dataset(name, data=np.zeros(64, np.float32))
            case "nan":
                text[name][0, 0] = np.nan
            case "statistics":
                del audio["1"]
            case "statistics width":
                del audio["1/std"]
                audio.create_dataset("1/std", data=np.ones(5, np.float32))
            case "label":
                labels[2] = 0.5
            case "label shape":
                labels = labels.argmax(axis=1)
            case "label width":
                labels = np.eye(5)[labels.argmax(axis=1)]
            case "count":
                labels = labels[1:]
            case "pickle":
                labels = labels.astype(object)
    np.save(place / "target/1/val_label.npy", labels, allow_pickle=True)
    if change == "names":
        np.save(place / "target/1/val_int2name.npy", np.zeros((20, 1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "missing",
            r"L/bert_large\.h5: no utterance 'Syn01_00000'; 2 of the fold's 100 are missing",
        ),
        ("width", r"L/bert_large\.h5: 'Syn02_00001' must be \[T, 3\], got \[\d+, 64\]"),
        ("vector", r"L/bert_large\.h5: 'Syn01_00000' must be \[T, 64\], got \[64\]"),
        ("nan", r"L/bert_large\.h5: 'Syn01_00000' must be finite numbers"),
        ("statistics", r"A/comparE_mean_std\.h5: no mean and std of fold '1'; available: 10, 2, 3"),
        (
            "statistics width",
            r"A/comparE_mean_std\.h5: mean and std must be 32 finite numbers, got 32 and 5",
        ),
        (
            "label",
            r"target/1/val_label\.npy: each row must be one-hot, got \[0, 0, 0, 0\] in row 2",
        ),
        (
            "label shape",
            r"target/1/val_label\.npy: must be one-hot \[N, C\] with C >= 2, got int64 \[20\]",
        ),
        ("label width", r"target/1: labels must have one number of classes, got .*'val': 5"),
        ("count", r"target/1: val: all arrays must have as many samples, got labels 19, names 20"),
        ("pickle", r"target/1/val_label\.npy: is not a readable \.npy file without pickles"),
        ("names", r"target/1/val_int2name\.npy: must be names \[N, 1\], got float64 \[20, 1\]"),
    ],
)
def test_what_is_wrong_is_said(place: Path, change: str, message: str) -> None:
    damage(place, change)
    with pytest.raises(base.DataError, match=message):
        load(place)


@pytest.mark.parametrize("fold", [0, 11])
def test_folds_are_one_to_ten(fold: int) -> None:
    with pytest.raises(ValueError, match="fold"):
        IemocapConfig(fold=fold)


def test_a_fold_that_is_not_there_is_named(place: Path) -> None:
    for file in (place / "target/4").iterdir():
        file.unlink()
    with pytest.raises(base.DataError, match=r"incomplete in .*: no target/4/trn_label\.npy"):
        base.resolve(IemocapConfig(fold=4), place.parent)
