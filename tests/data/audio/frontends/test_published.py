"""stft_22k, stft_16k and spectrogram_16k against their formulae."""

import math

import numpy as np
import pytest
from pydantic import ValidationError

from tests.data.audio.frontends.clips import Double, column, looped, made, noise, sine


class TestLogMagnitude:
    """stft_22k and stft_16k: log(|FFT of the windowed frame| + 1e-7)."""

    CASES = (("stft_22k", 22_050, 512, 353, 3), ("stft_16k", 16_000, 256, 128, 10))

    @pytest.mark.parametrize(("name", "rate", "n_fft", "hop", "seconds"), CASES)
    @pytest.mark.parametrize("length", [0.4, 2.9, 13])
    def test_columns(
        self, name: str, rate: int, n_fft: int, hop: int, seconds: int, length: float
    ) -> None:
        wave = noise(rate, length, amplitude=0.6)
        clip = np.clip(looped(wave, seconds * rate), -1, 1)
        found = made(name).compute(wave)
        for t in (0, 1, 60, found.shape[1] - 1):
            expected = np.log(column(clip, n_fft, hop, t) + 1e-7)
            np.testing.assert_allclose(found[:, t], expected, rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(("name", "rate", "n_fft", "hop", "seconds"), CASES)
    def test_silence_is_the_floor(
        self, name: str, rate: int, n_fft: int, hop: int, seconds: int
    ) -> None:
        found = made(name).compute(np.zeros(rate, dtype=np.float32))
        np.testing.assert_allclose(found, math.log(1e-7), rtol=1e-6)

    @pytest.mark.parametrize(("name", "rate", "n_fft", "hop", "seconds"), CASES)
    def test_a_tone_is_in_its_row(
        self, name: str, rate: int, n_fft: int, hop: int, seconds: int
    ) -> None:
        row = 40
        found = made(name).compute(sine(row * rate / n_fft, rate, seconds))
        assert (found[:, 2:-2].argmax(axis=0) == row).all()
        # A sine of amplitude a in the middle of a row: a / 2 times the sum of the window, n_fft /
        # 2.
        np.testing.assert_allclose(found[row, 2:-2], math.log(0.5 / 2 * n_fft / 2), atol=1e-3)

    def test_a_shift_of_one_hop_is_a_shift_of_one_column(self) -> None:
        wave = noise(16_000, 10)
        found, later = made("stft_16k").compute(wave), made("stft_16k").compute(np.roll(wave, 128))
        np.testing.assert_allclose(later[:, 3:-2], found[:, 2:-3], rtol=1e-5, atol=1e-5)


class TestSpectrogram16k:
    def reference(self, clip: Double) -> Double:
        """log(P + 1e-7): segments every 159 samples, their mean removed, Tukey window of shape 0.25
        (its cosine lobes 1/8 of the period each), P = |FFT|^2 / (rate sum w^2), doubled for the
        rows between 0 and half the rate.
        """
        n, edge = 512, 512 / 8
        window = np.ones(n)
        for i in range(n):
            nearest = min(i, n - i)
            if nearest < edge:
                window[i] = 0.5 - 0.5 * math.cos(math.pi * nearest / edge)
        columns = []
        for start in range(0, len(clip) - n + 1, 512 - 353):
            segment = clip[start : start + n]
            power = np.abs(np.fft.rfft((segment - segment.mean()) * window)) ** 2 / (
                16_000 * (window**2).sum()
            )
            power[1:-1] *= 2
            columns.append(np.log(power + 1e-7))
        return np.array(columns).T

    @pytest.mark.parametrize(("seconds", "length"), [(3, 1.3), (3, 3), (3, 5), (10, 10), (1.25, 2)])
    def test_formula(self, seconds: float, length: float) -> None:
        wave = noise(16_000, length)
        x = self.reference(looped(wave, round(seconds * 16_000)))
        expected = (x - x.mean()) / (x.std() + 1e-9)
        found = made("spectrogram_16k", seconds=seconds).compute(wave)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)

    def test_silence_is_zero(self) -> None:
        assert not made("spectrogram_16k").compute(np.zeros(16_000, dtype=np.float32)).any()

    @pytest.mark.parametrize("seconds", [0.99, 0, -1, 1e9])
    def test_seconds_out_of_range(self, seconds: float) -> None:
        with pytest.raises(ValidationError, match="seconds"):
            made("spectrogram_16k", seconds=seconds)
