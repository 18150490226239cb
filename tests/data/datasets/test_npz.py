"""A user's own arrays: keys, shapes, masks, relative joints, statistics of train, a carved
validation split.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tune_mm.core.types import Dataset
from tune_mm.data import base
from tune_mm.data.datasets.npz import Npz, NpzConfig

SIZES = {"train": 24, "val": 9, "test": 6}
Arrays = dict[str, np.ndarray]


def arrays(**extra: Any) -> dict[str, Arrays]:
    """Sequences `pose` [N, 4, 6] and vectors `image` [N, 5] of three classes; `who` has six people."""
    rng = np.random.default_rng(0)
    out = {}
    for k, (split, n) in enumerate(SIZES.items()):
        out[split] = {
            "pose": rng.normal(3, 2, (n, 4, 6)),
            "image": rng.integers(0, 256, (n, 5), dtype=np.uint8),
            "label": np.arange(n) % 3,
            "who": 10 * k + np.arange(n) % 6,
            **{key: make(n) for key, make in extra.items()},
        }
    return out


def write(place: Path, splits: dict[str, Arrays]) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for split, own in splits.items():
        np.savez(place / f"{split}.npz", **own)  # type: ignore[arg-type]
    return place


def load(tmp_path: Path, splits: dict[str, Arrays], **config: Any) -> Dataset:
    config = {"modalities": ("pose", "image"), **config}
    settings = NpzConfig(**config)
    return base.load(settings, base.Source(write(tmp_path / "own", splits), "real"))


def test_sequences_and_vectors_in_the_order_that_is_named(tmp_path: Path) -> None:
    raw = arrays()
    data = load(tmp_path, raw, modalities=("image", "pose"), folder="mine")
    assert data.name == "mine"
    assert data.spec.modalities == ("image", "pose")
    assert data.spec.shapes == {"image": (5,), "pose": (4, 6)}
    assert (data.spec.task.kind, data.spec.task.outputs) == ("classification", 3)
    image = data.splits["val"].inputs["image"]
    assert image.mask is None
    assert torch.equal(image.value, torch.from_numpy(raw["val"]["image"]).float())


def test_without_names_every_other_array_is_a_modality(tmp_path: Path) -> None:
    raw = arrays(pose_length=lambda n: np.full(n, 3))
    assert load(tmp_path, raw, modalities=(), group="who").spec.modalities == ("pose", "image")


def test_values_instead_of_classes(tmp_path: Path) -> None:
    raw = arrays(score=lambda n: np.linspace(-1, 1, n).reshape(n, 1))
    data = load(tmp_path, raw, label="score", task="regression")
    assert (data.spec.task.kind, data.spec.task.outputs) == ("regression", 1)
    assert data.splits["test"].target.tolist() == pytest.approx([-1, -0.6, -0.2, 0.2, 0.6, 1])


def test_whole_floats_are_classes(tmp_path: Path) -> None:
    raw = arrays()
    raw["train"]["label"] = raw["train"]["label"].astype(np.float64)
    assert load(tmp_path, raw).splits["train"].target.dtype == torch.int64


@pytest.mark.parametrize("key", ["pose_mask", "pose_length"])
def test_masks_and_lengths_say_the_same(tmp_path: Path, key: str) -> None:
    def make(n: int) -> np.ndarray:
        lengths = 1 + np.arange(n) % 4
        return lengths if key == "pose_length" else np.arange(4)[None, :] < lengths[:, None]

    raw = arrays(**{key: make})
    # What stands in padded steps does not matter, not even NaN.
    raw["train"]["pose"][0, 2] = np.nan
    pose = load(tmp_path, raw, standardize="train").splits["train"].inputs["pose"]
    assert pose.mask is not None
    assert pose.mask.sum(dim=1).tolist() == [1 + i % 4 for i in range(24)]
    assert (pose.value[~pose.mask] == 0).all()
    steps = pose.value[pose.mask]
    assert steps.mean(dim=0).abs().max() < 1e-5


def test_a_mask_without_padding_is_dropped(tmp_path: Path) -> None:
    raw = arrays(pose_length=lambda n: np.full(n, 4))
    assert all(s.inputs["pose"].mask is None for s in load(tmp_path, raw).splits.values())


def test_statistics_are_those_of_train(tmp_path: Path) -> None:
    raw = arrays(flat=lambda n: np.full((n, 2), 0.1))
    data = load(tmp_path, raw, modalities=("pose", "image", "flat"), standardize="train")
    mean = raw["train"]["pose"].mean(axis=(0, 1))
    std = raw["train"]["pose"].std(axis=(0, 1))
    for split, own in raw.items():
        expected = (own["pose"] - mean) / std
        np.testing.assert_allclose(
            data.splits[split].inputs["pose"].value.numpy(), expected, atol=1e-5
        )
    assert data.splits["test"].inputs["flat"].value.abs().max() < 1e-6


def test_joints_relative_to_the_first_of_the_same_step(tmp_path: Path) -> None:
    raw = arrays()
    pose = load(tmp_path, raw, relative=("pose",)).splits["test"].inputs["pose"].value.numpy()
    expected = raw["test"]["pose"].copy()
    expected[:, :, 3:] -= expected[:, :, :3]
    expected[:, :, :3] = 0
    np.testing.assert_allclose(pose, expected, atol=1e-5)


def test_names_are_kept_and_may_not_be_shared(tmp_path: Path) -> None:
    raw = arrays(name=lambda n: np.array([f"{n}/{i}" for i in range(n)]))
    assert load(tmp_path, raw, id="name").splits["test"].ids[1] == "6/1"
    raw["test"]["name"][0] = "9/3"
    with pytest.raises(
        base.DataError, match="splits must not share samples, got '9/3' in val and test"
    ):
        load(tmp_path / "again", raw, id="name")


def without_val() -> dict[str, Arrays]:
    raw = arrays(number=lambda n: (100 * n + np.arange(n)).astype(str))
    return {s: raw[s] for s in ("train", "test")}


def test_a_validation_split_is_carved_out_of_train_and_said(tmp_path: Path) -> None:
    raw = without_val()
    data = load(tmp_path, raw, val_fraction=0.25, id="number")
    train, val, test = (data.splits[s] for s in ("train", "val", "test"))
    assert (len(train), len(val), len(test)) == (18, 6, 6)
    assert {*train.ids, *val.ids} == set(raw["train"]["number"])
    assert val.target.bincount().tolist() == [2, 2, 2]
    assert data.notes == ("no val.npz: 6 of 24 train samples held out (stratified, seed 0)",)
    for name, label in zip(val.ids, val.target.tolist(), strict=True):
        assert raw["train"]["label"][list(raw["train"]["number"]).index(name)] == label


def test_the_carved_split_follows_its_seed(tmp_path: Path) -> None:
    ids = [
        load(tmp_path / str(i), without_val(), id="number", split_seed=seed).splits["val"].ids
        for i, seed in enumerate((0, 0, 1))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_groups_stay_whole_when_carving(tmp_path: Path) -> None:
    raw = without_val()
    data = load(tmp_path, raw, group="who", id="number", val_fraction=0.3)
    who = dict(zip(raw["train"]["number"], raw["train"]["who"].tolist(), strict=True))
    train, val = ({who[i] for i in data.splits[s].ids} for s in ("train", "val"))
    assert val
    assert not train & val
    assert "whole 'who' groups" in data.notes[0]


def test_statistics_leave_the_carved_validation_out(tmp_path: Path) -> None:
    data = load(tmp_path, without_val(), standardize="train", val_fraction=0.3)
    assert data.splits["train"].inputs["pose"].value.mean(dim=(0, 1)).abs().max() < 1e-5
    assert data.splits["val"].inputs["pose"].value.mean(dim=(0, 1)).abs().max() > 1e-3


def test_groups_of_one_cannot_be_carved(tmp_path: Path) -> None:
    raw = without_val()
    raw["train"]["who"][:] = 1
    with pytest.raises(
        base.DataError,
        match=r"no val\.npz, and none can be carved out of train: groups must be at least 2",
    ):
        load(tmp_path, raw, group="who")


def change_features(raw: dict[str, Arrays], what: str) -> None:
    train = raw["train"]
    match what:
        case "count":
            train["image"] = train["image"][1:]
        case "shape":
            raw["test"]["pose"] = raw["test"]["pose"][:, :3]
        case "axes":
            train["pose"] = train["pose"][..., None]
        case "dtype":
            train["pose"] = train["pose"].astype(str)
        case "object":
            train["pose"] = train["pose"].astype(object)
        case "nan":
            train["pose"][5, 1, 2] = np.nan


def change_labels(raw: dict[str, Arrays], what: str) -> None:
    train = raw["train"]
    match what:
        case "class":
            raw["val"]["label"][4] = 3
        case "negative":
            train["label"][3] = -1
        case "half":
            train["label"] = train["label"] + 0.5
        case "one-hot":
            train["label"] = np.eye(3)[train["label"]]
        case "one":
            for own in raw.values():
                own["label"][:] = 0


def change_masks(raw: dict[str, Arrays], what: str) -> None:
    train = raw["train"]
    match what:
        case "empty":
            train["pose_mask"] = np.arange(24)[:, None] * np.ones((1, 4)) > 1
        case "length":
            train["pose_length"] = np.arange(24)
        case "mask shape":
            train["pose_mask"] = np.ones((24, 3), bool)
        case "mask value":
            train["pose_mask"] = np.full((24, 4), 2)
        case "mask of a vector":
            train["image_mask"] = np.ones((24, 5), bool)
        case "mask and length":
            train["pose_mask"], train["pose_length"] = np.ones((24, 4), bool), np.full(24, 4)


WRONG_SETTINGS: dict[str, dict[str, Any]] = {
    "key": {"modalities": ("poses", "image")},
    "label": {"label": "lable"},
    "relative": {"relative": ("image",)},
    "classes": {"classes": 2},
}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("key", "no 'poses'; nearest 'pose'; available: pose, image, label, who"),
        ("label", "no 'lable'; nearest 'label'"),
        ("relative", r"image: relative needs joints of x, y, z \[N, T, 3 J\], got \[24, 5\]"),
        ("count", "all arrays must have as many samples, got label 24, pose 24, image 23"),
        (
            "shape",
            r"'pose' must have one shape per sample in all splits, got train \[4, 6\], .*test \[3, 6\]",
        ),
        (
            "axes",
            r"train\.npz: pose: must be \[N, D\] or \[N, T, D\] with no empty axis, got \[24, 4, 6, 1\]",
        ),
        ("dtype", "pose: must hold numbers, got <U"),
        ("object", r"train\.npz: is not a readable \.npz file without pickles"),
        ("nan", "pose: must be finite, got 1 NaN or infinite, first in sample 5"),
        (
            "class",
            r"val classes must be between 0 and 2 \(as many as train holds; set `classes` .*\), got 3",
        ),
        ("classes", "train classes must be between 0 and 1, got 2"),
        ("negative", r"label: classes must be integers >= 0, got -1"),
        ("half", r"label: classes must be integers >= 0, got 0\.5, 1\.5, 2\.5"),
        ("one", "train must hold at least 2 classes, got 1"),
        ("one-hot", r"label: must be one number per sample, got float64 \[24, 3\]"),
        ("empty", "pose_mask: every sample must have a real step, 2 have none, first 0"),
        ("length", "pose_length: lengths must be between 1 and 4, got 0 to 23"),
        ("mask shape", r"pose_mask: must be \[24, 4\] like 'pose', got \[24, 3\]"),
        ("mask value", "pose_mask: must hold 0 and 1 only"),
        ("mask of a vector", "image_mask: 'image' is a vector"),
        ("mask and length", "pose_mask: there is 'pose_length' too"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, what: str, message: str) -> None:
    raw = arrays()
    for change in (change_features, change_labels, change_masks):
        change(raw, what)
    with pytest.raises(base.DataError, match=message):
        load(tmp_path, raw, **WRONG_SETTINGS.get(what, {}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modalities": ("a.b",)}, "must be a plain name"),
        ({"modalities": ("a_mask",)}, "must be a plain name"),
        ({"modalities": ("a", "a")}, "modalities must differ"),
        ({"modalities": ("a",), "relative": ("b",)}, "relative: no modality 'b'; available: a"),
        ({"folder": "../else"}, "folder"),
        ({"val_fraction": 1.0}, "val_fraction"),
        ({"classes": 1}, "classes"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NpzConfig(**values)


def test_the_stand_in_has_the_keys_that_the_configuration_names(cache: Path) -> None:
    config = NpzConfig(
        folder="mine",
        modalities=("a", "b", "c", "d"),
        label="y",
        group="who",
        id="name",
        relative=("d",),
        classes=27,
    )
    source = base.resolve(config)
    data = base.load(config, source)
    assert data.name == "mine"
    assert data.spec.modalities == ("a", "b", "c", "d")
    assert data.spec.task.outputs == 27
    assert {"a", "a_length", "y", "who", "name"} <= set(np.load(source.root / "train.npz").files)


def test_a_stand_in_of_values(cache: Path) -> None:
    config = NpzConfig(task="regression")
    data = base.load(config, base.resolve(config))
    assert data.splits["train"].target.dtype == torch.float32


def test_vectors_can_be_made(tmp_path: Path) -> None:
    config = NpzConfig(modalities=("a", "b"))
    options = Npz.options(config).changed(shapes={"a": (9,), "b": (4, 6)})
    source = base.Source(base.make(config, tmp_path, options), "synthetic")
    assert base.load(config, source).spec.shapes == {"a": (9,), "b": (4, 6)}
