"""What data sets of clips share: pairing, what is left out, validation, damaged files, lists."""

from pathlib import Path

import numpy as np
import pytest

from tests.data.clips import load, names, numbers, put, put_frames, put_wav, section
from tune_mm import plugins
from tune_mm.data import base
from tune_mm.data.base import DataError
from tune_mm.data.splits.listing import images, rows
from tune_mm.data.synthetic.clips import RATE, clips, frame, sound
from tune_mm.data.synthetic.vectors import SyntheticOptions

pytestmark = pytest.mark.usefixtures("cache")

IDS = {"train": [f"t{i}" for i in range(8)], "val": ["v0", "v1", "v2"], "test": ["e0", "e1", "e2"]}
EVERY = [name for own in IDS.values() for name in own]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of one's own: 8 / 3 / 3 clips of classes a and b; clip k of all is number k."""
    folder = tmp_path / "data" / "av_folder"
    put(folder / "audio", folder / "frames", EVERY)
    for split, ids in IDS.items():
        write(folder / f"{split}.csv", ids)
    return folder


def write(path: Path, ids: list[str]) -> None:
    path.write_text("".join(f"{name},{'ab'[i % 2]}\n" for i, name in enumerate(ids)))


def expected(ids: list[str]) -> dict[str, tuple[int, int]]:
    return {name: (EVERY.index(name), EVERY.index(name)) for name in ids}


def test_sounds_and_frames_are_those_of_the_clip(place: Path) -> None:
    data = load(section("av_folder"), place)
    for split, ids in IDS.items():
        assert numbers(data.splits[split]) == expected(ids)
    assert data.spec.task.class_names == ("a", "b")
    assert names(data)["test"] == ["a", "b", "a"]
    assert (data.notes, dict(data.dropped)) == ((), {})


def test_what_is_missing_never_shifts_the_pairs(place: Path) -> None:
    (place / "audio" / "t3.wav").unlink()
    for path in (place / "frames" / "t5").iterdir():
        path.unlink()
    (place / "frames" / "e1" / "00000.png").rename(place / "frames" / "e1" / ".00000.png")
    (place / "audio" / "e1.wav").unlink()
    data = load(section("av_folder"), place)
    assert numbers(data.splits["train"]) == expected(["t0", "t1", "t2", "t4", "t6", "t7"])
    assert names(data)["train"] == ["a", "b", "a", "a", "a", "b"]
    assert numbers(data.splits["test"]) == expected(["e0", "e2"])
    why = {"t3": "without audio", "t5": "without frames", "e1": "without audio and frames"}
    assert dict(data.dropped) == why
    left = "3 of 14 clips left out: 1 without audio, 1 without frames, 1 without audio and frames"
    assert data.notes == (f"{left} (python -m tune_mm.data describe lists them)",)


def test_files_that_no_list_names_are_not_read(place: Path) -> None:
    (place / "audio" / "other.wav").write_bytes(b"no sound")
    assert sum(len(s) for s in load(section("av_folder"), place).splits.values()) == len(EVERY)


def test_clips_of_too_few_frames_are_left_out(place: Path) -> None:
    for name in EVERY:
        if name != "t1":
            put_frames(place / "frames" / name, EVERY.index(name), ["00001.png"])
    data = load(section("av_folder", min_frames=2), place)
    assert dict(data.dropped) == {"t1": "with fewer than 2 frames"}
    assert "1 of 14 clips left out: 1 with fewer than 2 frames" in data.notes[0]


def test_a_split_without_clips_names_the_folders(place: Path) -> None:
    for name in IDS["test"]:
        (place / "audio" / f"{name}.wav").unlink()
    with pytest.raises(
        DataError, match="av_folder: test has no clip with audio and frames in audio, frames"
    ):
        load(section("av_folder"), place)


def damage(place: Path) -> None:
    (place / "audio" / "t2.wav").write_bytes(b"no sound at all")
    (place / "frames" / "v1" / "00000.png").write_bytes(b"no picture")


def test_unreadable_clips_are_an_error_that_says_what_to_do(place: Path) -> None:
    damage(place)
    with pytest.raises(DataError) as error:
        load(section("av_folder"), place)
    text = str(error.value)
    assert f"{place}: 2 of 14 clips cannot be read: {place / 'audio' / 't2.wav'}: " in text
    assert f"{place / 'frames' / 'v1' / '00000.png'}: is not a readable image" in text
    assert text.endswith("; data.skip_bad=true (--skip-bad) leaves them out")


def test_only_the_first_of_many_reasons_are_given(place: Path) -> None:
    for name in IDS["train"][:5]:
        (place / "audio" / f"{name}.wav").write_bytes(b"no sound at all")
    with pytest.raises(DataError, match=r"t2\.wav: [^;]* and 2 more; data\.skip_bad=true") as error:
        load(section("av_folder"), place)
    assert "t3.wav" not in str(error.value)


