"""Kinetics-Sounds: the tree of folders, class.txt, the optional lists."""

from pathlib import Path

import pytest

from tests.data.clips import load, names, numbers, put, section
from tune_mm.data.base import DataError

pytestmark = pytest.mark.usefixtures("cache")

CLIPS = {
    "train": {"playing_guitar": ["-p_1_000010_000020", "p2", "p3"], "bowling": ["b1", "b2", "b3"]},
    "test": {"playing_guitar": ["p4"], "bowling": ["b4"]},
}
EVERY = [clip for split in CLIPS.values() for ids in split.values() for clip in ids]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return build(tmp_path)


def build(place: Path, test: str = "val_img", spell: str = "_", frames: int = 3) -> Path:
    (place / "class.txt").write_text(" playing guitar , bowling\n")
    for split, classes in CLIPS.items():
        images = "train_img" if split == "train" else test
        for label, ids in classes.items():
            name = label.replace("_", spell)
            audio, pictures = (
                place / "audio" / split / name,
                place / "visual" / images / "Image-01-FPS" / name,
            )
            put(audio, pictures, ids, EVERY.index(ids[0]), frames)
    return place


@pytest.mark.parametrize(("test", "spell"), [("val_img", "_"), ("test_img", " ")])
def test_both_spellings(tmp_path: Path, test: str, spell: str) -> None:
    data = load(section("kinetics_sounds", val_fraction=0.3), build(tmp_path, test, spell))
    assert data.spec.task.class_names == ("playing_guitar", "bowling")
    assert numbers(data.splits["test"]) == {"p4": (6, 6), "b4": (7, 7)}
    assert names(data)["test"] == ["playing_guitar", "bowling"]
    joined = numbers(data.splits["train"]) | numbers(data.splits["val"])
    assert joined == {name: (k, k) for k, name in enumerate(EVERY[:6])}
    assert sorted(names(data)["val"]) == ["bowling", "playing_guitar"]


def test_a_missing_sound_does_not_shift_the_clips_after_it(place: Path) -> None:
    (place / "audio" / "train" / "playing_guitar" / "p2.wav").unlink()
    data = load(section("kinetics_sounds", val_fraction=0.4), place)
    joined = numbers(data.splits["train"]) | numbers(data.splits["val"])
    assert joined == {name: (k, k) for k, name in enumerate(EVERY[:6]) if name != "p2"}
    assert dict(data.dropped) == {"p2": "without audio"}


def test_short_clips_are_left_out(place: Path) -> None:
    (place / "visual" / "val_img" / "Image-01-FPS" / "bowling" / "b4" / "00001.png").unlink()
    data = load(section("kinetics_sounds", val_fraction=0.3), place)
    assert dict(data.dropped) == {"b4": "with fewer than 3 frames"}
    assert (
        len(load(section("kinetics_sounds", val_fraction=0.3, min_frames=2), place).splits["test"])
        == 2
    )


def lists(place: Path, train: str, test: str) -> None:
    (place / "my_train.txt").write_text(train)
    (place / "my_test.txt").write_text(test)


def test_lists_choose_the_clips_and_their_split(place: Path) -> None:
    # p4 lies in the folders of test, b1 in those of train; labels are names or indices.
    lists(
        place,
        "p4,10,0\np2,10,playing guitar\nb2,10,bowling\nb4,10,1\n",
        "b1,10,1\np3,10,playing_guitar\n",
    )
    data = load(section("kinetics_sounds", val_fraction=0.5), place)
    assert numbers(data.splits["test"]) == {"b1": (3, 3), "p3": (2, 2)}
    assert set(data.splits["train"].ids) | set(data.splits["val"].ids) == {"p4", "p2", "b2", "b4"}
    assert "2 clips in the folders are in neither my_train.txt nor my_test.txt" in data.notes


def test_listed_clips_that_are_not_there_are_left_out(place: Path) -> None:
    lists(place, "p2,10,0\np3,10,0\nb1,10,1\nb2,10,1\ngone,10,1\n", "p4,10,0\n")
    data = load(section("kinetics_sounds", val_fraction=0.5), place)
    assert dict(data.dropped) == {"gone": "without audio and frames"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("p2,10,bowlin", "my_test.txt line 1: no class 'bowlin'; nearest 'bowling'"),
        ("p2,10,2", r"my_test.txt line 1: label must be an index into class.txt \(0..1\), got 2"),
        (
            "p2,10,1",
            "my_test.txt line 1: label '1' is bowling, but 'p2' lies in the folder playing_guitar",
        ),
        ("p2,10", "my_test.txt line 1: must be clip,seconds,label, got 'p2,10'"),
        ("p3,10,0", "every clip must be listed once, got 'p3' in train and in test"),
    ],
)
def test_rows_that_are_wrong_are_named(place: Path, row: str, message: str) -> None:
    lists(place, "p3,10,0\nb1,10,1\n", f"{row}\n")
    with pytest.raises(DataError, match=message):
        load(section("kinetics_sounds"), place)


def test_one_list_alone_is_refused(place: Path) -> None:
    (place / "my_train.txt").write_text("p3,10,0\n")
    with pytest.raises(DataError, match=r"my_train.txt: needs my_test.txt beside it"):
        load(section("kinetics_sounds"), place)


def test_a_clip_in_folders_of_two_classes_is_refused(place: Path) -> None:
    put(
        place / "audio" / "test" / "bowling",
        place / "visual" / "val_img" / "Image-01-FPS" / "bowling",
        ["p2"],
        1,
        3,
    )
    with pytest.raises(
        DataError, match="every clip must be listed once, got 'p2' in train and in test"
    ):
        load(section("kinetics_sounds"), place)
    lists(place, "p3,10,0\nb1,10,1\n", "b2,10,1\n")
    with pytest.raises(
        DataError, match="clip 'p2' lies in folders of two classes: playing_guitar and bowling"
    ):
        load(section("kinetics_sounds"), place)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "playing guitars, bowling",
            r"class.txt \(folder .*\): no class 'playing_guitar'; nearest 'playing_guitars'",
        ),
        (
            "bowling",
            "class.txt: must hold 2 or more class names, each once, parted by commas; got bowling",
        ),
        (
            "bowling, playing guitar, bowling",
            "class.txt: must hold 2 or more class names, each once",
        ),
    ],
)
def test_class_names_must_be_those_of_the_folders(place: Path, text: str, message: str) -> None:
    (place / "class.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        load(section("kinetics_sounds"), place)


def test_a_class_without_clips_is_told(place: Path) -> None:
    (place / "class.txt").write_text("playing guitar, bowling, laughing")
    data = load(section("kinetics_sounds", val_fraction=0.3), place)
    assert data.spec.task.outputs == 3
    assert data.notes[-1] == "no clip in train of 1 classes: laughing"
