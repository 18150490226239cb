"""A folder of one's own clips: names of files and folders, headings, order of the labels, speakers."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from tests.data.clips import load, names, numbers, put, section
from tune_mm.config import load_config
from tune_mm.data import base
from tune_mm.data.base import DataError

pytestmark = pytest.mark.usefixtures("cache")

IDS = {"train": ["a1", "a2", "b1", "b2"], "val": ["c1", "c2"], "test": ["d1", "d2"]}
LABELS = ["10", "9"]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    put(tmp_path / "audio", tmp_path / "frames", [name for ids in IDS.values() for name in ids])
    for split, ids in IDS.items():
        relabel(tmp_path / f"{split}.csv", ids, LABELS)
    return tmp_path


def relabel(path: Path, ids: list[str], labels: list[str], first: str = "") -> None:
    path.write_text(first + "".join(f"{name},{labels[i % 2]}\n" for i, name in enumerate(ids)))


def test_integers_are_in_the_order_of_their_values(place: Path) -> None:
    data = load(section("av_folder"), place)
    assert data.spec.task.class_names == ("9", "10")
    assert data.splits["val"].target.tolist() == [1, 0]
    assert names(data)["val"] == ["10", "9"]


def test_other_names_are_in_alphabetical_order(place: Path) -> None:
    for split, ids in IDS.items():
        relabel(place / f"{split}.csv", ids, ["x10", "x9"])
    assert load(section("av_folder"), place).spec.task.class_names == ("x10", "x9")


@pytest.mark.parametrize("heading", ["id,label\n", "name, Class\n"])
def test_a_line_of_headings_is_no_clip(place: Path, heading: str) -> None:
    for split, ids in IDS.items():
        relabel(place / f"{split}.csv", ids, LABELS, heading)
    data = load(section("av_folder"), place)
    assert data.splits["train"].ids == tuple(IDS["train"])
    assert dict(data.dropped) == {}


def test_a_clip_whose_class_looks_like_a_heading_is_a_clip(place: Path) -> None:
    for split, ids in IDS.items():
        relabel(place / f"{split}.csv", ids, ["label", "other"])
    assert load(section("av_folder"), place).splits["train"].ids == tuple(IDS["train"])


def test_names_of_files_and_folders_can_be_chosen(place: Path) -> None:
    (place / "sound").mkdir()
    (place / "audio").rename(place / "sound" / "wav")
    (place / "frames").rename(place / "Image-01-FPS")
    for split in IDS:
        (place / f"{split}.csv").rename(place / f"my_{split}.txt")
    lists = {split: f"my_{split}.txt" for split in IDS}
    data = load(
        section("av_folder", audio_folder="sound/wav", frames_folder="Image-01-FPS", **lists), place
    )
    assert numbers(data.splits["test"]) == {"d1": (6, 6), "d2": (7, 7)}
    assert data.name == "av_folder"


@pytest.mark.parametrize("field", ["audio_folder", "train"])
@pytest.mark.parametrize("value", ["../up", "/abs", "a//b", ".."])
def test_names_stay_below_the_folder(field: str, value: str) -> None:
    with pytest.raises(ValidationError, match=field):
        section("av_folder", **{field: value})


def test_speakers_come_from_the_pattern(place: Path) -> None:
    (place / "val.csv").unlink()
    data = load(section("av_folder", speaker_pattern="^([a-z])", val_fraction=0.5), place)
    speakers = [{name[0] for name in data.splits[s].ids} for s in ("train", "val")]
    assert sorted(map(len, speakers)) == [1, 1]
    assert speakers[0] != speakers[1]


def test_an_id_without_a_speaker_is_named(place: Path) -> None:
    with pytest.raises(
        DataError, match=r"val.csv line 1: speaker_pattern '\^\(\[ab\]\)' finds none in 'c1'"
    ):
        load(section("av_folder", speaker_pattern="^([ab])"), place)


def test_a_stand_in_needs_no_speakers() -> None:
    config = section("av_folder", speaker_pattern="^(nobody)")
    assert base.load(config, base.resolve(config)).kind == "synthetic"


@pytest.mark.parametrize(
    ("pattern", "message"), [("(", "not a regular expression"), ("a", "must hold a group")]
)
def test_patterns_that_cannot_work_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section("av_folder", speaker_pattern=pattern)


def test_a_label_that_train_lacks_is_named(place: Path) -> None:
    (place / "test.csv").write_text("d1,9\nd2,100\n")
    with pytest.raises(
        DataError, match=r"test.csv line 2: no class '100'; nearest '10'; available: 9, 10"
    ):
        load(section("av_folder"), place)


def test_one_class_is_no_task(place: Path) -> None:
    (place / "train.csv").write_text("a1,9\na2,9\n")
    with pytest.raises(DataError, match=r"train.csv: must hold at least 2 classes, got 9"):
        load(section("av_folder"), place)


def test_fields_are_set_in_a_configuration() -> None:
    changes = [
        "data=av_folder",
        "data.audio=stft",
        "data.audio.rate=8000",
        "data.visual.size=28",
        "data.train=a.csv",
    ]
    data = load_config("iemocap", changes).data
    assert (data.audio.name, data.audio.rate, data.visual.size, data.train) == (
        "stft",
        8000,
        28,
        "a.csv",
    )
