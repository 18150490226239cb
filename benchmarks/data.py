"""What the store of spectrograms and frames saves: samples per second and memory, on files like
CREMA-D's.

    python benchmarks/data.py [--clips 256] [--frames 1] [--rounds 3]

Files: per clip a WAV of 2.5 s at 16 kHz and three JPEGs of 480 x 360, written to a temporary
folder. Cases, interleaved in one process: `plain` reads, decodes and transforms every sample in
every epoch, as public code does (librosa at 22.05 kHz, STFT of 512 with hop 353; Pillow,
torchvision's random resized crop and flip); `first` builds the stores in an empty cache and takes
an epoch of training batches of 64; `later` takes such an epoch from stores that are there. Files
are in the page cache in all cases; batches stay on the CPU. torch has one thread, as in a trial
with one CPU.

Memory: one against four processes that each take an epoch from the same stores. Data memory is the
proportional set size (Pss, which divides a shared page among those who map it) of the mapped files,
summed over the processes while all are alive; and their whole Pss minus that of as many processes
that import the same and open no data. Linux only. Prints tables and writes
benchmarks/results/data.json.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import librosa
import numpy as np
import soundfile
import torch
from _measure import interleave, save, table, verdict
from PIL import Image
from torch import Tensor

from tune_mm import plugins
from tune_mm._vision import torchvision
from tune_mm.core.types import Split
from tune_mm.data.audio.spectrograms import open_spectrograms
from tune_mm.data.images.augment import IMAGENET_MEAN, IMAGENET_STD
from tune_mm.data.video.frames import FramesConfig, open_frames

BATCH, RATE, SECONDS, LENGTH = 64, 16_000, 2.5, 66_150  # LENGTH: 3 s at 22.05 kHz
FASTER, SHARED = 20.0, 1.2
PROCESSES = (1, 4)


def write(folder: Path, clips: int) -> None:
    """Files of smooth random sounds and pictures: JPEGs of pure noise would decode more slowly than
    photographs.
    """
    draw = np.random.default_rng(0)
    for i in range(clips):
        place = folder / "Image-01-FPS" / f"{i:05d}"
        place.mkdir(parents=True)
        (folder / "AudioWAV").mkdir(exist_ok=True)
        wave = 0.1 * np.cumsum(draw.normal(size=int(RATE * SECONDS))) / 50
        soundfile.write(folder / "AudioWAV" / f"{i:05d}.wav", wave.clip(-1, 1), RATE)
        for number in range(3):
            small = Image.fromarray(draw.integers(0, 256, (45, 60, 3), dtype=np.uint8))
            small.resize((480, 360), Image.Resampling.BICUBIC).save(
                place / f"{number:05d}.jpg", quality=90
            )


def sounds(folder: Path) -> dict[str, Path]:
    """Audio file by id."""
    return {path.stem: path for path in sorted((folder / "AudioWAV").iterdir())}


def pictures(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Image files by id."""
    return {
        place.name: tuple(sorted(place.iterdir()))
        for place in sorted((folder / "Image-01-FPS").iterdir())
    }


def sample_maker(frames: int) -> Callable[[Path, tuple[Path, ...]], tuple[Tensor, Tensor]]:
    """One sample the plain way: spectrogram [1, 257, 188] and frames [T, 3, 224, 224]."""
    transforms = torchvision().transforms
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(224),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def sample(sound: Path, images: tuple[Path, ...]) -> tuple[Tensor, Tensor]:
        wave, _ = librosa.load(sound, sr=22_050)
        wave = np.tile(wave, 3)[:LENGTH].clip(-1, 1)
        spectrogram = np.log(np.abs(librosa.stft(wave, n_fft=512, hop_length=353)) + 1e-7)
        chosen = sorted(torch.randperm(len(images))[:frames].tolist())
        pixels = torch.stack([transform(Image.open(images[i]).convert("RGB")) for i in chosen])
        return torch.from_numpy(spectrogram)[None].float(), pixels

    return sample


def plain_epoch(folder: Path, frames: int) -> Callable[[], None]:
    """An epoch of shuffled batches of samples made one by one."""
    audio, visual, sample = sounds(folder), pictures(folder), sample_maker(frames)

    ids = list(audio)

    def epoch() -> None:
        for batch in torch.randperm(len(ids)).split(BATCH):
            made = [sample(audio[ids[i]], visual[ids[i]]) for i in batch]
            for column in zip(*made, strict=True):
                torch.stack(column)

    return epoch


def stored(folder: Path, frames: int) -> Split:
    """The clips from the stores, which are built if they are not there."""
    audio, visual = sounds(folder), pictures(folder)
    spectrograms = open_spectrograms(
        "benchmark", audio, plugins.load("frontends", "stft_22k").Config()
    )
    images = open_frames("benchmark", visual, FramesConfig(frames=frames))
    ids = list(audio)
    inputs = {"audio": spectrograms.stored(ids), "visual": images.stored(ids)}
    return Split(inputs, torch.zeros(len(ids), dtype=torch.int64))


