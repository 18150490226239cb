"""Audio files on disk -> store -> batches of crops."""

import copy
import errno
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray

from tune_mm import plugins
from tune_mm.config import Section
from tune_mm.core.types import Split
from tune_mm.data.audio import frontends
from tune_mm.data.audio.spectrograms import SpectrogramStore, open_spectrograms
from tune_mm.data.base import DataError

RATE = 1000
# Frames of 8 samples, repeated to 64: stored [8, 64] with time along axis 1, or [64, 8] along axis
# 0.
FRONTEND = """
from typing import Literal
import numpy as np
from tune_mm.config import Section
from tune_mm.data.audio.frontends.base import Frontend

class Config(Section):
    name: Literal["{name}"] = "{name}"
    gain: float = 1.0
    crop: int = 20

class Toy(Frontend):
    Config = Config
    VERSION = {version}
    time_axis = {axis}
    rate = 1000
    def __init__(self, config):
        self.gain = config.gain
        self.stored = {stored}
        self.shape = (1, 8, config.crop) if {axis} else (1, config.crop, 8)
    def compute(self, wave):
        with np.errstate(divide="ignore"):
            frames = np.log(self.gain * np.resize(wave, (64, 8)))
        return (frames.T if {axis} else frames).astype(np.float32)

plugin = Toy
"""


def add_frontend(folder: Path, name: str, axis: int, version: int = 1) -> None:
    stored = (8, 64) if axis else (64, 8)
    (folder / f"{name}.py").write_text(
        FRONTEND.format(name=name, axis=axis, version=version, stored=stored)
    )
    sys.modules.pop(f"{frontends.__name__}.{name}", None)
    plugins.available.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose files are front-ends beside those of the package."""
    place = tmp_path / "frontends"
    place.mkdir()
    monkeypatch.setattr(frontends, "__path__", [*frontends.__path__, str(place)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    add_frontend(place, "toy_columns", 1)
    add_frontend(place, "toy_rows", 0)
    yield place
    for name in ("toy_columns", "toy_rows"):
        sys.modules.pop(f"{frontends.__name__}.{name}", None)
    plugins.available.cache_clear()


def config(name: str, **options: float) -> Section:
    made: Section = plugins.load("frontends", name).Config(**options)
    return made


def sound(path: Path, seed: int) -> NDArray[np.float32]:
    """Writes and returns 512 positive samples, exact in 32 bits."""
    wave = np.random.default_rng(seed).uniform(0.1, 0.9, 512).astype(np.float32)
    soundfile.write(path, wave, RATE, subtype="FLOAT")
    return wave


@pytest.fixture
def waves(tmp_path: Path) -> dict[str, NDArray[np.float32]]:
    return {
        name: sound(tmp_path / f"{name}.wav", seed) for seed, name in enumerate(("b", "a", "c"))
    }


def paths(folder: Path, names: str = "bac") -> dict[str, Path]:
    return {name: folder / f"{name}.wav" for name in names}


def expected(wave: NDArray[np.float32], gain: float = 1.0) -> NDArray[np.float32]:
    """[64, 8]: the front-end's formula."""
    return np.log(np.float32(gain) * wave.reshape(64, 8))


@pytest.fixture
def store(
    cache: Path, folder: Path, tmp_path: Path, waves: dict[str, NDArray[np.float32]]
) -> SpectrogramStore:
    return open_spectrograms("small", paths(tmp_path), config("toy_columns"))


def test_values_are_the_front_ends(
    store: SpectrogramStore, waves: dict[str, NDArray[np.float32]]
) -> None:
    assert store.bad == {}
    assert store.shape == (1, 8, 20)
    assert store.values.shape == (3, 8, 64) and store.values.dtype == np.float32
    for name, wave in waves.items():
        np.testing.assert_allclose(
            store.values[store.opened.rows[name]], expected(wave).T, rtol=1e-6
        )


@pytest.mark.parametrize("name", ["toy_columns", "toy_rows"])
def test_evaluation_takes_the_central_crop(
    cache: Path, folder: Path, tmp_path: Path, waves: dict[str, NDArray[np.float32]], name: str
) -> None:
    part = open_spectrograms("small", paths(tmp_path), config(name)).stored(["c", "a"])
    value, mask, _ = part.take(torch.tensor([1, 0, 1]))
    assert mask is None and value.shape == (3, *part.shape) and value.dtype == torch.float32
    # 64 - 20 = 44 columns are left over, 22 on each side
    for row, clip in enumerate("aca"):
        crop = expected(waves[clip])[22:42]
        np.testing.assert_allclose(
            value[row, 0].numpy(), crop.T if name == "toy_columns" else crop, rtol=1e-6
        )
    assert torch.equal(part.take(torch.tensor([1, 0, 1])).value, value)


def test_training_draws_a_crop_per_sample(
    store: SpectrogramStore, waves: dict[str, NDArray[np.float32]]
) -> None:
    part = store.stored(["a"])
    value = part.take(torch.zeros(2000, dtype=torch.int64), torch.Generator().manual_seed(0)).value[
        :, 0
    ]
    whole = torch.from_numpy(expected(waves["a"]).T.copy())
    starts = (value[:, :1, :1] - whole[:1]).abs().argmin(2)[:, 0].tolist()
    for crop, start in zip(value, starts, strict=True):
        torch.testing.assert_close(crop, whole[:, start : start + 20])
    # uniform over 0..44: mean 22, standard deviation 13 / sqrt(2000) = 0.29
    assert set(starts) == set(range(45))
    assert abs(np.mean(starts) - 22) < 1.2


