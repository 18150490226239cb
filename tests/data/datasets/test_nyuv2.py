"""NYUv2: values as the files hold them, weights by their definition, one geometry for all, and what
is refused.
"""

from __future__ import annotations

import colorsys
import errno
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import matplotlib.colors
import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from tune_mm.config import load_config, with_overrides
from tune_mm.core.build import check
from tune_mm.core.run import Run
from tune_mm.core.types import VOID, Dataset, Padded
from tune_mm.data import base
from tune_mm.data.datasets.nyuv2 import CLASSES, Nyuv2, Nyuv2Config
from tune_mm.data.images import pictures
from tune_mm.data.images.colour import Jitter, to_hsv, to_rgb
from tune_mm.data.images.zoom import Zoom
from tune_mm.tune.space import space as space_files

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
SMALL = {"train": 12, "val": 10, "test": 10}
ESANET = {
    "encoder": {"name": "esanet", "channels": (4, 4, 6, 6, 8), "blocks": (1, 1, 1, 1)},
    "fusion": {"name": "esanet", "decoder": (8, 6, 6), "blocks": 0, "bins": (1, 2), "reduction": 2},
}


@pytest.fixture(autouse=True)
def own_cache(cache: Path) -> None:
    """Each test decodes its own files."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """32 pictures of 24 x 32, 22 of them in train.txt."""
    shapes = {"rgb": (3, 24, 32), "depth": (1, 24, 32)}
    base.make(Nyuv2Config(), tmp_path, Nyuv2.options(Nyuv2Config()).changed(**SMALL, shapes=shapes))
    return tmp_path / "nyuv2"


def load(root: Path, **settings: object) -> Dataset:
    config = with_overrides(
        load_config("nyuv2"), {f"data.{k}": v for k, v in settings.items()}
    ).data
    return base.load(config, base.resolve(config, root))


def picture(root: Path, folder: str, name: str) -> np.ndarray:
    return np.asarray(Image.open(root / Path(name).parent / folder / f"{Path(name).name}.png"))


def change(path: Path, new: Callable[[np.ndarray], np.ndarray]) -> None:
    Image.fromarray(new(np.asarray(Image.open(path)))).save(path)


def test_batches_hold_the_files_values(root: Path) -> None:
    data = load(root)
    assert data.spec.shapes == {"rgb": (3, 24, 32), "depth": (1, 24, 32)}
    for split in data.splits.values():
        index = torch.tensor([len(split) - 1, 0])
        batch = split.batch(index)
        for k, i in enumerate(index.tolist()):
            rgb = (picture(root, "rgb", split.ids[i]) / 255 - MEAN) / STD
            depth = (picture(root, "depth", split.ids[i]) - 2841.95) / 1417.26
            labels = picture(root, "labels_40", split.ids[i])
            np.testing.assert_allclose(
                batch.inputs["rgb"].value[k], rgb.transpose(2, 0, 1), atol=1e-5
            )
            np.testing.assert_allclose(batch.inputs["depth"].value[k, 0], depth, atol=1e-5)
            np.testing.assert_array_equal(
                batch.target[k], np.where(labels == 0, VOID, labels.astype(int) - 1)
            )


def test_a_tenth_of_train_is_held_out(root: Path) -> None:
    one, same, other = (load(root, split_seed=seed).splits for seed in (0, 0, 1))
    assert {name: len(split) for name, split in one.items()} == {"train": 20, "val": 2, "test": 10}
    listed = {f"train/{name}" for name in (root / "train.txt").read_text().split()}
    assert {*one["train"].ids, *one["val"].ids} == listed
    assert one["val"].ids == same["val"].ids != other["val"].ids


def test_weights_are_median_frequencies_of_train(root: Path) -> None:
    """Eigen & Fergus: pixels of a class over all pixels, void too, of the pictures that hold it;
    median over own.
    """
    data = load(root)
    masks = [picture(root, "labels_40", i) for i in data.splits["train"].ids]
    assert any((m == 0).any() for m in masks)
    shares = []
    for c in range(1, 41):
        held = [m for m in masks if (m == c).any()]
        shares.append(sum(int((m == c).sum()) for m in held) / (24 * 32 * len(held)) if held else 0)
    middle = np.median([s for s in shares if s])
    assert data.spec.task.weights == pytest.approx([middle / s if s else 0 for s in shares])
    assert sum(w > 0 for w in data.spec.task.weights) == 5
    assert load(root, weights="none").spec.task.weights == ()
    assert data.spec.task.class_names == CLASSES
    assert len(set(CLASSES)) == 40


def test_masks_are_mapped_from_the_store_without_a_warning(root: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        target = load(root).splits["train"].target
    assert target.dtype == torch.uint8
    if Path("/proc/self/maps").is_file():
        rows = [
            line.split()
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "nyuv2-labels-" in line
        ]
        spans = [[int(end, 16) for end in row[0].split("-")] for row in rows]
        assert any(start <= target.data_ptr() < end for start, end in spans)


def test_another_size_is_resized_to_nearest_labels_and_depths(root: Path) -> None:
    split = load(root, size=(12, 16)).splits["test"]
    batch = split.batch(torch.tensor([0]))
    labels = picture(root, "labels_40", split.ids[0])[::2, ::2].astype(int)
    np.testing.assert_array_equal(batch.target[0], np.where(labels == 0, VOID, labels - 1))
    depth = (picture(root, "depth", split.ids[0])[::2, ::2] - 2841.95) / 1417.26
    np.testing.assert_allclose(batch.inputs["depth"].value[0, 0], depth, atol=1e-5)
    assert batch.inputs["rgb"].value.shape == (1, 3, 12, 16)


def test_training_changes_depth_and_labels_alike_and_follows_its_generator(root: Path) -> None:
    split, index = load(root).splits["train"], torch.arange(8)
    one, same = (split.batch(index, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one.inputs["rgb"].value, same.inputs["rgb"].value)
    assert not torch.equal(one.inputs["rgb"].value, split.batch(index).inputs["rgb"].value)
    classes = torch.unique(split.batch(index).target)
    assert set(torch.unique(one.target).tolist()) <= set(classes.tolist())


def zoomed(
    factor: float, flip: bool, count: int = 40
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """rgb, depth and target after the transform, of pictures whose pixels say where they were: 1000
    y + x.
    """
    place = 1000.0 * torch.arange(24)[:, None] + torch.arange(32)
    images = place.expand(count, 1, 24, 32)
    inputs = {"rgb": Padded(images.double()), "depth": Padded(images)}
    zoom = Zoom((factor, factor), flip, frozenset({"depth"}))
    out, target = zoom(inputs, images[:, 0].long(), torch.Generator().manual_seed(0))
    return out["rgb"].value[:, 0], out["depth"].value[:, 0], target


def test_zoom_takes_the_same_pixels_of_depth_and_target() -> None:
    _, depth, target = zoomed(1.4, True)
    assert torch.equal(depth.long(), target)
    x, y = target % 1000, target // 1000
    assert bool((x.diff(dim=2).abs() <= 1).all())
    assert bool(((y.diff(dim=1) >= 0) & (y.diff(dim=1) <= 1)).all())
    forward = x[:, 0, -1] > x[:, 0, 0]
    assert 5 < int(forward.sum()) < 35
    # 24 rows of round(1.4 * 24) = 34: windows begin at rows 0 to 10, that is at 0 to 7 of the
    # picture.
    assert set(y[:, 0, 0].tolist()) <= set(range(8))
    assert len(set(y[:, 0, 0].tolist())) > 4


def test_zoom_interpolates_colours() -> None:
    """A ramp stays a ramp, of 24 / 30 and 32 / 40 of its slope away from the borders of the
    picture.
    """
    rgb, depth, _ = zoomed(1.25, False)
    inner = rgb[:, 2:-2, 2:-2]
    torch.testing.assert_close(inner.diff(dim=2), torch.full_like(inner.diff(dim=2), 0.8))
    torch.testing.assert_close(inner.diff(dim=1), torch.full_like(inner.diff(dim=1), 800.0))
    assert bool((depth.diff(dim=2).min() == 0) & (depth.diff(dim=2).max() == 1))
    plain, _, target = zoomed(1.0, False, 2)
    assert torch.equal(plain.long(), target)


def test_zoom_cuts_and_mirrors_colours_as_depth_and_target() -> None:
    """Channels are the pixel's x and y. Enlarged by f, pixel i lies at (i + 1/2) / f - 1/2 of the
    picture, between the centres of pixels, and its nearest is floor(i / f): the former is from 1/2
    - 1/2f (f is 34/24 at most: 0.147) below the latter to 1/2 + 1/2f (at most 1) above it.
    """
    count, height, width = 60, 24, 32
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    places = torch.stack([x, y]).double().expand(count, 2, height, width)
    zoom = Zoom((1.0, 1.4), True, frozenset({"depth"}))
    inputs = {"rgb": Padded(places), "depth": Padded(places)}
    out, target = zoom(
        inputs, (100 * y + x).expand(count, height, width), torch.Generator().manual_seed(0)
    )
    colours, depth = out["rgb"].value, out["depth"].value
    assert torch.equal(100 * depth[:, 1] + depth[:, 0], target.double())
    assert float((colours - depth).min()) >= -0.15
    assert float((colours - depth).max()) <= 1
    mirrored = depth[:, 0, 0, -1] < depth[:, 0, 0, 0]
    assert 15 < int(mirrored.sum()) < 45
    assert torch.equal(colours[:, 0, 0, -1] < colours[:, 0, 0, 0], mirrored)
    assert len({tuple(corner) for corner in depth[:, :, 0, 0].tolist()}) > 30


def test_zoom_leaves_evaluation_alone() -> None:
    image, target = torch.randn(2, 3, 8, 8), torch.zeros(2, 8, 8, dtype=torch.int64)
    out, same = Zoom()({"rgb": Padded(image)}, target)
    assert out["rgb"].value is image
    assert same is target


def test_colours_pass_hsv_and_back_as_matplotlib_has_it() -> None:
    images = torch.rand(2, 3, 6, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    images[0, :, 0] = 0.0
    images[0, :, 1] = 0.3  # grey
    images[1, 1:, 2] = 0.0  # red
    expected = matplotlib.colors.rgb_to_hsv(images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(to_hsv(images).permute(0, 2, 3, 1), expected, atol=1e-12)
    torch.testing.assert_close(to_rgb(to_hsv(images)), images)


def test_jitter_keeps_within_its_bounds() -> None:
    images = 0.2 + 0.6 * torch.rand(
        64, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(1)
    torch.testing.assert_close(Jitter(0, 0, 0)(images, generator), images)
    before, after = to_hsv(images), to_hsv(Jitter(0.0, 0.1, 0.05)(images, generator))
    moved = (after - before)[:, 2].flatten(1)
    torch.testing.assert_close(moved, moved[:, :1].expand_as(moved))  # one number per picture
    assert 0.03 < moved.abs().max() <= 0.05
    factor = (after[:, 1] / before[:, 1]).flatten(1).median(1).values
    assert 0.9 <= factor.min() < 0.95
    assert 1.05 < factor.max() <= 1.1 + 1e-9


def test_jitter_changes_hue_saturation_and_value_as_colorsys_has_them() -> None:
    """One factor on the hue, one on the saturation, one number added to the value, of each picture,
    cut to 0..1.
    """
    images = torch.rand(
        12, 3, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    images[:, :, 0, 0] = torch.tensor(
        [0.3, 0.5, 0.45], dtype=torch.float64
    )  # not cut: these tell the three numbers
    images[:, :, 0, 1] = torch.tensor(
        [0.9, 0.1, 0.101], dtype=torch.float64
    )  # hue 0.9998: cut where the factor is > 1
    after = Jitter(0.4, 0.3, 0.2)(images, torch.Generator().manual_seed(3))
    drawn = []
    for image, changed in zip(
        images.flatten(2).mT.tolist(), after.flatten(2).mT.tolist(), strict=True
    ):
        (h, s, v), (h1, s1, v1) = colorsys.rgb_to_hsv(*image[0]), colorsys.rgb_to_hsv(*changed[0])
        factor, share, more = h1 / h, s1 / s, v1 - v
        drawn.append((factor - 1, share - 1, more))
        for pixel, found in zip(image, changed, strict=True):
            h, s, v = colorsys.rgb_to_hsv(*pixel)
            wanted = colorsys.hsv_to_rgb(
                min(h * factor, 1), min(s * share, 1), min(max(v + more, 0), 1)
            )
            assert found == pytest.approx(wanted, abs=1e-6)  # the numbers are drawn in float32
    least, most = np.min(drawn, 0), np.max(drawn, 0)
    assert (np.array([-0.4, -0.3, -0.2]) <= least + 1e-6).all() and (
        most - 1e-6 <= np.array([0.4, 0.3, 0.2])
    ).all()
    assert (least < np.array([-0.1, -0.1, -0.05])).all() and (
        most > np.array([0.1, 0.1, 0.05])
    ).all()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda r: (r / "train/depth/0003.png").unlink(),
            r"train\.txt line 3: no file .*train/depth/0003\.png",
        ),
        (
            lambda r: (r / "train/rgb/0004.png").write_bytes(b"x"),
            r"rgb/0004\.png: is not a readable picture",
        ),
        (
            lambda r: change(r / "test/labels_40/0024.png", lambda a: a + np.uint8(37)),
            r"between 0 and 40, got 4",
        ),
        (
            lambda r: change(r / "train/depth/0002.png", lambda a: a.astype(np.uint8)),
            r"0002\.png: .* 16-bit grey, got",
        ),
        (
            lambda r: change(r / "train/rgb/0002.png", lambda a: a[:20]),
            r"24 x 32, got 20 x 32; or set data\.size",
        ),
        (lambda r: (r / "test.txt").write_text("0001\n"), r"test\.txt line 1: no file"),
        (lambda r: (r / "test.txt").write_text(""), r"test\.txt: must name at least one picture"),
    ],
)
def test_what_is_wrong_is_named(root: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(root)
    with pytest.raises(base.DataError, match=message):
        load(root)


@pytest.mark.parametrize(
    ("place", "failure", "why"),
    [
        (
            "train/rgb/0003.png",
            OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
            "Too many open files",
        ),
        ("test/depth/0025.png", OSError(errno.EIO, os.strerror(errno.EIO)), "Input/output error"),
        ("test/labels_40/0025.png", MemoryError(), "too little memory"),
        # As Pillow's decoders report it.
        (
            "train/rgb/0003.png",
            OSError(f"{ImageFile.ERRORS[-9]} when reading image file"),
            "too little memory",
        ),
    ],
)
def test_a_passing_failure_is_not_remembered(
    root: Path, place: str, failure: Exception, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole files, one of which cannot be read once; the next run must find all of them good."""
    opened = Image.open

    def failing(path: Path) -> Image.Image:
        if path == root / place:
            raise failure
        return opened(path)

    with monkeypatch.context() as now:
        now.setattr(Image, "open", failing)
        with pytest.raises(
            base.DataError, match=rf"{place}: cannot be read now: {why}; run the same"
        ):
            load(root)
    assert len(load(root).splits["train"]) == 20