def test_unreadable_clips_can_be_left_out(place: Path) -> None:
    damage(place)
    data = load(section("av_folder", skip_bad=True), place)
    assert numbers(data.splits["train"]) == expected([n for n in IDS["train"] if n != "t2"])
    assert numbers(data.splits["val"]) == expected(["v0", "v2"])
    assert list(data.dropped) == ["t2", "v1"]
    assert "t2.wav" in data.dropped["t2"]
    assert data.notes == ("2 of 14 clips cannot be read and are left out (skip_bad)",)
    damage_all = [place / "audio" / f"{name}.wav" for name in IDS["val"]]
    for path in damage_all:
        path.write_bytes(b"no sound at all")
    with pytest.raises(DataError, match="val has no clip that can be read"):
        load(section("av_folder", skip_bad=True), place)


@pytest.mark.parametrize(
    ("split", "message"), [("test", "'t0' in train and in test"), ("train", "'t0' twice in train")]
)
def test_a_clip_listed_twice_is_refused(place: Path, split: str, message: str) -> None:
    with (place / f"{split}.csv").open("a") as file:
        file.write("t0,a\n")
    with pytest.raises(DataError, match=f"every clip must be listed once, got {message}"):
        load(section("av_folder"), place)


def without_val(place: Path) -> None:
    """The clips of val join train."""
    (place / "val.csv").unlink()
    write(place / "train.csv", IDS["train"] + IDS["val"])


# The first letter of the id.
SPEAKER = "^([a-z])"


def test_validation_is_carved_by_label_where_no_speaker_is_known(place: Path) -> None:
    without_val(place)
    data = load(section("av_folder", val_fraction=0.4), place)
    assert [len(s) for s in data.splits.values()] == [7, 4, 3]
    assert sorted(names(data)["val"]) == ["a", "a", "b", "b"]
    assert set(data.splits["train"].ids) | set(data.splits["val"].ids) == set(
        IDS["train"] + IDS["val"]
    )
    note = (
        "no published validation split: 4 of 11 train clips held out (stratified by label, seed 0)"
    )
    assert data.notes == (note,)
    other = load(section("av_folder", val_fraction=0.4, split_seed=1), place)
    assert other.splits["val"].ids != data.splits["val"].ids


def test_validation_is_carved_by_speaker(place: Path) -> None:
    without_val(place)
    data = load(section("av_folder", val_fraction=0.3, speaker_pattern=SPEAKER), place)
    # 3 of 11 clips are nearest to 0.3: the three of the speaker v.
    assert set(data.splits["val"].ids) == set(IDS["val"])
    assert data.notes == (
        "no published validation split: 3 of 11 train clips held out (whole speakers, seed 0)",
    )
    by_label = load(
        section("av_folder", val_fraction=0.3, speaker_pattern=SPEAKER, val_by="label"), place
    )
    assert "stratified by label" in by_label.notes[0]


def test_one_speaker_alone_is_no_group(place: Path) -> None:
    (place / "val.csv").unlink()
    assert (
        "stratified"
        in load(section("av_folder", speaker_pattern=SPEAKER, val_fraction=0.3), place).notes[0]
    )
    with pytest.raises(
        DataError, match="none can be carved out of train: groups must be at least 2, got 1"
    ):
        load(section("av_folder", speaker_pattern=SPEAKER, val_by="speaker"), place)


def test_carving_by_speaker_needs_speakers(place: Path) -> None:
    without_val(place)
    with pytest.raises(
        DataError, match="val_by 'speaker' needs the speaker of every clip; use val_by 'label'"
    ):
        load(section("av_folder", val_by="speaker"), place)


def test_speakers_of_test_that_train_has_are_told(place: Path) -> None:
    (place / "test.csv").write_text("e0,a\ne1,b\n")
    (place / "train.csv").write_text("t0,a\nt1,b\ne2,a\n")
    data = load(section("av_folder", speaker_pattern=SPEAKER), place)
    assert data.notes == ("1 of 1 speakers of test are in train too",)


def test_lists_alone_are_not_enough(place: Path) -> None:
    config = section("av_folder")
    plugin = base.plugin_of(config)
    assert plugin.present(config, place)
    assert not plugin.present(config, place.parent)
    (place / "frames").rename(place / "pictures")
    with pytest.raises(DataError, match=r"av_folder: incomplete in .*av_folder: no folder frames$"):
        base.resolve(config, place.parent)


