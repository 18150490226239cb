"""The real files at hand: sizes, shapes, disjoint splits, known figures."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import jaccard_score
from sklearn.preprocessing import StandardScaler

from tune_mm.config import load_config
from tune_mm.core.types import Dataset
from tune_mm.data import base


def load(name: str, root: Path) -> Dataset:
    section = load_config(name).data
    source = base.resolve(section, root, require_real=True)
    assert (source.kind, source.message) == ("real", "")
    return base.load(section, source)


def sizes(data: Dataset) -> list[int]:
    return [len(split) for split in data.splits.values()]


def test_mosi(data_root: Path) -> None:
    data = load("mosi", data_root)
    assert data.kind == "real"
    assert sizes(data) == [1447, 286, 466]
    assert dict(data.spec.shapes) == {"text": (8, 100), "audio": (8, 73), "visual": (8, 100)}
    assert data.notes == ()
    test = data.splits["test"]
    assert torch.bincount(test.target).tolist() == [183, 283]
    mask = test.inputs["text"].mask
    assert mask is not None
    assert mask[:, 0].all()
    # Zeros come after the utterances before it: a mask has no holes.
    assert (mask[:, 1:] <= mask[:, :-1]).all()
    videos = [{i.rpartition("_")[0] for i in split.ids} for split in data.splits.values()]
    assert [len(v) for v in videos] == [62, 12, 19]
    assert not videos[0] & videos[1] | videos[0] & videos[2] | videos[1] & videos[2]


def test_mosi_text_alone_is_as_good_as_known(data_root: Path) -> None:
    data = load("mosi", data_root)
    x = {s: split.inputs["text"].value[:, 0].numpy() for s, split in data.splits.items()}
    y = {s: split.target.numpy() for s, split in data.splits.items()}
    model = LogisticRegression(C=0.01, max_iter=500).fit(x["train"], y["train"])
    assert model.score(x["test"], y["test"]) == pytest.approx(0.757, abs=0.03)


def test_mosi_as_a_score(data_root: Path) -> None:
    section = load_config("mosi", ["data.task=regression"]).data
    data = base.load(section, base.resolve(section, data_root))
    assert set(data.splits["train"].target.tolist()) == {-1.0, 1.0}


def test_utd_mhad(data_root: Path) -> None:
    data = load("utd_mhad", data_root)
    assert data.name == "utd_mhad"
    assert sizes(data) == [431, 216, 214]
    assert dict(data.spec.shapes) == {"inertial": (64, 6), "skeleton": (32, 60), "depth": (8, 1200)}
    assert data.spec.task.outputs == 27
    train = data.splits["train"].inputs
    for x in train.values():
        assert x.mask is None
        assert x.value.mean(dim=(0, 1)).abs().max() < 1e-3
    # The first joint is the origin of all others.
    assert (train["skeleton"].value[:, :, :3] == 0).all()


def test_utd_mhad_carves_validation_by_subject_when_there_is_none(
    data_root: Path, tmp_path: Path
) -> None:
    place = tmp_path / "utd_mhad"
    place.mkdir()
    for split in ("train", "test"):
        (place / f"{split}.npz").symlink_to(data_root / "utd_mhad" / f"{split}.npz")
    section = load_config("utd_mhad", ["data.val_fraction=0.25"]).data
    data = base.load(section, base.resolve(section, tmp_path))
    subjects = np.load(place / "train.npz")["subject"]
    # Four subjects: one of them is the fourth that was asked for.
    assert len(data.splits["val"]) in {int((subjects == s).sum()) for s in np.unique(subjects)}
    assert sizes(data)[2] == 214


def test_utd_mhad_inertial_alone_is_as_good_as_known(data_root: Path) -> None:
    data = load("utd_mhad", data_root)
    x = {s: split.inputs["inertial"].value.flatten(1).numpy() for s, split in data.splits.items()}
    scaler = StandardScaler().fit(x["train"])
    model = LogisticRegression(C=0.01, max_iter=300).fit(
        scaler.transform(x["train"]), data.splits["train"].target
    )
    assert model.score(scaler.transform(x["test"]), data.splits["test"].target) > 0.6


def test_avdigits(data_root: Path, cache: Path) -> None:
    data = load("avdigits", data_root)
    assert data.name == "avdigits"
    assert sizes(data) == [1000, 250, 250]
    assert dict(data.spec.shapes) == {"audio": (1, 40, 51), "visual": (1, 1, 28, 28)}
    assert data.spec.task.class_names == tuple("0123456789")
    assert (data.notes, dict(data.dropped)) == ((), {})
    # <digit>_<speaker>_<number>
    speakers = [{i.split("_")[1] for i in split.ids} for split in data.splits.values()]
    assert [len(s) for s in speakers] == [4, 1, 1]
    assert not speakers[0] & speakers[1] | speakers[0] & speakers[2] | speakers[1] & speakers[2]
    for split in data.splits.values():
        assert [int(i[0]) for i in split.ids] == split.target.tolist()
    inputs = data.splits["train"].batch(torch.arange(1000)).inputs
    assert torch.isfinite(inputs["audio"].value).all()
    # Grey, (x - 0.5) / 0.5: from -1, where nothing is written, to 1.
    ends = inputs["visual"].value.min().item(), inputs["visual"].value.max().item()
    assert ends == pytest.approx((-1, 1), abs=1e-6)


def test_avdigits_pictures_alone_are_as_good_as_known(data_root: Path, cache: Path) -> None:
    data = load("avdigits", data_root)
    x, y = {}, {}
    for name in ("train", "test"):
        split = data.splits[name]
        batch = split.batch(torch.arange(len(split)))
        x[name], y[name] = batch.inputs["visual"].value.flatten(1).numpy(), batch.target.numpy()
    model = LogisticRegression(C=0.01, max_iter=300).fit(x["train"], y["train"])
    # A linear model on 1000 MNIST digits is known to get 0.85 to 0.9.
    assert model.score(x["test"], y["test"]) > 0.8


def test_ombria_pixels_are_as_good_as_known(data_root: Path, cache: Path) -> None:
    data = load("ombria", data_root)
    assert sizes(data) == [96, 32, 48]
    sides = (128, 128)
    assert dict(data.spec.shapes) == {
        m: (1 if m.startswith("s1") else 3, *sides) for m in data.spec.modalities
    }
    assert data.spec.task.class_names == ("dry", "flood")
    assert set(data.splits["train"].target.unique().tolist()) == {0, 1}
    x, y = {}, {}
    for name in ("train", "test"):
        batch = data.splits[name].batch(torch.arange(len(data.splits[name])))
        pixels = torch.cat([batch.inputs[m].value for m in data.spec.modalities], 1)
        x[name], y[name] = (
            pixels.movedim(1, -1).flatten(0, 2).numpy(),
            batch.target.flatten().numpy(),
        )
    few = np.random.default_rng(0).choice(len(x["train"]), 50_000, replace=False)
    model = LogisticRegression(max_iter=300).fit(x["train"][few], y["train"][few])
    # Linear models of one sensor's pair are known to get .388 and .613, of all four images up to
    # .684.
    assert jaccard_score(y["test"], model.predict(x["test"])) > 0.613
