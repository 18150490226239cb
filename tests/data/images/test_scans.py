"""The stores of scans: built case by case, read without files that stay open, and what becomes of
failures.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.data.images.scans import PLAIN, TUMOUR, load, put, put_seven, scan
from tune_mm.data import base
from tune_mm.data.datasets.brats import MODALITIES, Brats, BratsConfig
from tune_mm.data.images import scans
from tune_mm.data.images.scans import open_cases, open_labels


@pytest.fixture
def place(tmp_path: Path, cache: Path) -> Path:
    return put_seven(tmp_path)


def test_the_store_is_built_case_by_case_and_follows_the_files(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {p.stem: p for p in (place / "train").iterdir()}
    some = open_cases("brats", {c: files[c] for c in ("a", "c")}, MODALITIES)
    kept = {c: some[c].folder for c in ("a", "c")}
    written = {c: (f / "images.npy").stat().st_mtime_ns for c, f in kept.items()}
    put(files["c"], *scan(9))
    every = open_cases("brats", files, MODALITIES)
    again = {c: every[c].folder for c in ("a", "c")}
    assert again["a"] == kept["a"]
    assert (again["a"] / "images.npy").stat().st_mtime_ns == written["a"]
    assert again["c"] != kept["c"]
    chosen = [("c", 1)]
    assert every.samples(chosen, 0).content != some.samples(chosen, 0).content
    copied = pickle.loads(pickle.dumps(every.samples(chosen, 0)))
    index = torch.tensor([0])
    assert torch.equal(copied.take(index).value, every.samples(chosen, 0).take(index).value)
    assert float(copied.take(index).value[0, 0, 0, 0]) == 30 + 9
    assert capsys.readouterr().err == ""


@pytest.fixture
def most_files() -> Iterator[Callable[[int], None]]:
    """Sets how many descriptors this process may have; the limit is put back afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_more_cases_than_files_may_be_open(
    tmp_path: Path, cache: Path, most_files: Callable[[int], None]
) -> None:
    """40 cases of three files each, of which 64 may be open at once."""
    folders = ["train"] * 30 + ["valid"] * 5 + ["test"] * 5
    for number, folder in enumerate(folders):
        put(tmp_path / "brats" / folder / f"{number:02d}.h5", *scan(number))
    most_files(open_files() + 64)
    data = load(tmp_path / "brats", eval_slices="all")
    before = open_files()
    batch = data.splits["train"].batch(torch.arange(30), torch.Generator().manual_seed(0))
    assert torch.equal(batch.inputs["flair"].value[:, 0, 0, 0] % 10, torch.arange(30.0) % 10)
    drawn = [int((t != 0).any(1).sum()) for t in batch.target]
    assert set(drawn) == set(TUMOUR.values())
    shown = data.splits["test"].batch(torch.arange(15))
    expected = torch.tensor([300.0 + 10 * z + n for n in range(35, 40) for z in TUMOUR])
    assert torch.equal(shown.inputs["t2"].value[:, 0, 0, 0], expected)
    assert open_files() == before


def test_a_store_that_cannot_be_opened_now_is_not_said_to_be_damaged(
    place: Path, most_files: Callable[[int], None]
) -> None:
    train = load(place).splits["train"]
    most_files(3)  # those of input and output
    with pytest.raises(
        base.DataError, match=r"images\.npy: cannot be read now: Too many open files; "
    ):
        train.batch(torch.arange(3))


def test_a_damaged_store_is_named(place: Path) -> None:
    cases = open_cases("brats", {p.stem: p for p in (place / "train").iterdir()}, MODALITIES)
    path = cases["b"].folder / "images.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        base.DataError, match=r"this store is damaged \(images\.npy\); remove the folder"
    ):
        open_cases("brats", {p.stem: p for p in (place / "train").iterdir()}, MODALITIES)
    with pytest.raises(
        base.DataError, match=r"this store is damaged \(images\.npy\); remove the folder"
    ):
        cases.samples([("b", 2)], 3).take(torch.tensor([0]))
    np.save(path, np.load(io.BytesIO(whole)).astype(np.float32))
    with pytest.raises(
        base.DataError, match=r"this store is damaged \(images\.npy\); remove the folder"
    ):
        open_cases("brats", {p.stem: p for p in (place / "train").iterdir()}, MODALITIES)


def only(place: Path, case: str) -> Any:
    return open_cases("brats", {case: place / "train" / f"{case}.h5"}, MODALITIES)


def scarce_memory(*_: object) -> None:
    raise MemoryError


def lost_disk(*_: object) -> None:
    raise OSError(errno.EIO, "Can't synchronously read data (file read failed)")


@pytest.mark.parametrize(
    ("failure", "message"),
    [(scarce_memory, "too little memory"), (lost_disk, "Input/output error")],
)
def test_a_passing_failure_stops_and_is_not_stored(
    place: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[..., None], message: str
) -> None:
    """The file is healthy: the same call succeeds once the failure has passed."""
    with monkeypatch.context() as now:
        now.setattr(scans, "_classes", failure)
        with pytest.raises(
            base.DataError, match=rf"train/a\.h5: cannot be read now: {message}; run the same"
        ):
            load(place, skip_bad=True)
    data = load(place, skip_bad=True)
    assert data.splits["train"].ids == ("a", "b", "c")
    assert data.dropped == {}


