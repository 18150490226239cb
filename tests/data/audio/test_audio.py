"""Audio files that exist, are of other kinds, or are damaged."""

import os
import struct
import subprocess
import sys
import warnings
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from tune_mm.data.audio import waves
from tune_mm.data.base import DataError

RATE = 16_000


def tone(
    hertz: float, rate: int, seconds: float = 0.5, amplitude: float = 0.5
) -> NDArray[np.float64]:
    return amplitude * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def written(
    path: Path, values: NDArray[np.float64], rate: int = RATE, subtype: str = "PCM_16"
) -> Path:
    soundfile.write(path, values, rate, subtype=subtype)
    return path


def integers(path: Path, values: list[int], width: int, channels: int = 1) -> Path:
    """A WAV of the given integers as they are, by the standard library."""
    code = {1: "B", 2: "h", 4: "i"}[width]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(RATE)
        file.writeframes(struct.pack(f"<{len(values)}{code}", *values))
    return path


# One step of the format is the largest error of rounding to it and back; 32 bit and float are read
# as float32.
@pytest.mark.parametrize(
    ("subtype", "step"),
    [
        ("PCM_U8", 2**-7),
        ("PCM_16", 2**-15),
        ("PCM_24", 2**-23),
        ("PCM_32", 2**-24),
        ("FLOAT", 2**-24),
        ("DOUBLE", 2**-24),
    ],
)
def test_every_width_gives_the_samples(tmp_path: Path, subtype: str, step: float) -> None:
    expected = tone(440, RATE)
    found = waves.read(written(tmp_path / "a.wav", expected, subtype=subtype), RATE)
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= step


@pytest.mark.parametrize(
    ("width", "values", "expected"),
    [
        # 8 bit is unsigned with 128 as zero, all others are signed: value / 2^(bits - 1).
        (1, [0, 64, 128, 192, 255], [-1, -0.5, 0, 0.5, 127 / 128]),
        (2, [-32768, -16384, 0, 16384, 32767], [-1, -0.5, 0, 0.5, 32767 / 32768]),
        (4, [-(2**31), -(2**30), 0, 2**30], [-1, -0.5, 0, 0.5]),
    ],
)
def test_integers_are_scaled_by_their_width(
    tmp_path: Path, width: int, values: list[int], expected: list[float]
) -> None:
    found = waves.read(integers(tmp_path / "a.wav", values, width), RATE)
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_stereo_is_the_mean_of_its_channels(tmp_path: Path) -> None:
    # Left, right, left, right: (16384 + 0) / 2 and (-8192 + 24576) / 2.
    found = waves.read(integers(tmp_path / "a.wav", [16384, 0, -8192, 24576], 2, channels=2), RATE)
    np.testing.assert_allclose(found, [8192 / 32768, 8192 / 32768], atol=1e-7)


@pytest.mark.parametrize("native", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(tmp_path: Path, native: int) -> None:
    path = written(
        tmp_path / "a.wav", np.stack([tone(440, native), tone(440, native)], axis=1), native
    )
    found = waves.read(path, RATE)
    expected = tone(440, RATE)
    assert found.shape == expected.shape
    # The filter rings at both ends of the clip.
    inner = slice(400, -400)
    assert np.abs(found[inner] - expected[inner]).max() < 2e-3


def test_what_the_lower_rate_cannot_hold_is_filtered_out(tmp_path: Path) -> None:
    path = written(tmp_path / "a.wav", tone(7_000, 44_100), 44_100)
    assert np.abs(waves.read(path, 8_000)[400:-400]).max() < 1e-3


@pytest.mark.parametrize("name", ["a.flac", "a.ogg"])
def test_other_formats(tmp_path: Path, name: str) -> None:
    soundfile.write(tmp_path / name, tone(440, RATE), RATE)
    # Vorbis is lossy.
    assert (
        np.abs(waves.read(tmp_path / name, RATE)[400:-400] - tone(440, RATE)[400:-400]).max() < 0.05
    )


def test_a_silent_clip_and_a_clip_of_one_sample(tmp_path: Path) -> None:
    silent = waves.read(written(tmp_path / "a.wav", np.zeros(100), 44_100), RATE)
    assert silent.shape == (37,)  # ceil(100 * 16000 / 44100)
    assert not silent.any()
    assert waves.read(written(tmp_path / "b.wav", np.full(1, 0.5), 44_100), RATE).shape == (1,)


def test_a_file_cut_off_gives_what_is_there(tmp_path: Path) -> None:
    path = integers(tmp_path / "a.wav", list(range(1000)), 2)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 300])
    np.testing.assert_allclose(waves.read(path, RATE), np.arange(300) / 32768, atol=1e-7)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 300 - 1])
    np.testing.assert_allclose(waves.read(path, RATE), np.arange(299) / 32768, atol=1e-7)


