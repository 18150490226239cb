"""What holds for every audio front-end: a new file in tune_mm/data/frontends/ is picked up by
itself.
"""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from tests.data.audio.frontends.clips import made, noise
from tune_mm import plugins
from tune_mm.config import Section
from tune_mm.data.audio.frontends.base import Frontend

NAMES = plugins.available("frontends")


@pytest.mark.parametrize("name", NAMES)
class TestEvery:
    def test_says_what_it_is(self, name: str) -> None:
        plugin = plugins.load("frontends", name)
        assert issubclass(plugin, Frontend)
        assert issubclass(plugin.Config, Section)
        assert plugin.Config().name == name
        with pytest.raises(ValidationError, match="Extra inputs"):
            plugin.Config(no_such_field=1)

    def test_a_batch_holds_what_is_stored_or_a_crop_in_time(self, name: str) -> None:
        frontend = made(name)
        time = frontend.time_axis
        assert frontend.shape[0] == 1
        assert frontend.shape[2 - time] == frontend.stored[1 - time]
        assert 1 <= frontend.shape[1 + time] <= frontend.stored[time]

    @pytest.mark.parametrize("seconds", [0, 0.01, 0.7, 3, 10, 12.34])
    def test_clips_of_any_length_give_what_is_stored(self, name: str, seconds: float) -> None:
        frontend = made(name)
        wave = noise(frontend.rate, seconds)
        before = wave.copy()
        found = frontend.compute(wave)
        assert found.dtype == np.float32
        assert found.shape == frontend.stored
        assert found.flags.c_contiguous
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(frontend.compute(wave), found)
        np.testing.assert_array_equal(wave, before)

    @pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
    def test_silence_and_a_constant_are_finite(self, name: str, value: float) -> None:
        frontend = made(name)
        for n in (1, frontend.rate):
            assert np.isfinite(frontend.compute(np.full(n, value, dtype=np.float32))).all()

    def test_a_click_appears_where_it_is_in_time(self, name: str) -> None:
        frontend = made(name)
        steps = frontend.stored[frontend.time_axis]
        # The length that each one brings a clip to; fbank: 400 + 1023 * 160 samples.
        seconds = {"fbank": 10.255, "stft_16k": 10, "mel": 1}.get(name, 3)
        places = []
        for share in (0.25, 0.75):
            wave = np.zeros(round(seconds * frontend.rate), dtype=np.float32)
            wave[int(share * len(wave))] = 1
            loud = frontend.compute(wave).sum(axis=1 - frontend.time_axis, dtype=np.float64)
            places.append(int(loud.argmax()) / steps)
        assert abs(places[0] - 0.25) < 0.03
        assert abs(places[1] - 0.75) < 0.03


@pytest.mark.parametrize(
    ("name", "fields", "stored", "shape"),
    [
        ("stft_22k", {}, (257, 188), (1, 257, 188)),
        ("spectrogram_16k", {"seconds": 3}, (257, 299), (1, 257, 299)),
        ("spectrogram_16k", {"seconds": 10}, (257, 1004), (1, 257, 1004)),
        ("fbank", {}, (1024, 128), (1, 1024, 128)),
        ("stft_16k", {}, (129, 1251), (1, 129, 626)),
        # 1 + 8000 / 160 columns.
        ("mel", {}, (40, 51), (1, 40, 51)),
        (
            "stft",
            {"rate": 16000, "n_fft": 400, "hop": 160, "seconds": 2.0},
            (201, 201),
            (1, 201, 201),
        ),
        ("stft", {"n_fft": 400, "seconds": 2.0, "crop_seconds": 0.5}, (201, 201), (1, 201, 51)),
        ("mel", {"bins": 20, "seconds": 1.5, "crop_seconds": 1.5}, (20, 76), (1, 20, 76)),
    ],
)
def test_published_and_chosen_shapes(
    name: str, fields: dict[str, Any], stored: tuple[int, int], shape: tuple[int, int, int]
) -> None:
    frontend = made(name, **fields)
    assert frontend.stored == stored
    assert frontend.shape == shape
    for seconds in (0.3, 3, 11):
        assert frontend.compute(noise(frontend.rate, seconds)).shape == stored


@pytest.mark.parametrize("n_fft", [16, 255, 256, 401, 1600])
@pytest.mark.parametrize("hop", [1, 7, 16])
@pytest.mark.parametrize("seconds", [0.1, 0.20006])
def test_the_shape_is_known_without_audio(n_fft: int, hop: int, seconds: float) -> None:
    frontend = made("stft", n_fft=n_fft, hop=hop, seconds=seconds)
    assert frontend.compute(noise(16_000, 0.15)).shape == frontend.stored
