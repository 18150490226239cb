"""VGGSound: two trees, padded and plain starts, quoted labels, the split of the csv."""

from pathlib import Path

import pytest

from tests.data.clips import load, names, numbers, put, put_frames, put_wav, section
from tune_mm.data.base import DataError

pytestmark = pytest.mark.usefixtures("cache")

ROWS = [
    ("--0PQM4-hqg", 30, '"playing cello"', "train"),
    ("_a_b", 0, '"female speech, woman speaking"', "train"),
    ("c_12", 120, "playing cello", "train"),
    ("dd", 5, '"female speech, woman speaking"', "train"),
    ("e", 10, "playing cello", "test"),
    ("f", 7, '"female speech, woman speaking"', "test"),
]
IDS = ["--0PQM4-hqg_000030", "_a_b_000000", "c_12_000120", "dd_000005", "e_000010", "f_000007"]
DGL = ("audio/{0}-audios/{0}-set", "video/{0}-set-img/Image-01-FPS")
OGM = ("{0}-audios/{0}-set", "{0}-videos/{0}-set-img/Image-01-FPS")


def build(
    place: Path,
    tree: tuple[str, str] = DGL,
    padded: bool = True,
    end: str = ".mp4",
    frames: int = 3,
) -> Path:
    for k, (video, start, _, split) in enumerate(ROWS):
        audio, pictures = (place / part.format(split) for part in tree)
        name = f"{video}_{start:06d}" if padded else f"{video}_{start}"
        put_wav(audio / f"{name}.wav", k)
        put_frames(pictures / f"{name}{end}", k, [f"{i}.png" for i in range(frames)])
    (place / "vggsound.csv").write_text(
        "".join(f"{v},{s},{label},{split}\n" for v, s, label, split in ROWS)
    )
    return place


@pytest.mark.parametrize("tree", [DGL, OGM])
@pytest.mark.parametrize(("padded", "end"), [(True, ".mp4"), (False, "")])
def test_both_trees_and_spellings(
    tmp_path: Path, tree: tuple[str, str], padded: bool, end: str
) -> None:
    data = load(section("vggsound", val_fraction=0.5), build(tmp_path, tree, padded, end))
    assert len(data.splits["val"]) == 2
    assert numbers(data.splits["test"]) == {"e_000010": (4, 4), "f_000007": (5, 5)}
    joined = numbers(data.splits["train"]) | numbers(data.splits["val"])
    assert joined == {name: (k, k) for k, name in enumerate(IDS[:4])}
    assert data.spec.task.class_names == ("female speech, woman speaking", "playing cello")
    assert names(data)["test"] == ["playing cello", "female speech, woman speaking"]
    assert dict(data.dropped) == {}


def test_the_csv_decides_the_split_wherever_a_clip_lies(tmp_path: Path) -> None:
    place = build(tmp_path)
    audio, frames = (place / part.format("train") for part in DGL)
    put(audio, frames, ["moved_000001"], 9, 3)
    with (place / "vggsound.csv").open("a") as file:
        file.write("moved,1,playing cello,test\n")
    test = load(section("vggsound", val_fraction=0.5), place).splits["test"]
    assert numbers(test)["moved_000001"] == (9, 9)


def test_clips_that_are_gone_or_short_are_left_out(tmp_path: Path) -> None:
    place = build(tmp_path)
    with (place / "vggsound.csv").open("a") as file:
        file.write("gone,1,playing cello,test\n")
    (place / DGL[1].format("train") / "dd_000005.mp4" / "0.png").unlink()
    data = load(section("vggsound", val_fraction=0.4), place)
    why = {"dd_000005": "with fewer than 3 frames", "gone_000001": "without audio and frames"}
    assert dict(data.dropped) == why
    assert data.notes[0].startswith("2 of 7 clips left out: ")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x,ten,playing cello,train", "line 7: start must be a whole number of seconds, got 'ten'"),
        ("x,10,playing cello,val", "line 7: split must be train or test, got 'val'"),
        ("x,10,a, b,train", "line 7: must be youtube id,start second,label,split"),
        (
            "e,10,playing cello,train",
            "every clip must be listed once, got 'e_000010' in train and in test",
        ),
    ],
)
def test_rows_that_are_wrong_are_named(tmp_path: Path, row: str, message: str) -> None:
    place = build(tmp_path)
    with (place / "vggsound.csv").open("a") as file:
        file.write(f"{row}\n")
    with pytest.raises(DataError, match=message):
        load(section("vggsound"), place)
