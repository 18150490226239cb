"""AVE: lists parted by &, both spellings of the folders, videos in more than one row."""

from pathlib import Path

import pytest

from tests.data.clips import load, names, numbers, put, section
from tune_mm.data.base import DataError

pytestmark = pytest.mark.usefixtures("cache")

LISTS = {
    "trainSet.txt": ["Violin, fiddle&-a_1&good&0&10", "Bark&b&good&0&5", "Bark&c&good&2&10"],
    "valSet.txt": ["Bark&d&good&0&10", "Violin, fiddle&e&good&0&10"],
    "testSet.txt": ["Violin, fiddle&f&good&0&10", "Bark&g&good&0&10"],
}
IDS = ["-a_1", "b", "c", "d", "e", "f", "g"]


def add(path: Path, row: str) -> None:
    with path.open("a") as file:
        file.write(f"{row}\n")


def write(place: Path) -> None:
    for file, lines in LISTS.items():
        (place / file).write_text("\n".join(lines) + "\n")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    put(tmp_path / "Audios", tmp_path / "Image-01-FPS-SE", IDS)
    write(tmp_path)
    return tmp_path


@pytest.mark.parametrize("audio", ["Audios", "audio"])
@pytest.mark.parametrize("frames", ["Image-01-FPS-SE", "Image-01-FPS"])
def test_both_spellings(tmp_path: Path, audio: str, frames: str) -> None:
    put(tmp_path / audio, tmp_path / frames, IDS)
    write(tmp_path)
    data = load(section("ave"), tmp_path)
    assert [numbers(split) for split in data.splits.values()] == [
        {"-a_1": (0, 0), "b": (1, 1), "c": (2, 2)},
        {"d": (3, 3), "e": (4, 4)},
        {"f": (5, 5), "g": (6, 6)},
    ]
    assert data.spec.task.class_names == ("Bark", "Violin, fiddle")
    assert names(data)["train"] == ["Violin, fiddle", "Bark", "Bark"]
    assert data.notes == ()


def test_a_video_is_used_once_and_never_in_a_later_set(place: Path) -> None:
    add(place / "trainSet.txt", "Violin, fiddle&b&good&5&10")
    add(place / "valSet.txt", "Bark&c&good&0&2")
    add(place / "testSet.txt", "Bark&-a_1&good&0&10")
    add(place / "testSet.txt", "Bark&d&good&0&10")
    data = load(section("ave"), place)
    assert [split.ids for split in data.splits.values()] == [
        ("-a_1", "b", "c"),
        ("d", "e"),
        ("f", "g"),
    ]
    assert names(data)["train"] == ["Violin, fiddle", "Bark", "Bark"]
    assert dict(data.dropped) == {
        "b (trainSet.txt line 4)": "used as trainSet.txt line 2 says",
        "c (valSet.txt line 3)": "used as trainSet.txt line 3 says",
        "-a_1 (testSet.txt line 3)": "used as trainSet.txt line 1 says",
        "d (testSet.txt line 4)": "used as valSet.txt line 1 says",
    }
    assert data.notes[0].startswith("4 of 11 clips left out: 4 repeated (")


def test_a_line_of_headings_is_no_clip(place: Path) -> None:
    path = place / "trainSet.txt"
    path.write_text("Category&VideoID&Quality&StartTime&EndTime\n" + path.read_text())
    assert load(section("ave"), place).splits["train"].ids == ("-a_1", "b", "c")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "Barc&h&good&0&10",
            "valSet.txt line 3: no class 'Barc'; nearest 'Bark'; available: Bark, Violin, fiddle",
        ),
        (
            "Bark&h&good",
            "valSet.txt line 3: must be Category&VideoID&Quality&StartTime&EndTime, got 'Bark&h&good'",
        ),
    ],
)
def test_rows_that_are_wrong_are_named(place: Path, row: str, message: str) -> None:
    add(place / "valSet.txt", row)
    with pytest.raises(DataError, match=message):
        load(section("ave"), place)


def test_the_papers_spectrogram_is_the_default() -> None:
    plain = type(section("ave"))()
    assert (plain.audio.name, plain.audio.seconds, plain.visual.frames) == (
        "spectrogram_16k",
        10,
        3,
    )
