"""fbank against Kaldi's algorithm, sample by sample and bin by bin."""

import math
from typing import Any

import numpy as np
import pytest

from tests.data.audio.frontends.clips import Double, Wave, made, noise, sine
from tune_mm.data.audio.frontends import fbank

EPS = 2.0**-23


def reference(wave: Wave) -> Double:
    """Kaldi's algorithm, sample by sample and bin by bin."""
    clip = wave.astype(np.float64) - wave.astype(np.float64).mean()
    out = []
    lowest, highest = 1127 * math.log(1 + 20 / 700), 1127 * math.log(1 + 8000 / 700)
    step = (highest - lowest) / 129
    for start in range(0, len(clip) - 400 + 1, 160):
        s = clip[start : start + 400] - clip[start : start + 400].mean()
        emphasised = [s[i] - 0.97 * s[max(i - 1, 0)] for i in range(400)]
        windowed = [
            e * (0.5 - 0.5 * math.cos(2 * math.pi * i / 399)) for i, e in enumerate(emphasised)
        ]
        power = np.abs(np.fft.fft(windowed + [0.0] * 112))[:256] ** 2
        row = []
        for b in range(128):
            left, centre, right = (
                lowest + b * step,
                lowest + (b + 1) * step,
                lowest + (b + 2) * step,
            )
            energy = 0.0
            for k in range(256):
                m = 1127 * math.log(1 + k * 16_000 / 512 / 700)
                if left < m < right:
                    energy += power[k] * ((m - left) / step if m <= centre else (right - m) / step)
            row.append(math.log(max(energy, EPS)))
        out.append(row)
    return np.array(out)


def normalised(x: Double | float) -> Any:
    return (x + 4.503877) / (2 * 5.141276)


def test_formula_and_padding() -> None:
    wave = noise(16_000, 0.2) + np.float32(0.3)
    expected = reference(wave)
    assert len(expected) == 1 + (3200 - 400) // 160
    found = made("fbank").compute(wave)
    np.testing.assert_allclose(found[: len(expected)], normalised(expected), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[len(expected) :], normalised(0.0), rtol=1e-6)


def test_of_a_long_clip_the_first_frames_are_kept() -> None:
    wave = noise(16_000, 12)
    found = made("fbank").compute(wave)
    # Each frame loses its own mean, so that of the whole clip changes none.
    np.testing.assert_allclose(found[:3], normalised(reference(wave[:720])), rtol=1e-5, atol=1e-5)
    last = wave[1023 * 160 : 1023 * 160 + 400]
    np.testing.assert_allclose(found[1023:], normalised(reference(last)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("samples", "frames"), [(1, 1), (399, 1), (400, 1), (559, 1), (560, 2), (163_840, 1022)]
)
def test_frames_fit_whole(samples: int, frames: int) -> None:
    assert fbank.log_mel(noise(16_000, samples / 16_000)).shape == (frames, 128)


def test_silence_is_the_floor() -> None:
    found = made("fbank").compute(np.zeros(16_000, dtype=np.float32))
    np.testing.assert_allclose(found[:98], normalised(math.log(EPS)), rtol=1e-6)


@pytest.mark.parametrize("hertz", [1000.0, 3000.0, 6000.0])
def test_a_tone_is_in_its_mel_band(hertz: float) -> None:
    found = made("fbank").compute(sine(hertz, 16_000, 1))[:98].argmax(axis=1)
    lowest, highest = (1127 * math.log(1 + f / 700) for f in (20, 8000))
    band = (1127 * math.log(1 + hertz / 700) - lowest) / (highest - lowest) * 129 - 1
    assert (np.abs(found - band) <= 1).all()
