"""stft and mel: their formulae and settings that contradict each other."""

import math
import warnings
from typing import Any

import librosa
import numpy as np
import pytest
from pydantic import ValidationError

from tests.data.audio.frontends.clips import column, looped, made, noise
from tune_mm.data.audio.frontends import mel


@pytest.mark.parametrize("n_fft", [256, 321])
@pytest.mark.parametrize("length", [2, 0.5])
def test_stft_formula(n_fft: int, length: float) -> None:
    wave = noise(8_000, length)
    clip = np.zeros(8_000)
    if length > 1:
        clip[:] = wave[4_000:12_000]
    else:
        clip[:4_000] = wave
    found = made("stft", rate=8_000, n_fft=n_fft, hop=80, seconds=1.0).compute(wave)
    for t in (0, 3, 49, found.shape[1] - 1):
        np.testing.assert_allclose(
            found[:, t], np.log(column(clip, n_fft, 80, t) + 1e-6), rtol=1e-5, atol=1e-5
        )


def test_a_short_clip_is_repeated_on_request() -> None:
    wave = noise(8_000, 0.3)
    found = made("stft", rate=8_000, n_fft=256, hop=80, seconds=1.0, fill="tile").compute(wave)
    expected = np.log(column(looped(wave, 8_000), 256, 80, 70) + 1e-6)
    np.testing.assert_allclose(found[:, 70], expected, rtol=1e-5, atol=1e-5)


def test_zeros_after_a_short_clip_are_the_floor() -> None:
    for name in ("stft", "mel"):
        frontend = made(name, seconds=1.0)
        found = frontend.compute(noise(frontend.rate, 0.5))
        np.testing.assert_allclose(found[:, -10:], math.log(1e-6), rtol=1e-6)


def test_per_clip_standardisation() -> None:
    for name in ("stft", "mel"):
        wave = noise(16_000, 1)
        plain, scaled = made(name).compute(wave), made(name, standardize="clip").compute(wave)
        x = plain.astype(np.float64)
        np.testing.assert_allclose(scaled, (x - x.mean()) / x.std(), rtol=1e-4, atol=1e-4)
        assert not made(name, standardize="clip").compute(np.zeros(100, dtype=np.float32)).any()


@pytest.mark.parametrize(
    ("rate", "n_fft", "bins", "fmin", "fmax"),
    [
        (8_000, 256, 40, 0.0, None),
        (16_000, 1024, 64, 50.0, 7_600.0),
        (22_050, 2048, 128, 0.0, None),
    ],
)
def test_mel_bank_is_librosas(
    rate: int, n_fft: int, bins: int, fmin: float, fmax: float | None
) -> None:
    config = mel.MelConfig(rate=rate, n_fft=n_fft, bins=bins, fmin=fmin, fmax=fmax)
    expected = librosa.filters.mel(
        sr=rate, n_fft=n_fft, n_mels=bins, fmin=fmin, fmax=fmax, dtype=np.float64
    )
    np.testing.assert_allclose(mel.bank(config), expected, rtol=1e-6, atol=1e-12)


def test_mel_formula() -> None:
    wave = noise(8_000, 1)
    power = librosa.feature.melspectrogram(
        y=wave.astype(np.float64), sr=8_000, n_fft=256, hop_length=160, n_mels=40, dtype=np.float64
    )
    np.testing.assert_allclose(
        made("mel").compute(wave), np.log(power + 1e-6), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("stft", {"hop": 513}, r"hop: must be at most n_fft \(512\).* got 513"),
        ("mel", {"hop": 257}, r"hop: must be at most n_fft \(256\).* got 257"),
        (
            "stft",
            {"seconds": 0.01},
            r"seconds: must hold at least n_fft \(512\) samples, got 160 at 16000 Hz",
        ),
        ("stft", {"crop_seconds": 3.5}, r"crop_seconds: must be at most seconds \(3.0\), got 3.5"),
        ("mel", {"fmax": 4001.0}, r"fmax: must be at most half the rate \(4000\), got 4001"),
        ("mel", {"fmin": 300.0, "fmax": 300.0}, r"fmin: must be below fmax \(300\), got 300"),
        ("mel", {"fmin": 4000.0}, r"fmin: must be below fmax \(4000\), got 4000"),
        (
            "mel",
            {"bins": 256},
            r"bins: 256 are too many between 0 and 4000 Hz for n_fft 256 at 8000 Hz",
        ),
        ("mel", {"bins": 10**12}, r"bins: 1000000000000 are too many"),
        ("mel", {"fmin": 100.0, "fmax": 101.0, "bins": 1}, r"bins: 1 are too many"),
        ("stft", {"fill": "reflect"}, r"fill\s+Input should be 'tile' or 'zero'"),
        ("stft", {"bins": 40}, r"bins\s+Extra inputs are not permitted"),
    ],
)
def test_settings_that_contradict(name: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        made(name, **fields)


def test_banks_are_refused_where_librosas_has_an_empty_row() -> None:
    refused, empty = set(), set()
    for bins in range(100, 200, 5):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            if not librosa.filters.mel(sr=8_000, n_fft=256, n_mels=bins).any(axis=1).all():
                empty.add(bins)
        try:
            mel.MelConfig(bins=bins)
        except ValidationError:
            refused.add(bins)
    assert refused == empty
    assert 0 < len(empty) < 20
