"""Frames on disk -> store -> batches."""

import copy
import errno
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from tune_mm._vision import torchvision
from tune_mm.core.types import Split
from tune_mm.data.base import DataError
from tune_mm.data.store.cache import Files
from tune_mm.data.video.frames import FramesConfig, choose, evenly, open_frames

torchvision()

from torchvision.transforms.v2 import functional as F  # noqa: E402  it can be imported only after the line above

PLAIN: dict[str, Any] = {"normalize": "none", "stored_size": None}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(path: Path, height: int, width: int, seed: int, mode: str = "RGB") -> Path:
    """Random colours without loss (PNG)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)
    return path


def pixels(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


def clip(folder: Path, name: str, frames: int, height: int = 20, width: int = 30) -> Files:
    return tuple(
        picture(folder / name / f"{i:05d}.png", height, width, 100 * len(name) + i)
        for i in range(frames)
    )


def number(frame: torch.Tensor, files: Files) -> int:
    """Which of the files a frame [3, H, W] of pixels / 255 shows."""
    found = [
        i
        for i, f in enumerate(files)
        if np.allclose(frame.numpy() * 255, pixels(f).transpose(2, 0, 1))
    ]
    assert len(found) == 1
    return found[0]


@pytest.fixture
def clips(tmp_path: Path) -> dict[str, Files]:
    """Clips of other sizes and numbers of frames."""
    return {
        "bb": clip(tmp_path, "bb", 5, 20, 30),
        "a": clip(tmp_path, "a", 1, 40, 24),
        "ccc": clip(tmp_path, "ccc", 3, 24, 24),
    }


def test_evaluation_resizes_the_chosen_frames(cache: Path, clips: dict[str, Files]) -> None:
    config = FramesConfig(frames=2, size=24)
    store = open_frames("small", clips, config)
    assert store.shape == config.shape == (2, 3, 24, 24)
    part = store.stored(["ccc", "a", "bb"])
    assert len(part) == 3 and part.shape == (2, 3, 24, 24)
    value, mask, _ = part.take(torch.tensor([2, 0, 0, 1]))
    assert mask is None and value.shape == (4, 2, 3, 24, 24) and value.dtype == torch.float32
    mean, std = (
        torch.tensor(x).reshape(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    # floor((i + 1/2) n / 2): 5 frames 1 and 3; 3 frames 0 and 2; 1 frame 0 twice
    for row, name, frame in (
        (0, "bb", (1, 3)),
        (1, "ccc", (0, 2)),
        (2, "ccc", (0, 2)),
        (3, "a", (0, 0)),
    ):
        for t in range(2):
            image = torch.from_numpy(pixels(clips[name][frame[t]]).transpose(2, 0, 1).copy())
            expected = (F.resize(image, [24, 24], antialias=True) / 255 - mean) / std
            # one step of 255, as planar and interleaved kernels may round a half differently
            torch.testing.assert_close(value[row, t], expected, atol=1.01 / 255 / 0.224, rtol=0)


def test_evaluation_is_the_same_at_every_call(cache: Path, clips: dict[str, Files]) -> None:
    part = open_frames("small", clips, FramesConfig(frames=3, size=16)).stored(["a", "bb"])
    index = torch.tensor([0, 1])
    assert torch.equal(part.take(index).value, part.take(index).value)


def test_training_draws_from_its_generator_only(cache: Path, clips: dict[str, Files]) -> None:
    part = open_frames("small", clips, FramesConfig(frames=2, size=16)).stored(["a", "bb", "ccc"])
    index = torch.arange(3)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, same, other = (part.take(index, seeded(s)).value for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_training_crop_is_a_box_of_the_frame(cache: Path, tmp_path: Path) -> None:
    # Pixels tell their place: red 4 * row, green 4 * column; a crop that is resized stays linear in
    # both.
    path = tmp_path / "place.png"
    rows, columns = np.mgrid[:60, :60].astype(np.uint8) * 4
    Image.fromarray(np.stack((rows, columns, 0 * rows), 2)).save(path)
    config = FramesConfig(size=32, flip=False, **PLAIN)
    part = open_frames("small", {"x": (path,)}, config).stored(["x"])
    value = part.take(torch.zeros(50, dtype=torch.int64), seeded()).value[:, 0] * 255 / 4
    heights = (value[:, 0, -1] - value[:, 0, 0]).mean(1) * 32 / 31
    widths = (value[:, 1, :, -1] - value[:, 1, :, 0]).mean(1) * 32 / 31
    assert value[:, :2].min() >= 0 and value[:, :2].max() <= 59.3
    area, ratio = heights * widths / 3600, widths / heights
    assert area.min() > 0.04 and area.max() <= 1.1 and area.std() > 0.1
    assert ratio.min() > 0.65 and ratio.max() < 1.55 and ratio.std() > 0.05
    assert (value[1:] != value[:1]).flatten(1).any(1).all()


def test_flip_mirrors_half_of_the_frames(cache: Path, tmp_path: Path) -> None:
    files = clip(tmp_path, "x", 1, 16, 16)
    plain = torch.from_numpy(pixels(files[0]).transpose(2, 0, 1) / 255).float()
    for flip in (True, False):
        config = FramesConfig(size=16, crop=False, flip=flip, **PLAIN)
        part = open_frames("small", {"x": files}, config).stored(["x"])
        value = part.take(torch.zeros(200, dtype=torch.int64), seeded()).value[:, 0]
        mirrored = sum(torch.allclose(v, plain.flip(2)) for v in value)
        assert mirrored + sum(torch.allclose(v, plain) for v in value) == 200
        # 100 of 200 give or take 4 standard deviations of 7
        assert abs(mirrored - 100) < 28 if flip else mirrored == 0


def test_training_frames_are_different_ones_in_order_of_time(cache: Path, tmp_path: Path) -> None:
    files = clip(tmp_path, "x", 5, 16, 16)
    config = FramesConfig(frames=3, size=16, crop=False, flip=False, **PLAIN)
    part = open_frames("small", {"x": files}, config).stored(["x"])
    value = part.take(torch.zeros(100, dtype=torch.int64), seeded()).value
    chosen = [tuple(number(frame, files) for frame in sample) for sample in value]
    assert all(a < b < c for a, b, c in chosen)
    assert len(set(chosen)) == 10  # all (5 choose 3)


def test_choice_of_frames() -> None:
    counts = np.array([1, 2, 3, 4, 9])
    # floor((i + 1/2) n / 3)
    expected = [[0, 0, 0], [0, 1, 1], [0, 1, 2], [0, 2, 3], [1, 4, 7]]
    assert choose(counts, 3, None).tolist() == expected
    drawn = choose(counts, 3, seeded())
    assert drawn[:3].tolist() == expected[:3]
    many = choose(np.full(9000, 9), 1, seeded())
    # each of 9 frames 1000 times, give or take 4.5 standard deviations of 30
    assert np.abs(np.bincount(many[:, 0], minlength=9) - 1000).max() < 135


def test_keep_stores_evenly_spaced_frames(cache: Path, tmp_path: Path) -> None:
    files = clip(tmp_path, "x", 7, 16, 16)
    assert evenly(files, 2) == (files[1], files[5])  # floor((i + 1/2) 7 / 2)
    assert evenly(files, 7) == evenly(files, None) == files
    config = FramesConfig(frames=2, size=16, keep=2, **PLAIN)
    value = (
        open_frames("small", {"x": files}, config).stored(["x"]).take(torch.tensor([0])).value[0]
    )
    assert [number(frame, files) for frame in value] == [1, 5]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(40, 60, (20, 30)), (60, 40, (30, 20)), (50, 33, (30, 20)), (18, 90, (18, 90))],
)
def test_larger_frames_are_reduced_and_none_enlarged(
    cache: Path, tmp_path: Path, height: int, width: int, expected: tuple[int, int]
) -> None:
    path = picture(tmp_path / "x.png", height, width, 0)
    store = open_frames("small", {"x": (path,)}, FramesConfig(stored_size=20))
    assert store.index.tolist() == [[0, 1, *expected]]
    image = Image.open(path)
    resized = (
        image
        if expected == (height, width)
        else image.resize(expected[::-1], Image.Resampling.BILINEAR)
    )
    np.testing.assert_array_equal(store.pixels, np.asarray(resized).ravel())


def test_frames_of_a_clip_get_the_size_of_its_first(cache: Path, tmp_path: Path) -> None:
    files = (picture(tmp_path / "0.png", 12, 10, 0), picture(tmp_path / "1.png", 30, 30, 1))
    store = open_frames("small", {"x": files}, FramesConfig())
    assert store.index.tolist() == [[0, 2, 12, 10]]
    second = np.asarray(Image.open(files[1]).resize((10, 12), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(store.pixels[360:].reshape(12, 10, 3), second)


def test_grey(cache: Path, tmp_path: Path) -> None:
    path = picture(tmp_path / "x.png", 16, 16, 0)
    store = open_frames(
        "small", {"x": (path,)}, FramesConfig(size=16, color="grey", normalize="half")
    )
    value = store.stored(["x"]).take(torch.tensor([0])).value
    assert value.shape == (1, 1, 1, 16, 16)
    # ITU-R 601: 0.299 R + 0.587 G + 0.114 B, rounded to one of 255 steps
    grey = pixels(path) @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(value[0, 0, 0].numpy(), (grey / 255 - 0.5) / 0.5, atol=2.01 / 255)


def test_images_of_other_modes_are_converted(cache: Path, tmp_path: Path) -> None:
    modes = ("L", "P", "RGBA", "CMYK")
    clips = {}
    for mode in modes:
        suffix = "tif" if mode == "CMYK" else "png"
        clips[mode] = (picture(tmp_path / f"{mode}.{suffix}", 16, 16, 0, mode),)
    store = open_frames("small", clips, FramesConfig(size=16, **PLAIN))
    assert store.bad == {}
    value = store.stored(modes).take(torch.arange(4)).value[:, 0] * 255
    for mode, found in zip(modes, value, strict=True):
        np.testing.assert_allclose(
            found.numpy(), pixels(clips[mode][0]).transpose(2, 0, 1), atol=1e-3
        )


def test_unreadable_clips_are_listed_and_the_others_stored(cache: Path, tmp_path: Path) -> None:
    good = clip(tmp_path, "good", 2, 64, 64)
    cut = tmp_path / "cut.png"
    cut.write_bytes(good[0].read_bytes()[:3000])
    text = tmp_path / "text.png"
    text.write_text("no picture")
    deep = tmp_path / "deep.png"
    Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16)).save(deep)
    clips = {
        "cut": (good[1], cut),
        "deep": (deep,),
        "good": good,
        "missing": (tmp_path / "missing.png",),
        "none": (),
        "text": (text,),
    }
    store = open_frames("small", clips, FramesConfig(size=64, **PLAIN))
    assert set(store.bad) == set(clips) - {"good"}
    for name, path in (
        ("cut", cut),
        ("deep", deep),
        ("missing", tmp_path / "missing.png"),
        ("text", text),
    ):
        assert store.bad[name].startswith(f"{path}: is not a readable image: ")
        assert store.bad[name].count(str(path)) == 1
    assert store.bad["none"] == "no frames"
    assert "mode I;16" in store.bad["deep"]
    value = store.stored(["good", "cut", "text"]).take(torch.arange(3)).value
    assert number(value[0, 0], good) == 1
    assert value[1:].abs().max() == 0


@pytest.mark.parametrize(
    "failure", [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), MemoryError()]
)
@pytest.mark.parametrize("at", [1, 2, 3], ids=["header", "first frame", "last frame"])
def test_a_failure_of_the_machine_is_not_remembered(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, at: int
) -> None:
    """It ends the run, naming the file; the next run finds the clip good."""
    files, opened, calls = clip(tmp_path, "good", 2), Image.open, list[Path]()

    def failing(path: Path) -> Image.Image:
        calls.append(path)
        if len(calls) == at:
            raise failure
        return opened(path)

    with monkeypatch.context() as now:
        now.setattr(Image, "open", failing)
        with pytest.raises(DataError, match=r"good/0000\d\.png: cannot be read now: .*again$"):
            open_frames("small", {"good": files}, FramesConfig(size=16, **PLAIN))
    assert open_frames("small", {"good": files}, FramesConfig(size=16, **PLAIN)).bad == {}


def test_options_of_batches_share_a_store(cache: Path, clips: dict[str, Files]) -> None:
    def folder(**options: Any) -> Path:
        return open_frames("small", clips, FramesConfig(**options)).opened.folder

    first = folder()
    inode = first.stat().st_ino
    same = folder(frames=3, size=8, crop=False, flip=False, scale_min=0.5, normalize="half")
    assert same == first and same.stat().st_ino == inode
    others = {
        folder(stored_size=10),
        folder(stored_size=None),
        folder(keep=1),
        folder(color="grey"),
    }
    assert len(others | {first}) == 5


def test_split_moves_and_batches_it(cache: Path, clips: dict[str, Files]) -> None:
    part = open_frames("small", clips, FramesConfig(size=16)).stored(["a", "bb"])
    split = Split({"visual": part}, torch.tensor([0, 1])).to(torch.device("cpu"))
    batch = split.batch(torch.tensor([1]), seeded())
    assert torch.equal(batch.inputs["visual"].value, part.take(torch.tensor([1]), seeded()).value)


def test_pickles_and_copies_by_path(cache: Path, clips: dict[str, Files]) -> None:
    part = open_frames("small", clips, FramesConfig(size=16)).stored(["a", "bb"])
    index = torch.tensor([1, 0])
    expected = part.take(index, seeded()).value
    text = pickle.dumps(part)
    assert len(text) < 3000  # the pixels alone are 20 000 bytes
    for other in (pickle.loads(text), copy.deepcopy(part)):
        assert torch.equal(other.take(index, seeded()).value, expected)


@pytest.mark.filterwarnings("error")
def test_read_only_maps_warn_of_nothing(cache: Path, clips: dict[str, Files]) -> None:
    store = open_frames("small", clips, FramesConfig(size=16, crop=False))
    store.stored(["a"]).take(torch.tensor([0]), seeded())
    assert not store.pixels.flags.writeable


@pytest.mark.parametrize("file", ["frames.npy", "index.npy"])
def test_damaged_store(cache: Path, clips: dict[str, Files], file: str) -> None:
    path = open_frames("small", clips, FramesConfig()).opened.folder / file
    np.save(path, np.load(path)[:-1])
    with pytest.raises(DataError, match=rf"damaged \({file}\); remove the folder"):
        open_frames("small", clips, FramesConfig())


def test_config_refuses_what_cannot_be() -> None:
    cases: tuple[dict[str, Any], ...] = (
        {"frames": 0},
        {"size": 0},
        {"scale_min": 0.0},
        {"scale_min": 1.5},
        {"keep": 1, "frames": 2},
    )
    for wrong in cases:
        with pytest.raises(ValidationError, match=next(iter(wrong))):
            FramesConfig(**wrong)