def test_too_many_open_files_stop_and_are_not_stored(
    place: Path, most_files: Callable[[int], None]
) -> None:
    """The limit is reached while the case is read: h5py is refused, not the digest of the file."""
    allowed = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    read = scans.read_case

    def refused(path: Path, modalities: int) -> Any:
        most_files(3)
        try:
            return read(path, modalities)
        finally:
            most_files(allowed)

    with pytest.MonkeyPatch.context() as now:
        now.setattr(scans, "read_case", refused)
        with pytest.raises(
            base.DataError, match=r"b\.h5: cannot be read now: Too many open files; run the same"
        ):
            only(place, "b")
    assert only(place, "b").bad == {}


def damage_middle(path: Path) -> None:
    """Compressed slices that cannot be unpacked."""
    image, label = scan()
    with h5py.File(path, "w") as file:
        file["label"] = label
        values = file.create_dataset(
            "image", image.shape, image.dtype, chunks=image.shape, compression="gzip"
        )
        values.id.write_direct_chunk((0, 0, 0, 0), b"no gzip")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("spoil", [damage_middle, cut])
def test_a_damaged_file_is_stored_as_bad(place: Path, spoil: Callable[[Path], None]) -> None:
    spoil(place / "train" / "b.h5")
    first, again = only(place, "b"), only(place, "b")
    assert first.bad == again.bad
    assert "train/b.h5: cannot be read: " in first.bad["b"]


def mapped_file(address: int) -> str:
    """The file that is mapped at an address of this process, "" where there is none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        bounds, _, _, _, _, *path = line.split(maxsplit=5)
        low, high = (int(x, 16) for x in bounds.split("-"))
        if low <= address < high:
            return path[0] if path else ""
    return ""


def test_evaluation_labels_are_mapped_from_one_file_by_all_processes(
    place: Path, cache: Path
) -> None:
    config = BratsConfig(**{**PLAIN, "eval_slices": "all"})
    one, other = (Brats.load(config, place) for _ in range(2))
    for name, split in one.splits.items():
        target = split.to(torch.device("cpu")).target
        file = mapped_file(target.data_ptr())
        assert file.startswith(f"{cache}/store/brats-labels-")
        assert file == mapped_file(other.splits[name].target.data_ptr())
        assert file == mapped_file(target.data_ptr() + target.numel() - 1)
    assert target.data_ptr() != other.splits["test"].target.data_ptr()
    expected = [np.where(scan()[1] == 4, 3, scan()[1])[:, :, z] for _ in "fg" for z in TUMOUR]
    assert np.array_equal(one.splits["test"].target, np.stack(expected))


def test_other_slices_and_other_files_make_other_labels(place: Path) -> None:
    def targets(slices: str) -> torch.Tensor:
        return (
            Brats.load(BratsConfig(**{**PLAIN, "eval_slices": slices}), place).splits["val"].target
        )

    every, middle = targets("all"), targets("middle")
    assert torch.equal(middle, every[[1, 4]])
    image, label = scan(3)
    put(place / "valid" / "d.h5", image, np.where(label == 4, 1, label))
    changed = targets("all")
    assert torch.equal(changed[:3], torch.where(every[:3] == 3, 1, every[:3]))
    assert torch.equal(changed[3:], every[3:])


def test_more_labels_than_are_copied_at_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "PART", 4)
    place = put_seven(tmp_path)
    cases = open_cases("brats", {p.stem: p for p in (place / "train").iterdir()}, MODALITIES)
    chosen = [(case, row) for case in "cab" for row in (2, 0, 1)]
    expected = [np.where(scan()[1] == 4, 3, scan()[1])[:, :, z] for _ in "cab" for z in (5, 2, 3)]
    assert np.array_equal(open_labels("brats", cases, chosen), np.stack(expected))


def test_bytes_of_a_case_are_as_stated(tmp_path: Path, cache: Path) -> None:
    """240 x 240 pixels of four sequences in two bytes and a label in one: 518,400 a slice, beside
    16 of its place.
    """
    label = np.zeros((240, 240, 3), np.uint8)
    label[100, 100] = 1
    put(tmp_path / "a.h5", np.zeros((4, *label.shape), np.float32), label)
    folder = open_cases("brats", {"a": tmp_path / "a.h5"}, MODALITIES)["a"].folder
    found = [np.load(path) for path in folder.glob("*.npy")]
    assert sum(array.nbytes for array in found) == 3 * (518_400 + 16)


def test_cases_stored_before_the_disk_was_full_are_not_read_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as now:
        only(place, "a")
        now.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
        with pytest.raises(
            base.DataError, match=r"GiB are needed, 0\.0 GiB are free; TUNE_MM_CACHE names another"
        ):
            load(place)
    only(place, "c")
    monkeypatch.setattr(scans, "read_case", scarce_memory)
    assert [only(place, case).bad for case in "ac"] == [{}, {}]
