"""A user's own images and masks: keys, void, scales, weights, changes of image and mask alike, a
carved validation.
"""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tune_mm.config import load_config
from tune_mm.core.types import VOID, Dataset, Padded
from tune_mm.data import base
from tune_mm.data.datasets import npz_segmentation
from tune_mm.data.datasets.npz_segmentation import NpzSegmentation, NpzSegmentationConfig
from tune_mm.data.images.geometry import Geometry

SIZES = {"train": 20, "val": 6, "test": 4}
SIDE = 16
Arrays = dict[str, np.ndarray]


def arrays() -> dict[str, Arrays]:
    """`radar` [N, H, W] uint8, `colour` [N, 3, H, W] float and masks of three classes (uint8)."""
    rng = np.random.default_rng(0)
    out: dict[str, Arrays] = {}
    for split, n in SIZES.items():
        out[split] = {
            "radar": rng.integers(0, 256, (n, SIDE, SIDE), dtype=np.uint8),
            "colour": rng.normal(3, 2, (n, 3, SIDE, SIDE)),
            "mask": rng.integers(0, 3, (n, SIDE, SIDE), dtype=np.uint8),
            "tile": np.array([f"{split}-{i}" for i in range(n)]),
        }
    return out


def load(tmp_path: Path, splits: dict[str, Arrays], **given: Any) -> Dataset:
    place = tmp_path / "own"
    place.mkdir(parents=True, exist_ok=True)
    for split, own in splits.items():
        np.savez(place / f"{split}.npz", **own)  # type: ignore[arg-type]
    settings = NpzSegmentationConfig(**{"modalities": ("radar", "colour"), "flip": False, **given})
    return base.load(settings, base.Source(place, "real"))


def test_images_and_masks_as_the_files_have_them(tmp_path: Path) -> None:
    raw = arrays()
    data = load(
        tmp_path, raw, modalities=("colour", "radar"), scale="none", folder="mine", id="tile"
    )
    assert data.name == "mine"
    assert dict(data.spec.shapes) == {"colour": (3, SIDE, SIDE), "radar": (1, SIDE, SIDE)}
    assert (data.spec.task.kind, data.spec.task.outputs) == ("segmentation", 3)
    for split, own in raw.items():
        batch = data.splits[split].batch(torch.arange(SIZES[split]))
        assert torch.equal(
            batch.inputs["radar"].value[:, 0], torch.from_numpy(own["radar"]).float()
        )
        assert torch.equal(batch.inputs["colour"].value, torch.from_numpy(own["colour"]).float())
        assert torch.equal(batch.target, torch.from_numpy(own["mask"]))
        assert list(data.splits[split].ids) == own["tile"].tolist()


def test_without_names_every_array_of_images_is_a_modality(tmp_path: Path) -> None:
    assert load(tmp_path, arrays(), modalities=()).spec.modalities == ("radar", "colour")


def test_unit_divides_integers_by_the_largest_of_their_type(tmp_path: Path) -> None:
    raw = arrays()
    inputs = load(tmp_path, raw, scale="unit").splits["val"].inputs
    assert inputs["radar"].value.numpy() == pytest.approx(raw["val"]["radar"][:, None] / 255)
    assert inputs["colour"].value.numpy() == pytest.approx(raw["val"]["colour"], rel=1e-6)