def test_same_seed_same_crops(store: SpectrogramStore) -> None:
    part = store.stored(["a", "b", "c"])
    one, same, other = (
        part.take(torch.arange(3), torch.Generator().manual_seed(s)).value for s in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_whole_spectrogram_without_a_crop(
    cache: Path, folder: Path, tmp_path: Path, waves: dict[str, NDArray[np.float32]]
) -> None:
    part = open_spectrograms("small", paths(tmp_path), config("toy_columns", crop=64)).stored(["a"])
    for generator in (None, torch.Generator()):
        found = part.take(torch.tensor([0]), generator).value[0, 0].numpy()
        np.testing.assert_allclose(found, expected(waves["a"]).T, rtol=1e-6)


def test_second_open_does_not_compute(store: SpectrogramStore, tmp_path: Path) -> None:
    inode = store.opened.folder.stat().st_ino
    again = open_spectrograms("small", paths(tmp_path), config("toy_columns"))
    assert again.opened.folder == store.opened.folder
    assert again.opened.folder.stat().st_ino == inode


def test_settings_front_end_and_version_make_other_stores(
    store: SpectrogramStore, folder: Path, tmp_path: Path, waves: dict[str, NDArray[np.float32]]
) -> None:
    louder = open_spectrograms("small", paths(tmp_path), config("toy_columns", gain=2.0))
    found = louder.values[louder.opened.rows["a"]]
    np.testing.assert_allclose(found, expected(waves["a"], 2.0).T, rtol=1e-6)
    rows = open_spectrograms("small", paths(tmp_path), config("toy_rows"))
    add_frontend(folder, "toy_columns", 1, version=2)
    newer = open_spectrograms("small", paths(tmp_path), config("toy_columns"))
    assert len({s.opened.folder for s in (store, louder, rows, newer)}) == 4


def test_unreadable_clips_are_listed_and_the_others_stored(
    cache: Path, folder: Path, tmp_path: Path
) -> None:
    wave = sound(tmp_path / "good.wav", 0)
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, dtype=np.float32), RATE)
    soundfile.write(
        tmp_path / "silent.wav", np.zeros(512, dtype=np.float32), RATE
    )  # the logarithm of 0
    clips = {
        name: tmp_path / f"{name}.wav" for name in ("empty", "good", "missing", "silent", "text")
    }
    made = open_spectrograms("small", clips, config("toy_columns"))
    assert set(made.bad) == {"empty", "missing", "silent", "text"}
    for name, reason in made.bad.items():
        assert str(clips[name]) in reason
    assert "not finite" in made.bad["silent"]
    value = made.stored(["good", "text", "silent"]).take(torch.arange(3)).value
    np.testing.assert_allclose(value[0, 0].numpy(), expected(wave).T[:, 22:42], rtol=1e-6)
    assert value[1:].abs().max() == 0


def test_a_failure_of_the_machine_is_not_remembered(
    cache: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the run, naming the file; the next run finds the clip good."""
    sound(tmp_path / "good.wav", 0)
    clips, opened, seen = {"good": tmp_path / "good.wav"}, Path.open, list[Path]()

    def failing(path: Path, *given: Any, **named: Any) -> Any:
        seen.extend([path] if path == clips["good"] else [])
        if path == clips["good"] and len(seen) == 2:  # the first is for the store's key
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return opened(path, *given, **named)

    with monkeypatch.context() as now:
        now.setattr(Path, "open", failing)
        with pytest.raises(
            DataError, match=r"good\.wav: cannot be read now: Input/output error; run the same"
        ):
            open_spectrograms("small", clips, config("toy_columns"))
    assert open_spectrograms("small", clips, config("toy_columns")).bad == {}


def test_split_moves_and_batches_it(store: SpectrogramStore) -> None:
    part = store.stored(["a", "b"])
    split = Split({"audio": part}, torch.tensor([0, 1])).to(torch.device("cpu"))
    value = split.batch(torch.tensor([1, 0])).inputs["audio"].value
    assert torch.equal(value, part.take(torch.tensor([1, 0])).value)


def test_pickles_and_copies_by_path(store: SpectrogramStore) -> None:
    part = store.stored(["a", "b"])
    value = part.take(torch.tensor([1, 0])).value
    text = pickle.dumps(part)
    assert len(text) < 2000  # the values alone are 6144 bytes
    for other in (pickle.loads(text), copy.deepcopy(part)):
        assert torch.equal(other.take(torch.tensor([1, 0])).value, value)


@pytest.mark.filterwarnings("error")
def test_read_only_maps_warn_of_nothing(store: SpectrogramStore) -> None:
    store.stored(["a"]).take(torch.tensor([0])).value.add_(1)
    assert not store.values.flags.writeable


def test_unknown_id(store: SpectrogramStore) -> None:
    with pytest.raises(KeyError, match="zzz"):
        store.stored(["zzz"])


def test_damaged_store(store: SpectrogramStore, tmp_path: Path) -> None:
    path = store.opened.folder / "spectrograms.npy"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"damaged \(spectrograms.npy\); remove the folder"):
        open_spectrograms("small", paths(tmp_path), config("toy_columns"))