def test_a_file_that_is_gone_is_named_and_not_remembered(root: Path, tmp_path: Path) -> None:
    """The system says so, not Pillow: the store is built once the file is there."""
    path, away = root / "train" / "depth" / "0002.png", tmp_path / "away.png"
    path.rename(away)
    for _ in range(2):
        with pytest.raises(
            base.DataError, match=r"0002\.png: is not a readable picture: No such file"
        ):
            pictures.open_pictures("own", "depth", {"a": path}, (24, 32), False)
    away.rename(path)
    assert pictures.open_pictures("own", "depth", {"a": path}, (24, 32), False).values.shape == (
        1,
        24,
        32,
    )


@pytest.mark.parametrize(
    ("suffix", "share"), [("png", 0.02), ("png", 0.5), ("png", 0.9), ("jpg", 0.5), ("tif", 0.5)]
)
def test_a_file_that_is_cut_off_is_bad_for_good(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(
        path
    )
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    for _ in range(2):
        with pytest.raises(base.DataError, match=rf"cut\.{suffix}: is not a readable picture"):
            pictures.open_pictures("own", "rgb", {"a": path}, (24, 32), False)
    (store,) = base.cache_folder().glob("store/own-rgb-*/")
    assert "is not a readable picture" in (store / "meta.json").read_text()


def test_a_picture_of_both_lists_is_refused(root: Path) -> None:
    for folder in ("rgb", "depth", "labels_40"):
        (root / "test" / folder / "0001.png").write_bytes(
            (root / "train" / folder / "0001.png").read_bytes()
        )
    with (root / "test.txt").open("a") as file:
        file.write("0001\n")
    with pytest.raises(
        base.DataError, match=r"test\.txt: must share no picture with train\.txt, got 0001 in both"
    ):
        load(root)


@pytest.mark.parametrize(
    "given", [{"scale": (1.4, 1.0)}, {"scale": (0.5, 1.0)}, {"size": (4, 480)}]
)
def test_settings_are_checked(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(given))):
        Nyuv2Config(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["joint_nyuv2", "dgl_nyuv2", "cggm_nyuv2"])
def test_the_spaces_fit_the_data_at_their_size(name: str, root: Path) -> None:
    """At 480 x 640, without memory; their first trial has the published learning rate."""
    space = space_files.build("t", space_files.read(name), {})
    spec = load(root).spec
    shapes = {m: (shape[0], 480, 640) for m, shape in spec.shapes.items()}
    check(space.base, type(spec)(shapes, spec.task))
    assert space.base.train.batch_size == 8
    assert all(point["optim.lr"] == 1e-2 for point in space.defaults)


@pytest.mark.parametrize("method", ["joint", "dgl", "cggm"])
def test_a_run_trains_on_it(root: Path, method: str) -> None:
    section = {"name": method, **({"direction": "off"} if method == "cggm" else {})}
    config = with_overrides(
        load_config("nyuv2"),
        {"method": section, "model": ESANET, "train.epochs": 2, "train.device": "cpu"},
    )
    run = Run(config, load(root))
    found = [run.epoch().metrics for _ in range(2)]
    assert np.isfinite([m["val/loss"] for m in found]).all()
    assert {"test/miou", "test/miou/rgb", "test/miou/depth"} <= run.test().keys()