@pytest.mark.parametrize("block", [1, 7 * 3 * SIDE * SIDE, 2**21])
def test_channels_are_standardised_by_train_and_constant_ones_are_not_divided(
    tmp_path: Path, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sample at a time, seven (of 20, 6 and 4), all at once."""
    monkeypatch.setattr(npz_segmentation, "BLOCK", block)
    raw = arrays()
    for own in raw.values():
        own["colour"][:, 1] = 7
    splits = load(tmp_path, raw).splits
    train = raw["train"]["colour"].astype(np.float32).astype(np.float64)
    mean, std = train.mean((0, 2, 3), keepdims=True), train.std((0, 2, 3), keepdims=True)
    std[0, 1] = 1
    for split in SIZES:
        wanted = (raw[split]["colour"] - mean) / std
        assert splits[split].inputs["colour"].value.numpy() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f8", "u1"])
def test_values_are_those_of_the_file_however_it_has_them(tmp_path: Path, dtype: str) -> None:
    """float32 in the order of rows is taken as it is; other bytes, precisions and orders are
    converted.
    """
    raw = arrays()
    for own in raw.values():
        own["colour"] = np.asfortranarray(np.abs(own["colour"]).astype(dtype))
        own["radar"] = own["radar"].astype(dtype)
    for name, split in load(tmp_path, raw, scale="none").splits.items():
        np.testing.assert_array_equal(
            split.inputs["colour"].value, raw[name]["colour"].astype(np.float32)
        )
        np.testing.assert_array_equal(
            split.inputs["radar"].value[:, 0], raw[name]["radar"].astype(np.float32)
        )


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_scaling_by_train_needs_little_memory_beside_the_images(
    tmp_path: Path, dtype: type[np.generic], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The images once in float32, and what checks them for NaN: a byte per value of the largest
    array, and its inverse; of uint8 a byte for the file's own. In all less than twice the images.
    """
    monkeypatch.setattr(npz_segmentation, "BLOCK", 2**14)
    values = np.random.default_rng(0).integers(0, 256, (64, 4, 64, 64)).astype(dtype)
    mask = np.zeros((64, 64, 64), np.uint8)
    mask[:, :8] = 1
    for split, n in (("train", 64), ("val", 8), ("test", 8)):
        np.savez(tmp_path / f"{split}.npz", image=values[:n], mask=mask[:n])
    size = 4 * 80 * values[0].size
    tracemalloc.start()
    try:
        data = NpzSegmentation.load(NpzSegmentationConfig(), tmp_path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [len(split) for split in data.splits.values()] == [64, 8, 8]
    assert size < peak < 2 * size


def test_void_pixels_count_for_nothing(tmp_path: Path) -> None:
    raw = arrays()
    raw["train"]["mask"] = raw["train"]["mask"].astype(np.int16)
    raw["train"]["mask"][:, :2] = 300  # more than a uint8 holds
    data = load(tmp_path, raw, void=300)
    target = data.splits["train"].target
    assert target.dtype == torch.uint8
    assert (target[:, :2] == VOID).all()
    assert torch.equal(target[:, 2:].long(), torch.from_numpy(raw["train"]["mask"][:, 2:]).long())
    assert data.spec.task.outputs == 3


def test_weights_are_median_frequencies(tmp_path: Path) -> None:
    """Eigen & Fergus: median of the frequencies over the frequency, which is of the images that
    hold the class.
    """
    raw = arrays()
    mask = np.zeros((20, SIDE, SIDE), np.uint8)
    mask[:5, :8] = 1  # half of five images
    mask[5:7, :, :4] = 2  # a quarter of two
    raw["train"]["mask"] = mask
    pixels = SIDE * SIDE
    frequency = np.array([(20 - 2.5 - 0.5) / 20, 0.5, 0.25])
    assert mask.reshape(20, -1).sum() == (5 * pixels // 2) + 2 * (2 * pixels // 4)
    got = load(tmp_path, raw, weights="median").spec.task.weights
    assert got == pytest.approx(np.median(frequency) / frequency)


def test_frequencies_are_shares_of_all_pixels_unknown_ones_too(tmp_path: Path) -> None:
    """Of one image, 1/2 is 0, 1/4 is 1 and 1/4 void; of another, 1/2 is 0 and 1/2 is 2; all others
    are class 0.
    """
    raw = arrays()
    mask = np.zeros((20, SIDE, SIDE), np.uint8)
    mask[0, :8, :8], mask[0, :8, 8:] = 1, 255
    mask[1, :8] = 2
    raw["train"]["mask"] = mask
    frequency = np.array([(18 + 0.5 + 0.5) / 20, 0.25, 0.5])
    got = load(tmp_path, raw, weights="median", void=255).spec.task.weights
    assert got == pytest.approx(0.5 / frequency)


def test_the_task_has_names_weights_regions(tmp_path: Path) -> None:
    given = {
        "class_names": ("dry", "wet", "ice"),
        "weights": (0.2, 0.3, 0.5),
        "dice": 0.5,
        "regions": {"any": (1, 2)},
    }
    task = load(tmp_path, arrays(), **given).spec.task
    assert (task.class_names, task.weights, task.dice) == (
        ("dry", "wet", "ice"),
        (0.2, 0.3, 0.5),
        0.5,
    )
    assert tuple(task.regions) == (("any", (1, 2)),)


def test_without_val_a_part_of_train_is_held_out_stratified_by_main_class(tmp_path: Path) -> None:
    raw = arrays()
    del raw["val"]
    mask = np.zeros((20, SIDE, SIDE), np.uint8)
    mask[:10, :4], mask[10:, :4] = 1, 2
    raw["train"]["mask"] = mask
    data = load(tmp_path, raw, val_fraction=0.2, id="tile")
    held = data.splits["val"]
    assert sorted(int(m.max()) for m in held.target) == [1, 1, 2, 2]
    assert not set(held.ids) & set(data.splits["train"].ids)
    assert len(data.splits["train"]) == 16
    assert "4 of 20 train samples held out" in data.notes[0]
    assert load(tmp_path, raw, val_fraction=0.2, id="tile").splits["val"].ids == held.ids


def test_changes_are_the_same_for_all_images_and_the_mask() -> None:
    """Images whose values are the mask's stay equal to it; 64 draws hold every flip and turn, and
    differ in place.
    """
    torch.manual_seed(0)
    mask = torch.randint(0, 3, (64, 12, 12))
    inputs = {
        "a": Padded(mask[:, None].float()),
        "b": Padded(torch.stack([mask, mask + 1], 1).float()),
    }
    out, target = Geometry(8, flip=True, turn=True)(inputs, mask, torch.Generator().manual_seed(1))
    assert target.shape == (64, 8, 8)
    assert torch.equal(out["a"].value[:, 0], target.float())
    assert torch.equal(out["b"].value, torch.stack([target, target + 1], 1).float())
    seen = set()
    for image, own in zip(mask, target, strict=True):
        for top, left in ((t, s) for t in range(5) for s in range(5)):
            cut = image[top : top + 8, left : left + 8]
            seen |= {
                (flip, turns, top, left)
                for flip in (False, True)
                for turns in range(4)
                if torch.equal(torch.rot90(cut.flip(-1) if flip else cut, turns, (-2, -1)), own)
            }
    assert {(f, t) for f, t, _, _ in seen} == {(f, t) for f in (False, True) for t in range(4)}
    assert {t for _, _, t, _ in seen} == {s for _, _, _, s in seen} == set(range(5))


def test_evaluation_cuts_the_middle_and_changes_nothing_else(tmp_path: Path) -> None:
    raw = arrays()
    data = load(tmp_path, raw, crop=8, flip=True, turn=True, scale="none")
    assert data.spec.shapes["radar"] == (1, 8, 8)
    change = NpzSegmentation.transforms(NpzSegmentationConfig(crop=8, flip=True, turn=True))["val"]
    batch = data.splits["val"].batch(torch.arange(6))
    inputs, target = change(batch.inputs, batch.target, None)
    assert torch.equal(target, torch.from_numpy(raw["val"]["mask"][:, 4:12, 4:12]))
    assert torch.equal(
        inputs["radar"].value[:, 0], torch.from_numpy(raw["val"]["radar"][:, 4:12, 4:12]).float()
    )


WRONG_SETTINGS: dict[str, dict[str, Any]] = {
    "key": {"modalities": ("radio", "colour")},
    "classes": {"classes": 2},
    "region": {"regions": {"all": (1, 3)}},
    "negative region": {"regions": {"all": (-1, 1)}},
    "no region": {"regions": {"all": ()}},
    "names": {"class_names": ("dry", "wet")},
    "crop": {"crop": 17},
    "id": {"id": "tiles"},
}


def spoil(raw: dict[str, Arrays], what: str) -> None:
    train, val = raw["train"], raw["val"]
    match what:
        case "size":
            train["radar"] = train["radar"][:, :12]
        case "splits":
            val["radar"], val["colour"], val["mask"] = (
                val[k][..., :12, :12] for k in ("radar", "colour", "mask")
            )
        case "count":
            train["radar"] = train["radar"][:19]
        case "axes":
            train["mask"] = train["mask"][:, None]
        case "float mask":
            train["mask"] = train["mask"].astype(np.float32)
        case "negative":
            train["mask"] = train["mask"].astype(np.int16)
            train["mask"][0, 0, 0] = -1
        case "class":
            val["mask"][0, 0, 0] = 4
        case "nan":
            train["colour"][5, 0, 0, 0] = np.nan
        case "text":
            train["radar"] = train["radar"].astype(str)
        case "one":
            for own in raw.values():
                own["mask"][:] = 0


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("key", "no 'radio'; nearest 'radar'; available: radar, colour, mask, tile"),
        ("id", "no 'tiles'; nearest 'tile'"),
        ("size", r"train\.npz: radar and mask must have one size, got \[12, 16\] and \[16, 16\]"),
        (
            "splits",
            r"'radar' must have one shape per sample in all splits, got train \[1, 16, 16\], val \[1, 12, 12\]",
        ),
        ("count", "all arrays must have as many samples, got mask 20, radar 19, colour 20"),
        ("axes", r"train\.npz: mask: must be integers \[N, H, W\], got uint8 \[20, 1, 16, 16\]"),
        ("float mask", r"mask: must be integers \[N, H, W\], got float32"),
        ("negative", "mask: classes must be between 0 and 254, got -1 to 2; `void` names"),
        (
            "class",
            r"val classes must be between 0 and 2 \(as many as train holds; set `classes` .*\), got 4",
        ),
        ("classes", "train classes must be between 0 and 1, got 2"),
        ("nan", "colour: must be finite, got 1 NaN or infinite, first in sample 5"),
        (
            "text",
            r"radar: must be numbers \[N, C, H, W\] or \[N, H, W\] with no empty axis, got <U",
        ),
        ("one", "train must hold at least 2 classes, got 1"),
        ("region", r"regions\.all must be classes between 0 and 2, got 1, 3"),
        ("negative region", r"regions\.all must be classes between 0 and 2, got -1, 1"),
        ("no region", r"regions\.all must be classes between 0 and 2, got none"),
        ("names", "class_names must have one entry for each of the 3 classes, got 2"),
        ("crop", "crop must be at most 16, the images' shorter side, got 17"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, what: str, message: str) -> None:
    raw = arrays()
    spoil(raw, what)
    with pytest.raises(base.DataError, match=message):
        load(tmp_path, raw, **WRONG_SETTINGS.get(what, {}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modalities": ("a", "a")}, "modalities must differ"),
        ({"modalities": ("a.b",)}, "must be a plain name"),
        ({"classes": 1}, "classes"),
        ({"classes": VOID}, "classes"),
        (
            {"classes": 3, "weights": (1.0, 2.0)},
            "weights must have one entry for each of the 3 classes, got 2",
        ),
        ({"crop": 4}, "crop"),
        ({"scale": "unitary"}, "scale"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        NpzSegmentationConfig(**values)


def test_images_that_are_not_square_cannot_be_turned(tmp_path: Path) -> None:
    raw = arrays()
    for own in raw.values():
        own["radar"], own["colour"], own["mask"] = (
            own["radar"][:, :12],
            own["colour"][:, :, :12],
            own["mask"][:, :12],
        )
    with pytest.raises(
        base.DataError, match="turn must be false for images that are not square, got 12 x 16"
    ):
        load(tmp_path, raw, turn=True)
    assert load(tmp_path, raw, turn=True, crop=8).spec.shapes["radar"] == (1, 8, 8)


def test_the_stand_in_has_the_keys_that_the_configuration_names(cache: Path) -> None:
    section = load_config("ombria").data
    data = base.load(section, base.resolve(section))
    assert data.kind == "synthetic"
    assert data.spec.modalities == ("s1_before", "s1_after", "s2_before", "s2_after")
    assert (data.spec.task.outputs, data.spec.task.class_names) == (2, ("dry", "flood"))