def stored_epoch(split: Split) -> None:
    """An epoch of shuffled training batches."""
    generator = torch.Generator().manual_seed(0)
    for index in torch.randperm(len(split), generator=generator).split(BATCH):
        split.batch(index, generator)


def speed(folder: Path, work: Path, clips: int, frames: int, rounds: int) -> dict[str, Any]:
    """Times of an epoch by case, samples per second and how many times faster than `plain`."""
    fresh = (work / f"cache-{i}" for i in itertools.count())

    def first() -> None:
        os.environ["TUNE_MM_CACHE"] = str(next(fresh))
        stored_epoch(stored(folder, frames))

    first()
    later = stored(folder, frames)
    cases = {
        "plain": plain_epoch(folder, frames),
        "first": first,
        "later": lambda: stored_epoch(later),
    }
    times = interleave(cases, rounds)
    rates = {case: clips / time.wall for case, time in times.items()}
    faster = {case: rate / rates["plain"] for case, rate in rates.items()}
    rows = [
        [case, f"{times[case].wall:.2f}", f"{rates[case]:.0f}", f"{faster[case]:.1f}"]
        for case in cases
    ]
    table(f"An epoch of {clips} clips", ("", "wall s", "samples/s", "times plain"), rows)
    reached = "reached" if faster["later"] >= FASTER else "MISSED"
    print(f"later epochs: {faster['later']:.1f} times plain, goal {FASTER:g} or more: {reached}")
    return {"times": times, "samples_per_second": rates, "times_plain": faster}


def proportional(process: int, below: str = "") -> int:
    """Pss of a process in bytes, of mapped files whose path holds `below` (all mappings when
    empty).
    """
    total, counts = 0, False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        key, _, rest = line.partition(" ")
        if not key.endswith(":"):
            counts = below in rest
        elif key == "Pss:" and counts:
            total += int(rest.split()[0]) * 1024
    return total


def readers(count: int, folder: Path, frames: int, mode: str) -> dict[str, int]:
    """Pss of `count` processes that have taken an epoch (mode "read") or only imported everything
    ("idle").
    """
    command = [sys.executable, __file__, "--reader", mode, str(folder), "--frames", str(frames)]
    started = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(count)
    ]
    try:
        for process in started:
            if process.stdout is None or process.stdout.readline() != b"ready\n":
                raise RuntimeError(f"a reader ended: {' '.join(command)}")
        total = sum(proportional(p.pid) for p in started)
        return {
            "total": total,
            "mapped": sum(proportional(p.pid, "/store/benchmark-") for p in started),
        }
    finally:
        for process in started:
            process.communicate()


def reader(mode: str, folder: Path, frames: int) -> None:
    """What a reading process does: an epoch, then nothing until its standard input ends."""
    kept = None
    torchvision()
    if mode == "read":
        kept = stored(folder, frames)
        stored_epoch(kept)
    print("ready", flush=True)
    sys.stdin.read()
    del kept


def memory(folder: Path, frames: int) -> dict[str, Any]:
    """Data memory of one and of four processes over the same stores."""
    stored(folder, frames)
    out: dict[str, Any] = {}
    for count in PROCESSES:
        read, idle = (readers(count, folder, frames, mode) for mode in ("read", "idle"))
        out[str(count)] = {
            "mapped": read["mapped"],
            "total_less_idle": read["total"] - idle["total"],
        }
    one, more = (out[str(count)] for count in PROCESSES)
    ratios = {key: more[key] / one[key] for key in one}
    rows = [
        [f"{n} processes", *(f"{found[key] / 2**20:.1f}" for key in one)]
        for n, found in out.items()
    ]
    table("Memory of the data", ("", "mapped store MiB", "all, less idle MiB"), rows)
    print(verdict("mapped store, 4 processes to 1", ratios["mapped"], SHARED))
    print(
        f"all memory less idle, 4 processes to 1: {ratios['total_less_idle']:.2f} (buffers of batches included)"
    )
    return {"bytes": out, "ratios": ratios}


def report(given: Mapping[str, int]) -> None:
    """Measure, print and save."""
    with tempfile.TemporaryDirectory(prefix="tune_mm-benchmark-") as name:
        work = Path(name)
        files = work / "files"
        write(files, given["clips"])
        out: dict[str, Any] = {"settings": dict(given), "speed": speed(files, work, **given)}
        out["memory"] = memory(files, given["frames"])
    save("data", out)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=256)
    parser.add_argument("--frames", type=int, default=1, help="frames of a sample")
    parser.add_argument("--rounds", type=int, default=3, help="timed epochs of each case")
    parser.add_argument(
        "--reader",
        nargs=2,
        metavar=("MODE", "FOLDER"),
        help="one process of the memory measurement",
    )
    given = parser.parse_args()
    if given.reader:
        reader(given.reader[0], Path(given.reader[1]), given.frames)
    else:
        torch.set_num_threads(1)
        report({"clips": given.clips, "frames": given.frames, "rounds": given.rounds})


if __name__ == "__main__":
    main()