def test_a_length_that_was_never_filled_in_is_that_of_the_file(tmp_path: Path) -> None:
    # What programs write that stream a WAV into a pipe.
    path = integers(tmp_path / "a.wav", list(range(200)), 2)
    raw = bytearray(path.read_bytes())
    raw[4:8] = raw[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(raw)
    np.testing.assert_allclose(waves.read(path, RATE), np.arange(200) / 32768, atol=1e-7)


@pytest.mark.parametrize("size", [0, 3, 20, 44])
def test_a_file_of_which_no_sample_is_left(tmp_path: Path, size: int) -> None:
    path = integers(tmp_path / "a.wav", list(range(1000)), 2)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        DataError, match=r"a\.wav: (is not a readable audio file: \w|has no samples)"
    ):
        waves.read(path, RATE)


def test_an_empty_clip(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.wav: has no samples"):
        waves.read(integers(tmp_path / "a.wav", [], 2), RATE)


@pytest.mark.parametrize(
    "content",
    [b"no audio at all, but a text", bytes(4096), np.random.default_rng(0).bytes(4096)],
    ids=["text", "zeros", "noise"],
)
@pytest.mark.parametrize("name", ["a.wav", "a.raw", "a"])
def test_what_is_no_audio(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        with pytest.raises(DataError, match=rf"{name}: is not a readable audio file: \w"):
            waves.read(path, RATE)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.wav: cannot be read: No such file"):
        waves.read(tmp_path / "a.wav", RATE)
    with pytest.raises(DataError, match=r"cannot be read: Is a directory"):
        waves.read(tmp_path, RATE)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(tmp_path: Path, bad: float) -> None:
    values = tone(440, RATE)
    values[[3, 70]] = bad
    with pytest.raises(DataError, match=r"a\.wav: must be finite, got 2 NaN or infinite samples"):
        waves.read(written(tmp_path / "a.wav", values, subtype="FLOAT"), 8_000)


@pytest.mark.parametrize("claimed", [1, 2_000_000])
def test_a_rate_that_no_recorder_has(tmp_path: Path, claimed: int) -> None:
    path = integers(tmp_path / "a.wav", [1] * 100, 2)
    raw = bytearray(path.read_bytes())
    raw[24:28] = struct.pack("<I", claimed)
    path.write_bytes(raw)
    with pytest.raises(
        DataError, match=rf"a\.wav: sampling rate must be between 1000 and 768000 Hz, got {claimed}"
    ):
        waves.read(path, RATE)


def test_nothing_is_printed_and_reading_alone_imports_librosa(tmp_path: Path) -> None:
    written(tmp_path / "a.wav", np.stack([tone(440, 44_100), tone(220, 44_100)], axis=1), 44_100)
    (tmp_path / "b.wav").write_bytes(b"RIFF")
    code = """
import sys
from pathlib import Path
import tune_mm.data.base
from tune_mm import plugins
from tune_mm.data.audio import waves
for name in plugins.available("frontends"):
    plugin = plugins.load("frontends", name)
    plugin(plugin.Config())
assert "librosa" not in sys.modules
waves.read(Path("a.wav"), 16000)
try:
    waves.read(Path("b.wav"), 16000)
except tune_mm.data.base.DataError:
    sys.exit(7)
"""
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (7, "", "")
