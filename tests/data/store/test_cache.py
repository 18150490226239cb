"""The store's folder: when it is built, found again and refused, and what becomes of builds that
are killed.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import REPOSITORY
from tune_mm.data.base import DataError
from tune_mm.data.store.cache import (
    Build,
    OpenedStore,
    StoreRecipe,
    StoreWriter,
    open_store,
    read_array,
)

LONG_AGO = 1_000_000_000


def write(path: Path, text: str, seconds: int = LONG_AGO) -> Path:
    """A file that changed at `seconds`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (seconds, seconds))
    return path


def recipe(folder: Path, **settings: int) -> StoreRecipe:
    """Two samples of one file each, listed in the other order than their ids."""
    sources = {"b": (folder / "two.txt",), "a": (folder / "one.txt",)}
    return StoreRecipe("small", "sizes", settings, sources)


def sizes(made: StoreRecipe) -> Build:
    """A build that stores the size of each sample's files."""

    def build(folder: Path, ids: list[str]) -> Mapping[str, str]:
        with StoreWriter(folder / "sizes.npy", np.int64, (len(ids),)) as out:
            for row, name in enumerate(ids):
                out.put(
                    row, np.array(sum(p.stat().st_size for p in made.sources[name] if p.exists()))
                )
        return {name: "not there" for name in ids if not made.sources[name][0].exists()}

    return build


def refuse(folder: Path, ids: list[str]) -> Mapping[str, str]:
    raise AssertionError("built although the store is there")


def opened(folder: Path, **settings: int) -> OpenedStore:
    made = recipe(folder, **settings)
    return open_store(made, sizes(made))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    write(folder / "one.txt", "1")
    write(folder / "two.txt", "22")
    return folder


