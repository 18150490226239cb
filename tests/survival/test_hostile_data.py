"""Data files that mean harm, through the command line: one clear refusal, nothing run, nothing
written.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.data.clips import put
from tests.survival.hostile import Place, refused
from tune_mm.config import load_config, to_dict
from tune_mm.config.yaml import write_yaml
from tune_mm.data import base
from tune_mm.data.datasets.iemocap import Iemocap


class Runs:
    """Unpickles as a call that makes the folder `run`."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def arrays(count: int = 12) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "pose": rng.normal(size=(count, 4, 6)),
        "image": rng.normal(size=(count, 5)),
        "label": np.arange(count) % 3,
    }


def npz_space(place: Place) -> str:
    """A space over `data/own/*.npz`, which it writes."""
    (place.data / "own").mkdir()
    for split in ("train", "val", "test"):
        np.savez(place.data / "own" / f"{split}.npz", **arrays())
    values = to_dict(
        load_config(
            "mosi", ["data={name: npz, folder: own}", "model.fusion=concat", "model.encoder=mlp"]
        )
    )
    place.space("own.yaml", write_yaml(values))
    return place.space(config="own.yaml")


def test_a_pickle_with_code(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    (place.data / "mosi").mkdir()
    (place.data / "mosi" / "mosi_data.pkl").write_bytes(pickle.dumps({"train": Runs(place.target)}))
    told = refused(place, capsys, "--space", place.space())
    assert "mosi_data.pkl: refused 'posix.mkdir': only numpy arrays" in told


@pytest.mark.parametrize("form", ["member", "file"])
def test_code_in_an_array(form: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """An object array is a pickle; so is a file of another format under the name of an archive."""
    space, path = npz_space(place), place.data / "own" / "train.npz"
    if form == "member":
        np.savez(path, **{**arrays(), "pose": np.array([Runs(place.target)], object)})
    else:
        path.write_bytes(pickle.dumps(Runs(place.target)))
    assert "train.npz: is not a readable .npz file without pickles" in refused(
        place, capsys, "--space", space
    )


@pytest.mark.parametrize(
    "name", ["/etc/passwd.npy", "../../pose.npy", "a/../../pose.npy", "C:pose.npy", "\\x.npy"]
)
def test_paths_in_an_archive(name: str, place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    space, path = npz_space(place), place.data / "own" / "train.npz"
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    told = refused(place, capsys, "--space", space)
    assert f"train.npz: must hold names of arrays, got the path '{name}'" in told


def header(shape: tuple[int, ...]) -> bytes:
    """An .npy file of that shape without its values."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        out, {"descr": "<f8", "fortran_order": False, "shape": shape}
    )
    return out.getvalue()


@pytest.mark.parametrize("shape", [(2**50, 4, 6), (2**70, 4), (-1, 4)])
def test_an_array_that_says_it_is_huge(
    shape: tuple[int, ...], place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    space, path = npz_space(place), place.data / "own" / "train.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pose.npy", header(shape))
        archive.writestr("label.npy", header((3,)))
    assert "train.npz: is not a readable .npz file" in refused(place, capsys, "--space", space)


def test_an_archive_that_unpacks_to_more_than_there_is(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory of the archive says 1 EiB; the same field as in a real bomb (APPNOTE 4.5.3,
    Zip64).
    """
    space, path = npz_space(place), place.data / "own" / "train.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pose.npy", header((3, 4, 6)))
        archive.filelist[0].file_size = 2**60
    assert "train.npz: unpacks to 1073741824.0 GiB, and this machine has" in refused(
        place, capsys, "--space", space
    )


def test_an_hdf5_file_that_points_elsewhere(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """An external link, and a data set whose bytes lie in another file."""
    section = load_config("iemocap").data
    folder = base.make(section, place.data, Iemocap.options(section))
    (folder / base.MARKER).unlink()
    path, name = folder / "V" / "denseface.h5", "Syn01_00000"
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = np.ones((3, 32), np.float32)
    for link in (True, False):
        with h5py.File(path, "r+") as file:
            del file[name]
            if link:
                file[name] = h5py.ExternalLink(str(folder / "other.h5"), "x")
            else:
                file.create_dataset(name, (2, 32), np.float32, external=[("/etc/passwd", 0, 256)])
        told = refused(place, capsys, "--space", place.space(config="iemocap"))
        assert (
            f"denseface.h5: '{name}' must lie in the file itself, got a link to another file"
            in told
        )


def clips_space(place: Place) -> tuple[str, Path]:
    """A space over clips in folders, which it writes; the folder."""
    folder = place.data / "av_folder"
    names = [f"c{i}" for i in range(8)]
    put(folder / "audio", folder / "frames", names)
    for file in ("train.csv", "val.csv", "test.csv"):
        (folder / file).write_text("".join(f"{n},{i % 2}\n" for i, n in enumerate(names)))
    place.space("clips.yaml", write_yaml({**to_dict(load_config("avdigits")), "data": "av_folder"}))
    return place.space(config="clips.yaml"), folder


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nowhere", "is a symbolic link that leads nowhere, to nowhere"),
        ("c0.wav", "is a symbolic link that leads nowhere, to c0.wav"),
        ("/dev/zero", "must be a file or a folder, got a device"),
        ("pipe", "must be a file or a folder, got a device"),
    ],
    ids=["nothing", "itself", "device", "pipe"],
)
def test_links_among_clips(
    target: str, message: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    space, folder = clips_space(place)
    os.mkfifo(place.root / "fifo")
    (folder / "audio" / "c0.wav").unlink()
    (folder / "audio" / "c0.wav").symlink_to(place.root / "fifo" if target == "pipe" else target)
    assert f"{folder / 'audio' / 'c0.wav'}: {message}" in refused(place, capsys, "--space", space)


@pytest.mark.parametrize("which", ["folder", "file"])
def test_a_link_to_data_that_are_gone_is_no_reason_for_synthetic_ones(
    which: str, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    link = place.data / "mosi"
    if which == "file":
        link.mkdir()
        link = link / "mosi_data.pkl"
    link.symlink_to("/mnt/gone")
    assert f"{link}: is a symbolic link that leads nowhere, to /mnt/gone" in refused(
        place, capsys, "--space", place.space()
    )


def test_a_list_that_names_files_elsewhere(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ids are looked up among what the folders hold, never opened: such a clip has no sound and no
    frames.
    """
    space, folder = clips_space(place)
    for file in ("train.csv", "val.csv", "test.csv"):
        (folder / file).write_text(f"/etc/{file},0\n../../../etc/{file},1\n")
    assert "train has no clip with audio and frames" in refused(place, capsys, "--space", space)


def test_a_clip_whose_name_is_no_utf8(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    space, folder = clips_space(place)
    Path(os.fsdecode(os.fsencode(folder / "audio") + b"/\xff.wav")).touch()
    assert f"{folder / 'audio'}: names must be UTF-8, got '\\udcff.wav'" in refused(
        place, capsys, "--space", space
    )
