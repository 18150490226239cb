"""Audio files as mono waveforms at the rate that a front-end asks for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tune_mm.data.arrays.checks import DataError
from tune_mm.data.audio.frontends.base import Wave
from tune_mm.data.store import failures

# A damaged header may claim any rate; a clip of 1 Hz would become thousands of times as long at 16
# kHz.
RATES = (1_000, 768_000)


def read(path: Path, rate: int) -> Wave:
    """The waveform float32 [n], n >= 1, of a file at `rate` Hz: the mean of its channels, integers
    scaled to [-1, 1).

    Formats are those of libsndfile (WAV of 8, 16, 24, 32 bit or float, FLAC, OGG, MP3 ...), read
    through librosa.load and resampled by soxr (its high quality). A WAV that is cut off gives the
    samples that are there. Raises DataError naming the file when it cannot be read (MachineError:
    now), has no samples, or holds NaN or infinity.
    """
    # Slow to import, and not needed where a store exists already.
    import librosa
    import soundfile

    try:
        # For the system's own reason (no such file, permission denied), which libsndfile does not
        # give; and an opened SoundFile, since librosa would try other decoders, with a warning, on
        # a path that soundfile refuses.
        with path.open("rb"), soundfile.SoundFile(path) as sound:
            native = sound.samplerate
            if not RATES[0] <= native <= RATES[1]:
                raise DataError(
                    f"{path}: sampling rate must be between {RATES[0]} and {RATES[1]} Hz, got {native}"
                )
            wave, _ = librosa.load(sound, sr=None, mono=False)
    except OSError as error:
        failures.refuse(path, error)
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (soundfile.SoundFileError, TypeError, MemoryError) as error:
        # TypeError: a file named as headerless audio (.raw), whose format only its maker knows.
        # MemoryError: a damaged header that claims any length; a clip alone does not take much.
        reason = getattr(error, "error_string", str(error)) or type(error).__name__
        raise DataError(f"{path}: is not a readable audio file: {reason}") from error
    if not wave.size:
        raise DataError(f"{path}: has no samples")
    bad = int((~np.isfinite(wave)).sum())
    if bad:
        raise DataError(f"{path}: must be finite, got {bad} NaN or infinite samples")
    if wave.ndim == 1:
        mono = wave
    else:
        mono = wave.mean(axis=0, dtype=np.float64).astype(np.float32)
    return np.ascontiguousarray(
        librosa.resample(mono, orig_sr=native, target_sr=rate), dtype=np.float32
    )