def test_build_stores_rows_in_the_order_of_ids(
    cache: Path, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = opened(files)
    assert store.folder.parent == cache / "store"
    assert store.folder.name.startswith("small-sizes-")
    assert store.rows == {"a": 0, "b": 1}
    assert store.bad == {}
    values = read_array(store.folder, "sizes.npy")
    assert values.tolist() == [1, 2]
    assert not values.flags.writeable
    assert f"small: 2 sizes stored in 0 s: {store.folder}" in capsys.readouterr().err


def test_second_open_neither_builds_nor_reads_the_files(cache: Path, files: Path) -> None:
    first = opened(files)
    inode = first.folder.stat().st_ino
    # Other content behind the same path, size and time: only reading the file would tell.
    write(files / "one.txt", "x")
    again = open_store(recipe(files), refuse)
    assert again.folder == first.folder
    assert again.folder.stat().st_ino == inode


def test_moved_and_copied_data_are_found_again(cache: Path, files: Path, tmp_path: Path) -> None:
    first = opened(files)
    moved = files.rename(tmp_path / "elsewhere")
    assert open_store(recipe(moved), refuse).folder == first.folder
    write(tmp_path / "copy" / "one.txt", "1", LONG_AGO + 7)
    write(tmp_path / "copy" / "two.txt", "22", LONG_AGO + 7)
    assert open_store(recipe(tmp_path / "copy"), refuse).folder == first.folder


def test_file_changed_in_place_makes_another_store(cache: Path, files: Path) -> None:
    first = opened(files)
    write(files / "one.txt", "x", LONG_AGO + 1)
    assert opened(files).folder != first.folder


def test_file_that_has_only_just_changed_is_read_again(cache: Path, files: Path) -> None:
    path = files / "one.txt"
    path.write_text("1")
    just = path.stat().st_mtime_ns
    first = opened(files)
    path.write_text("x")
    os.utime(path, ns=(just, just))
    assert opened(files).folder != first.folder


def test_settings_ids_and_kind_make_other_stores(cache: Path, files: Path) -> None:
    plain = recipe(files)
    swapped = StoreRecipe("small", "sizes", {}, {"a": plain.sources["b"], "b": plain.sources["a"]})
    other = StoreRecipe("small", "other", {}, plain.sources)
    stores = [
        open_store(r, sizes(r)).folder for r in (plain, recipe(files, width=3), swapped, other)
    ]
    assert len(set(stores)) == 4


def test_unreadable_lookup_is_written_anew(cache: Path, files: Path) -> None:
    first = opened(files)
    lookup = cache / "store" / "small-sizes.files.json"
    remembered = json.loads(lookup.read_text())
    assert len(remembered) == 2
    lookup.write_text("{")
    assert open_store(recipe(files), refuse).folder == first.folder
    assert json.loads(lookup.read_text()) == remembered


def test_missing_file_is_listed_and_makes_another_store_once_it_is_there(
    cache: Path, files: Path
) -> None:
    (files / "two.txt").unlink()
    first = opened(files)
    assert first.bad == {"b": "not there"}
    write(files / "two.txt", "22")
    second = opened(files)
    assert second.folder != first.folder
    assert second.bad == {}


def test_failure_to_read_a_file_is_not_taken_for_its_content(cache: Path, files: Path) -> None:
    """A loop of links, for what the system cannot open and may open next time: no store is made of
    it.
    """
    path = files / "two.txt"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(DataError) as error:
        opened(files)
    assert (
        str(error.value)
        == f"{path}: cannot be read now: Too many levels of symbolic links; run the same command again"
    )
    assert [p for p in (cache / "store").iterdir() if p.is_dir()] == []


def test_nothing_to_store(cache: Path) -> None:
    with pytest.raises(DataError, match="small: no files to make sizes of"):
        open_store(StoreRecipe("small", "sizes", {}, {}), refuse)


@pytest.mark.parametrize("file", ["meta.json", "sizes.npy"])
def test_damaged_store_says_what_to_remove(cache: Path, files: Path, file: str) -> None:
    store = opened(files)
    path = store.folder / file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(DataError, match=r"damaged .*remove the folder") as error:
        read_array(opened(files).folder, "sizes.npy")
    assert str(store.folder) in str(error.value) and file in str(error.value)


@pytest.mark.parametrize("file", ["meta.json", "sizes.npy"])
def test_healthy_store_that_cannot_be_opened_now_is_not_to_be_removed(
    cache: Path, files: Path, file: str
) -> None:
    """A loop of links in place of the file: what the system says of it, not that the store is
    damaged.
    """
    path = opened(files).folder / file
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(DataError) as error:
        read_array(opened(files).folder, "sizes.npy")
    assert (
        str(error.value)
        == f"{path}: cannot be read now: Too many levels of symbolic links; run the same command again"
    )


@pytest.mark.parametrize("file", ["meta.json", "sizes.npy"])
def test_store_that_lacks_a_file_is_damaged(cache: Path, files: Path, file: str) -> None:
    (opened(files).folder / file).unlink()
    with pytest.raises(DataError, match=rf"damaged \({file}\); remove the folder"):
        read_array(opened(files).folder, "sizes.npy")


def test_cache_that_cannot_be_written(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUNE_MM_CACHE", str(write(tmp_path / "file", "") / "cache"))
    with pytest.raises(DataError, match="cannot be written: Not a directory; TUNE_MM_CACHE"):
        opened(files)


def test_full_disk(cache: Path, files: Path) -> None:
    def build(folder: Path, ids: list[str]) -> Mapping[str, str]:
        with StoreWriter(folder / "large.npy", np.float32, (2**40, 2**10)):
            return {}

    with pytest.raises(DataError, match=r"4194304\.0 GiB are needed.*TUNE_MM_CACHE"):
        open_store(recipe(files), build)
    assert list((cache / "store").glob(".*.part")) == []


def test_build_that_fails_leaves_nothing(cache: Path, files: Path) -> None:
    with pytest.raises(AssertionError):
        open_store(recipe(files), refuse)
    assert [p for p in (cache / "store").iterdir() if p.is_dir()] == []


def test_writer_fills_in_any_order_and_leaves_zeros(tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "x.npy", np.float32, (4, 3)) as out:
        out.put(9, np.array([7, 8, 9]))
        out.put(3, np.array([[1.5, 2.5, 3.5]]))
    expected = np.array([[0, 0, 0], [1.5, 2.5, 3.5], [0, 0, 0], [7, 8, 9]], dtype=np.float32)
    found = np.load(tmp_path / "x.npy")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def child(files: Path, mode: str) -> None:
    """What another process does: open the store, or begin to build it and stop in the middle."""
    made = recipe(files)

    def hang(folder: Path, ids: list[str]) -> Mapping[str, str]:
        sizes(made)(folder, ids)
        print(folder, flush=True)
        sys.stdin.read()  # until killed
        return {}

    store = open_store(made, refuse if mode == "open" else hang)
    print(read_array(store.folder, "sizes.npy").tolist(), store.folder, flush=True)


def start(files: Path, mode: str) -> "subprocess.Popen[str]":
    code = "from pathlib import Path; from tests.data.store.test_cache import child; "
    code += f"child(Path({str(files)!r}), {mode!r})"
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", code]
    return subprocess.Popen(
        command, cwd=REPOSITORY, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def test_second_process_waits_for_the_first_and_uses_its_store(cache: Path, files: Path) -> None:
    made = recipe(files)
    others = []

    def build(folder: Path, ids: list[str]) -> Mapping[str, str]:
        other = start(files, "open")
        others.append(other)
        assert other.stderr is not None
        # Only once the other process waits does this build go on.
        assert other.stderr.readline().startswith(
            "small: waiting for another process that stores sizes"
        )
        return sizes(made)(folder, ids)

    store = open_store(made, build)
    out, err = others[0].communicate(timeout=60)
    assert (others[0].returncode, err) == (0, "")
    assert out.split(" /")[0] == "[1, 2]"
    assert str(store.folder) in out
    assert [p for p in (cache / "store").iterdir() if p.is_dir()] == [store.folder]


def test_killed_build_leaves_no_store_and_is_cleared_away(
    cache: Path, files: Path, tmp_path: Path
) -> None:
    process = start(files, "hang")
    assert process.stdout is not None
    part = Path(process.stdout.readline().strip())
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    folders = [p for p in (cache / "store").iterdir() if p.is_dir()]
    assert folders == [part] and part.name.startswith(".")
    # A build of something else clears it away too, as its lock died with its process.
    opened(files, width=1)
    assert not part.exists()
    part.mkdir()
    (part / "meta.json").write_text("{}")
    store = opened(files)
    assert store.folder.name == part.name[1:].removesuffix(".part")
    assert read_array(store.folder, "sizes.npy").tolist() == [1, 2]
    assert not part.exists()
