"""CMU-MOSI: both layouts, the labels' conventions, audio's infinities, padding."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tune_mm.core.types import Dataset
from tune_mm.data import base
from tune_mm.data.datasets.mosi import Mosi, MosiConfig

SIZES = {"train": 6, "valid": 4, "test": 5}
Raw = dict[str, dict[str, Any]]


def mult() -> Raw:
    """The MulT layout: labels with 0 among them, and zero steps at the end of each sample."""
    rng = np.random.default_rng(0)
    raw: Raw = {}
    for split, n in SIZES.items():
        own: dict[str, Any] = {
            key: rng.normal(size=(n, 5, d)).astype(np.float16)
            for key, d in (("text", 7), ("audio", 3), ("vision", 4))
        }
        for x in own.values():
            x[0, 2:] = 0
        own["labels"] = np.array([-2.4, 0.0, 1.2, 3.0, -0.2, 0.4][:n], np.float32).reshape(n, 1, 1)
        own["id"] = np.array([[f"{split}{i}"] for i in range(n)])
        raw[split] = own
    return raw


def mmsa() -> Raw:
    """The MMSA layout of the same samples."""
    raw = mult()
    for split, own in raw.items():
        n = SIZES[split]
        own["regression_labels"] = own.pop("labels").reshape(n)
        own["id"] = [f"{split}$_${i}" for i in range(n)]
        own["raw_text"] = np.array(["what they said"] * n, dtype=object)
        own["annotations"] = ["Positive"] * n
        own["classification_labels"] = np.ones(n)
        tokens = np.zeros((n, 3, 5), np.int64)
        tokens[:, 0], tokens[:, 1] = 101, 1
        own["text_bert"] = tokens
    return raw


def load(tmp_path: Path, raw: Any, **config: Any) -> Dataset:
    (tmp_path / "mosi_data.pkl").write_bytes(pickle.dumps(raw))
    return Mosi.load(MosiConfig(**config), tmp_path)


def test_the_mult_layout(tmp_path: Path) -> None:
    raw = mult()
    data = load(tmp_path, raw)
    assert data.spec.shapes == {"text": (5, 7), "audio": (5, 3), "visual": (5, 4)}
    assert {s: len(x) for s, x in data.splits.items()} == {"train": 6, "val": 4, "test": 5}
    visual = data.splits["val"].inputs["visual"]
    assert visual.value.dtype == torch.float32
    assert np.array_equal(visual.value.numpy(), raw["valid"]["vision"].astype(np.float32))
    assert data.splits["val"].ids == ("valid0", "valid1", "valid2", "valid3")


def test_the_mmsa_layout_holds_the_same(tmp_path: Path) -> None:
    a, b = load(tmp_path, mult()), load(tmp_path, mmsa())
    assert a.spec == b.spec
    for split in a.splits:
        assert torch.equal(a.splits[split].target, b.splits[split].target)
        for m in a.spec.modalities:
            assert torch.equal(a.splits[split].inputs[m].value, b.splits[split].inputs[m].value)


@pytest.mark.parametrize(
    ("threshold", "expected"), [("positive", [0, 0, 1, 1]), ("nonnegative", [0, 1, 1, 1])]
)
def test_two_classes_by_either_convention(
    tmp_path: Path, threshold: str, expected: list[int]
) -> None:
    data = load(tmp_path, mult(), threshold=threshold)
    assert data.splits["val"].target.tolist() == expected
    assert data.spec.task.outputs == len(data.spec.task.class_names) == 2


def test_the_conventions_agree_without_zeros(tmp_path: Path) -> None:
    raw = mult()
    for own in raw.values():
        own["labels"] = np.where(own["labels"] > 0, 1.0, -1.0)
    a, b = (load(tmp_path, raw, threshold=t) for t in ("positive", "nonnegative"))
    assert torch.equal(a.splits["train"].target, b.splits["train"].target)


def test_regression_takes_the_score(tmp_path: Path) -> None:
    data = load(tmp_path, mult(), task="regression")
    assert data.spec.task.kind == "regression"
    assert data.spec.task.outputs == 1
    assert data.splits["val"].target.tolist() == pytest.approx([-2.4, 0.0, 1.2, 3.0])


def test_infinite_audio_becomes_zero_and_is_counted(tmp_path: Path) -> None:
    raw = mult()
    raw["train"]["audio"][1, 1, :] = -np.inf
    raw["train"]["audio"][2, 0, 0] = np.nan
    data = load(tmp_path, raw)
    audio = data.splits["train"].inputs["audio"]
    assert (audio.value[1, 1] == 0).all()
    assert audio.value[2, 0, 0] == 0
    assert data.notes == ("train: 4 NaN or infinite audio values set to 0",)


@pytest.mark.parametrize("key", ["text", "vision"])
def test_nan_elsewhere_is_an_error(tmp_path: Path, key: str) -> None:
    raw = mult()
    raw["test"][key][3, 0, 0] = np.nan
    with pytest.raises(
        base.DataError, match=rf"mosi_data\.pkl: test: {key}: must be finite, got 1 .* in sample 3"
    ):
        load(tmp_path, raw)


def test_zero_steps_are_padding_but_for_the_first(tmp_path: Path) -> None:
    raw = mult()
    raw["train"]["text"][1] = 0
    mask = load(tmp_path, raw).splits["train"].inputs["text"].mask
    assert mask is not None
    assert mask[:3].tolist() == [
        [True, True, False, False, False],
        [True] + [False] * 4,
        [True] * 5,
    ]
    assert all(
        x.mask is None for x in load(tmp_path, raw, padding="none").splits["train"].inputs.values()
    )


def test_no_mask_where_nothing_is_padding(tmp_path: Path) -> None:
    raw = mult()
    for own in raw.values():
        own["text"][0] = 1
    inputs = load(tmp_path, raw).splits["train"].inputs
    assert inputs["text"].mask is None
    assert inputs["audio"].mask is not None


def test_names_of_several_parts_are_joined(tmp_path: Path) -> None:
    raw = mult()
    for split, own in raw.items():
        own["id"] = np.array(
            [[f"{split}{i}".encode(), b"0.5", b"2.0"] for i in range(SIZES[split])], dtype=object
        )
    assert load(tmp_path, raw).splits["test"].ids[0] == "test0_0.5_2.0"


def test_text_bert_is_read_where_it_holds_features(tmp_path: Path) -> None:
    raw = mmsa()
    with pytest.raises(
        base.DataError, match=r"text_bert: holds token numbers .* not features; use text: text"
    ):
        load(tmp_path, raw, text="text_bert")
    for own in raw.values():
        own["text_bert"] = own["text"] * 2
    assert load(tmp_path, raw, text="text_bert").spec.shapes["text"] == (5, 7)


def broken(change: str) -> Any:
    raw: Any = mult()
    match change:
        case "list":
            return [raw]
        case "no split":
            raw["val"] = raw.pop("valid")
        case "no key":
            raw["train"]["visual"] = raw["train"].pop("vision")
        case "no labels":
            del raw["train"]["labels"]
        case "count":
            raw["train"]["labels"] = raw["train"]["labels"][:-1]
        case "shape":
            raw["test"]["audio"] = raw["test"]["audio"][:, :, :2]
        case "vector":
            raw["train"]["text"] = raw["train"]["text"][:, 0]
        case "text":
            raw["train"]["text"] = raw["train"]["text"].astype(str)
        case "nan label":
            raw["train"]["labels"][2] = np.nan
        case "split":
            raw["train"] = [1]
    return raw


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("list", "must hold a dict of splits, got list"),
        ("no split", "no 'valid'; nearest 'val'; available: train, test, val"),
        ("no key", "train: no 'vision'; .*available: text, audio, labels, id, visual"),
        ("no labels", "train: no 'labels'"),
        (
            "count",
            "train: all arrays must have as many samples, got text 6, audio 6, visual 6, labels 5",
        ),
        (
            "shape",
            r"'audio' must have one shape .* in all splits, got train \[5, 3\], val \[5, 3\], test \[5, 2\]",
        ),
        ("vector", r"train: text: must be \[N, T, D\] with no empty axis, got \[6, 7\]"),
        ("text", "train: text: must hold numbers, got <U"),
        ("nan label", "train: labels: must be finite, got 1 NaN or infinite, first in sample 2"),
        ("split", "train: must be a dict of arrays, got list"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(base.DataError, match=rf"mosi_data\.pkl.*{message}"):
        load(tmp_path, broken(change))


def test_shared_samples_are_refused(tmp_path: Path) -> None:
    raw = mult()
    raw["test"]["id"] = ["a", "train3", "b", "c", "d"]
    (tmp_path / "mosi_data.pkl").write_bytes(pickle.dumps(raw))
    with pytest.raises(
        base.DataError, match="splits must not share samples, got 'train3' in train and test"
    ):
        base.load(MosiConfig(), base.Source(tmp_path, "real"))