def test_lists_are_read_as_people_write_them(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(b'\xef\xbb\xbfx, a\r\n\r\n  y , "b, c"\r\n , \r\n-z_1,d')
    found = rows(path, ("id", "label"))
    assert [row.fields for row in found] == [("x", "a"), ("y", "b, c"), ("-z_1", "d")]
    assert [row.where for row in found] == [f"{path} line {n}" for n in (1, 3, 5)]


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"x,a\ny\n", "line 2: must be id,label, got 'y'"),
        (b"x,a,b\n", "line 1: must be id,label, got 'x,a,b'"),
        (b"x,a\n\ny,\n", "line 3: must be id,label, got 'y,'"),
        (b'x,a\ny,"b\n', "line 2: is not a readable row"),
        (b"x,\xff\n", ": must be UTF-8 text, got another byte at 2"),
    ],
)
def test_malformed_lists_are_named_with_the_line(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "list.csv"
    path.write_bytes(raw)
    with pytest.raises(DataError, match=message) as error:
        rows(path, ("id", "label"))
    assert str(error.value).startswith(str(path))


def test_frames_are_in_natural_order(tmp_path: Path) -> None:
    shown = ["frame_2.png", "frame_10.jpg", "frame_11.JPEG", "z1a.PNG"]
    for name in [*reversed(shown), ".frame_1.png", "._frame_2.png", "frame_3.txt", "Thumbs.db"]:
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in images(tmp_path)] == shown
    assert images(tmp_path / "nowhere") == ()


def test_frames_reach_the_batch_in_natural_order(place: Path) -> None:
    # Evaluation takes all three of three frames; by name alone, 10 would come before 2.
    for number, grey in ((1, 5), (2, 15), (10, 25)):
        put_frames(place / "frames" / "e0", grey, [f"f{number}.png"])
    (place / "frames" / "e0" / "00000.png").unlink()
    test = load(section("av_folder", visual={"frames": 3}), place).splits["test"]
    value = test.batch(test.target.new_tensor([0])).inputs["visual"].value
    assert (value[0, :, 0, 0, 0] * 255).round().tolist() == [50, 150, 250]


def test_tones_have_the_amplitudes_of_the_values() -> None:
    values = np.array([-1.0, 2.0, 0.5, 0.0, -2.0, 1.0, 1.5, -0.5], dtype=np.float32)
    wave = sound(values, np.random.default_rng(0)).astype(float)
    assert 0.4 * RATE <= len(wave) <= RATE
    assert abs(wave).max() == round(0.9 * 32_767)
    # Least squares on sine and cosine of each frequency: amplitudes in the ratio exp((x_i - x_j) /
    # 2).
    angles = 2 * np.pi * np.geomspace(250, 3_400, 8)[:, None] * np.arange(len(wave)) / RATE
    basis = np.concatenate((np.sin(angles), np.cos(angles))).T
    sines, cosines = np.linalg.lstsq(basis, wave, rcond=None)[0].reshape(2, 8)
    found = 2 * np.log(np.hypot(sines, cosines))
    assert found - found[0] == pytest.approx(values - values[0], abs=0.05)


def test_pictures_have_the_colors_of_the_values() -> None:
    # The mean of a cosine of order 0 is 1, that of order 1 is 0 at the middle row: 128 + 110 tanh(x
    # / 3) there.
    values = np.array([1.0, -2.0, 0.5, 0.0, 0.0, 3.0], dtype=np.float32)
    image = frame(values, np.random.default_rng(0)).astype(float)
    middle = image[19:21].mean(axis=(0, 1))
    assert middle == pytest.approx(128 + 110 * np.tanh(np.array([1.0, -2.0, 0.5]) / 3), abs=2)
    ends = image[0, :, 2].mean(), image[-1, :, 2].mean()
    assert ends == pytest.approx(
        (128 + 110 * np.tanh(3.5 / 3), 128 + 110 * np.tanh(-2.5 / 3)), abs=3
    )
    mirrored = image.mean(axis=1)
    assert np.abs(image - mirrored[:, None]).mean() < 5


def test_frame_counts_of_synthetic_clips() -> None:
    options = SyntheticOptions({"audio": (3,), "visual": (4,)}, "visual", 20, 10, 10)
    made = list(clips(options, least_frames=3))
    assert [clip.number for clip in made] == list(range(40))
    assert [clip.split for clip in made] == ["train"] * 20 + ["val"] * 10 + ["test"] * 10
    assert {len(clip.frames) for clip in made} == {3, 4, 5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"shapes": {"audio": (4, 8), "visual": (8,)}},
            r"cremad: shape of 'audio' must be D, got \(4, 8\)",
        ),
        ({"shapes": {"audio": (8,)}}, "shapes must be audio=D and visual=D for clips"),
        ({"classes": 7}, "classes must be <= 6"),
    ],
)
def test_synthetic_options_that_clips_cannot_have(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    config = section("cremad")
    plugin = plugins.load("data", "cremad")
    with pytest.raises(DataError, match=message):
        base.make(config, tmp_path, plugin.options(config).changed(**changes))
    assert not (tmp_path / "cremad").exists()


def test_a_wav_in_capitals_is_one(place: Path) -> None:
    (place / "audio" / "t0.wav").unlink()
    put_wav(place / "audio" / "t0.WAV", 0)
    assert numbers(load(section("av_folder"), place).splits["train"]) == expected(IDS["train"])
