"""CREMA-D: the community's lists and folders, and what is told of them."""

from pathlib import Path

import pytest

from tests.data.clips import load, names, numbers, put, section
from tune_mm.data import base
from tune_mm.data.base import DataError

pytestmark = pytest.mark.usefixtures("cache")

TRAIN = [
    f"10{actor:02d}_{words}_{label}_XX"
    for actor in range(1, 5)
    for words, label in (("DFA", "SAD"), ("IEO", "ANG"))
]
TEST = ["1001_TIE_NEU_XX", "1009_TIE_DIS_XX"]


def label(name: str) -> str:
    return name.split("_")[2]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "cremad"
    put(folder / "AudioWAV", folder / "Image-01-FPS", TRAIN + TEST)
    for split, ids in (("train", TRAIN), ("test", TEST)):
        (folder / f"{split}.csv").write_text("".join(f"{name},{label(name)}\n" for name in ids))
    return folder


@pytest.mark.parametrize(
    ("order", "expected"),
    [("dgl", "NEU HAP SAD FEA DIS ANG"), ("alphabetical", "ANG DIS FEA HAP NEU SAD")],
)
def test_labels_are_numbered_as_asked(place: Path, order: str, expected: str) -> None:
    data = load(section("cremad", label_order=order), place)
    assert data.name == "cremad"
    assert data.spec.task.class_names == tuple(expected.split())
    assert data.splits["test"].target.tolist() == [
        expected.split().index(name) for name in ("NEU", "DIS")
    ]
    assert names(data)["test"] == ["NEU", "DIS"]


def test_pairs_and_published_test(place: Path) -> None:
    data = load(section("cremad"), place)
    assert numbers(data.splits["test"]) == {name: (8 + i, 8 + i) for i, name in enumerate(TEST)}
    joined = numbers(data.splits["train"]) | numbers(data.splits["val"])
    assert joined == {name: (i, i) for i, name in enumerate(TRAIN)}


def test_validation_is_whole_actors(place: Path) -> None:
    data = load(section("cremad", val_fraction=0.25), place)
    actors = {s: {name[:4] for name in split.ids} for s, split in data.splits.items()}
    assert not actors["train"] & actors["val"]
    # One actor of four: two of eight clips.
    assert [len(s) for s in data.splits.values()] == [6, 2, 2]
    assert (
        data.notes[0]
        == "no published validation split: 2 of 8 train clips held out (whole speakers, seed 0)"
    )
    assert data.notes[1] == "no clip in train of 4 classes: NEU, HAP, FEA, DIS"


def test_speakers_of_test_in_train_are_counted(place: Path) -> None:
    (place / "val.csv").write_text(f"{TRAIN[-1]},ANG\n")
    (place / "train.csv").write_text("".join(f"{name},{label(name)}\n" for name in TRAIN[:-1]))
    notes = load(section("cremad"), place).notes
    assert notes[-1] == "1 of 2 speakers of test are in train too"


def test_a_val_list_is_used_as_it_is(place: Path) -> None:
    (place / "val.csv").write_text(f"{TRAIN[0]},SAD\n{TRAIN[1]},ANG\n")
    (place / "train.csv").write_text("".join(f"{name},{label(name)}\n" for name in TRAIN[2:]))
    data = load(section("cremad"), place)
    assert [split.ids for split in data.splits.values()] == [
        tuple(TRAIN[2:]),
        tuple(TRAIN[:2]),
        tuple(TEST),
    ]
    assert not any("held out" in note for note in data.notes)


def test_lists_with_a_byte_order_mark(place: Path) -> None:
    for path in place.glob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert len(load(section("cremad"), place).splits["test"]) == 2


def test_other_frame_rates_lie_in_their_own_folder(place: Path) -> None:
    (place / "Image-01-FPS").rename(place / "Image-03-FPS")
    assert len(load(section("cremad", fps=3), place).splits["test"]) == 2
    with pytest.raises(DataError, match="with audio and frames in AudioWAV, Image-01-FPS"):
        load(section("cremad"), place)


def test_an_unknown_label_is_named_with_its_line(place: Path) -> None:
    with (place / "train.csv").open("a") as file:
        file.write("1001_X_ANGR_XX,ANGR\n")
    message = (
        "train.csv line 9: no class 'ANGR'; nearest 'ANG'; available: NEU, HAP, SAD, FEA, DIS, ANG"
    )
    with pytest.raises(DataError, match=message):
        load(section("cremad"), place)


@pytest.mark.parametrize("name", ["CREMA-D", "CREMAD"])
def test_the_folder_goes_by_other_names_too(place: Path, name: str) -> None:
    place.rename(place.with_name(name))
    assert base.resolve(section("cremad"), place.parent) == base.Source(
        place.with_name(name), "real"
    )
