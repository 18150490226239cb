"""`python -m tune_mm.data extract`: files that are replaced before all is done cost what is made of
them alone.

The expected features are those of an extraction that met the final files only.
"""

import errno
import json
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from tests.data.features.pretrained import ALL, TRAIN, argv, array, counted, make, samples, store
from tune_mm.data.__main__ import main
from tune_mm.data.features.food_lists import LISTS
from tune_mm.data.store.part import SourceFiles

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return make(tmp_path)


def damage(place: Path, *rows: int) -> dict[Path, bytes]:
    """Make the images of these rows unreadable; returns what they were."""
    paths = [samples(place)[row].image for row in rows]
    whole = {path: path.read_bytes() for path in paths}
    for path in paths:
        path.write_bytes(b"no picture")
    return whole


def mend(whole: dict[Path, bytes]) -> None:
    for path, content in whole.items():
        path.write_bytes(content)


def part_of(place: Path) -> Path:
    (found,) = (place / "features").glob(".*.part")
    return found


def require_whole(place: Path, command: list[str]) -> None:
    """The store, made in pieces, is the one that is made at once. Batches differ, by which sums are
    rounded.
    """
    assert main([*command, "--set", "features=whole"]) == 0
    assert store(place).name == store(place, "whole").name
    for name in ("visual", "text", "mask", "texts", *(["views"] if "--views" in command else [])):
        np.testing.assert_allclose(
            array(place, name), array(place, name, "whole"), rtol=2**-9, atol=1e-4
        )
    names = ("meta.json", "visual.npy", "text.npy", "mask.npy", "texts.npy", "views.npy")
    assert {p.name for p in store(place).iterdir()} <= set(names)
    assert json.loads((store(place) / "meta.json").read_text())["bad"] == {}
    assert list((place / "features").glob(".*")) == []


def test_only_images_that_were_mended_are_made_again(
    place: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, whole = argv(place, models, "--views", "2"), damage(place, 4, 9)
    assert main(command) == 2
    left = json.loads((part_of(place) / "progress.json").read_text())
    assert left["rows"] == {"0": ALL, "1": ALL, "2": TRAIN} and len(left["bad"]) == 2
    mend(whole)
    sizes = counted(monkeypatch)
    assert main(command) == 0
    # One call tells the shape; two plain images; one of the two is in train and has a view.
    assert sizes == [1, 2, 1]
    require_whole(place, command)


def test_a_text_that_was_changed_is_made_again(place: Path, models: dict[str, Path]) -> None:
    command, whole = argv(place, models), damage(place, 4)
    assert main(command) == 2
    path = place / LISTS["cggm"].format("train")
    entries = json.loads(path.read_text())
    entries[6]["text_tokens"] = ["smoked", "salt"]
    path.write_text(json.dumps(entries))
    mend(whole)
    assert main(command) == 0
    require_whole(place, command)


def test_files_mended_half_way_are_made_again_where_they_were_done(
    place: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    command, whole, reads = argv(place, models), damage(place, 2, 12), list[Path]()
    stop, read = samples(place)[7].image, Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        reads.extend([path] if path == stop else [])
        if path == stop and len(reads) == 2:  # the first is for the key
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        assert main(command) == 2
    assert json.loads((part_of(place) / "progress.json").read_text())["rows"] == {"0": ALL, "1": 6}
    mend(whole)
    sizes = counted(monkeypatch)
    assert main(command) == 0
    # Row 2 again, then rows 6 to 15; row 12 had not been reached.
    assert sizes == [1, 1, 3, 3, 3, 1]
    require_whole(place, command)


def test_a_repair_that_is_stopped_loses_nothing_and_keeps_nothing_out_of_date(
    place: Path,
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, whole = argv(place, models), damage(place, 4, 9)
    assert main(command) == 2

    def full(self: SourceFiles, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    mend(whole)
    with monkeypatch.context() as patch:
        patch.setattr(SourceFiles, "write", full)
        assert main(command) == 2
    assert (
        "cannot be written: No space left on device; what is done is kept"
        in capsys.readouterr().err
    )
    assert json.loads((part_of(place) / "progress.json").read_text())["again"] == {
        "0": [4, 9],
        "1": [4, 9],
    }
    sizes = counted(monkeypatch)
    assert main(command) == 0
    assert sizes == [1, 2]
    require_whole(place, command)


def test_a_mended_image_that_is_damaged_anew_is_bad_again(
    place: Path,
    models: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    command, whole = argv(place, models), damage(place, 4, 9)
    assert main(command) == 2
    first, (path, *_) = part_of(place).name, whole
    mend({path: whole[path]})
    assert main(command) == 2
    assert part_of(place).name != first
    assert f"1 of {ALL} samples cannot be read: " in capsys.readouterr().err.splitlines()[-1]
    damage(place, 4)
    sizes = counted(monkeypatch)
    assert main(command) == 2
    assert part_of(place).name == first and sizes == [1]
    assert f"2 of {ALL} samples cannot be read: " in capsys.readouterr().err.splitlines()[-1]
    mend(whole)
    assert main(command) == 0
    require_whole(place, command)


def test_what_another_process_works_at_is_left_alone(place: Path, models: dict[str, Path]) -> None:
    command, whole = argv(place, models), damage(place, 4)
    assert main(command) == 2
    other = part_of(place)
    mend(whole)
    with FileLock(other.with_name(f"{other.name[1 : -len('.part')]}.lock")):
        assert main(command) == 0
    assert part_of(place) == other
    assert len(json.loads((other / "progress.json").read_text())["bad"]) == 1


@pytest.mark.parametrize("difference", ["images", "settings"])
def test_what_is_left_of_something_else_is_left_alone(
    place: Path, models: dict[str, Path], difference: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = damage(
        place, *range(ALL // 2 if difference == "images" else 1)
    )  # half of the rows: too many
    assert main(argv(place, models)) == 2
    other = part_of(place)
    mend(whole)
    sizes = counted(monkeypatch)
    assert (
        main(argv(place, models, *(["--text-tokens", "5"] if difference == "settings" else [])))
        == 0
    )
    assert sizes == [1, 3, 3, 3, 3, 3, 1]
    assert part_of(place) == other
