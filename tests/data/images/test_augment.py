"""Crops, flips, resizing and normalisation against their formulae and against torchvision."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tune_mm._vision import torchvision
from tune_mm.data.images import augment
from tune_mm.data.images.augment import batch, crop_boxes, flips

torchvision()

from torchvision.transforms import v2  # noqa: E402  it can be imported only after the line above


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def boxes(height: int, width: int, count: int, scale_min: float, seed: int = 0) -> Tensor:
    return crop_boxes(torch.tensor([[height, width]]).expand(count, 2), scale_min, seeded(seed))


@pytest.mark.parametrize(
    ("height", "width"), [(256, 341), (30, 200), (200, 30), (7, 5), (1, 1), (1, 40)]
)
def test_boxes_lie_within_the_frame(height: int, width: int) -> None:
    top, left, h, w = boxes(height, width, 2000, 0.08).unbind(1)
    assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
    assert (top + h <= height).all() and (left + w <= width).all()


def test_each_frame_has_a_box_for_its_own_size() -> None:
    sizes = torch.tensor([[10, 400], [400, 10], [64, 64]])
    found = crop_boxes(sizes, 0.5, seeded())
    assert (found[:, 2:] <= sizes).all()


@pytest.mark.parametrize(
    ("height", "width", "scale_min"), [(256, 341, 0.08), (120, 90, 0.5), (100, 180, 0.08)]
)
def test_boxes_are_distributed_as_torchvision_draws_them(
    height: int, width: int, scale_min: float
) -> None:
    count = 4000
    ours = boxes(height, width, count, scale_min).double()
    torch.manual_seed(1)
    transform = v2.RandomResizedCrop(224, scale=(scale_min, 1.0))
    image = torch.zeros(1, height, width)
    drawn = [transform.make_params([image]) for _ in range(count)]
    theirs = torch.tensor(
        [[d["top"], d["left"], d["height"], d["width"]] for d in drawn], dtype=torch.float64
    )
    # Two means of `count` draws differ by less than 4.5 standard errors, in 8 of 8 columns, but
    # once in 20000 times.
    for a, b in zip(
        torch.cat((ours, ours**2), 1).T, torch.cat((theirs, theirs**2), 1).T, strict=True
    ):
        error = ((a.var() + b.var()) / count).sqrt()
        assert abs(a.mean() - b.mean()) < 4.5 * error
    # Kolmogorov-Smirnov on the area: sqrt(2 / n) * 1.95 is exceeded once in 1000 times.
    area, other = (x[:, 2].mul(x[:, 3]).sort().values for x in (ours, theirs))
    grid = torch.linspace(0, height * width, 200, dtype=torch.float64)
    distance = (
        torch.searchsorted(area, grid) - torch.searchsorted(other, grid)
    ).abs().max() / count
    assert distance < 1.95 * (2 / count) ** 0.5


@pytest.mark.parametrize(
    ("height", "width", "box"),
    # Boxes of the whole area only: frames of 10:1 hold none of an allowed ratio, those of 1:1 none
    # but themselves.
    [(30, 300, [0, 130, 30, 40]), (300, 30, [130, 0, 40, 30]), (60, 60, [0, 0, 60, 60])],
)
def test_central_box_where_none_fits(height: int, width: int, box: list[int]) -> None:
    assert boxes(height, width, 50, 1.0).tolist() == [box] * 50


def test_flips_are_fair() -> None:
    assert (
        abs(flips(10_000, seeded()).float().mean().item() - 0.5) < 4 * 0.005
    )  # 0.005 = sqrt(1/4 / 10000)


def test_same_seed_same_draws() -> None:
    assert torch.equal(boxes(256, 341, 64, 0.08, 3), boxes(256, 341, 64, 0.08, 3))
    assert not torch.equal(boxes(256, 341, 64, 0.08, 3), boxes(256, 341, 64, 0.08, 4))


CPU = torch.device("cpu")


def resize(frames: list[np.ndarray], size: int, flip: torch.Tensor | None = None) -> torch.Tensor:
    """Pixels 0..255 [n, C, S, S] of a batch that is not normalised."""
    return batch(frames, size, flip, "none", CPU) * 255


@pytest.mark.parametrize("channels", [1, 3])
def test_resize_is_torchvisions(channels: int) -> None:
    draw = np.random.default_rng(0)
    frames = [
        draw.integers(0, 256, (h, w, channels), dtype=np.uint8)
        for h, w in ((50, 70), (20, 24), (24, 24))
    ]
    for frame in frames:
        frame.flags.writeable = False
    flip = torch.tensor([False, True, True])
    found = resize(frames, 24, flip)
    assert found.shape == (3, channels, 24, 24)
    for target, frame, mirror in zip(found, frames, flip, strict=True):
        image = v2.functional.resize(
            torch.from_numpy(frame.transpose(2, 0, 1).copy()), [24, 24], antialias=True
        )
        expected = image.flip(2) if mirror else image
        # The planar and the interleaved kernel may round a half differently.
        assert (target.round().int() - expected.int()).abs().max() <= 1
    np.testing.assert_array_equal(
        found[2].round().numpy(), frames[2].transpose(2, 0, 1)[:, :, ::-1]
    )


def test_resize_averages_what_it_reduces() -> None:
    # Rows 0 and 255 alternate: with antialias each output is their mean, without it would be one of
    # them.
    frame = np.zeros((64, 64, 3), dtype=np.uint8)
    frame[::2] = 255
    inner = resize([frame], 8)[0, :, 1:-1]
    assert (inner - 127.5).abs().max() <= 3


@pytest.mark.parametrize(
    ("normalize", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("half", (0.5,) * 3, (0.5,) * 3),
        ("none", (0.0,) * 3, (1.0,) * 3),
        (
            "imagenet",
            (0.449,),
            (0.226,),
        ),  # grey: (.485 + .456 + .406) / 3 and (.229 + .224 + .225) / 3
    ],
)
def test_normalisation(
    normalize: augment.Normalize, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    frame = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(len(mean), 2)
    found = batch([frame, frame], 16, None, normalize, CPU)
    assert found.dtype == torch.float32
    for c in range(len(mean)):
        expected = (np.arange(256) / 255 - mean[c]) / std[c]
        np.testing.assert_allclose(found[1, c].numpy().ravel(), expected, atol=1e-6)


def test_all_frames_of_a_batch_are_moved_in_one_copy_and_come_apart_again() -> None:
    draw = np.random.default_rng(0)
    frames = [
        draw.integers(0, 256, (h, w, 3), dtype=np.uint8)[1:, :-2]
        for h, w in ((5, 7), (2, 4), (6, 6))
    ]
    for frame, moved in zip(frames, augment._moved(frames, CPU), strict=True):
        np.testing.assert_array_equal(moved.permute(1, 2, 0).numpy(), frame)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_batch() -> None:
    draw = np.random.default_rng(0)
    frames = [draw.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((50, 70), (20, 24))]
    flip = torch.tensor([False, True])
    there = batch(frames, 24, flip, "imagenet", torch.device("cuda"))
    # One step of 255, in units of the smallest standard deviation.
    assert (there.cpu() - batch(frames, 24, flip, "imagenet", CPU)).abs().max() < 1.01 / 255 / 0.224


def test_memory_is_used_again_but_never_while_a_batch_is_held() -> None:
    frames = [np.full((8, 8, 3), k, dtype=np.uint8) for k in range(4)]

    def made(part: list[np.ndarray]) -> torch.Tensor:
        return batch(part, 8, None, "none", CPU)

    held = [made(frames[:2]), made(frames[2:]), made(frames[1:3])]
    assert len({t.untyped_storage().data_ptr() for t in held}) == 3
    kept = held[0][0, 0]  # a view of a batch holds its memory too
    first = held[0].untyped_storage().data_ptr()
    means = [round(float(t.mean() * 255 * 2)) for t in held]
    assert means == [1, 5, 3]  # twice the mean of two neighbours
    held.clear()
    again = [made(frames) for _ in range(3)]
    assert first not in {t.untyped_storage().data_ptr() for t in again}
    assert torch.equal(kept, torch.zeros(8, 8))
    del kept, again
    free = {array.ctypes.data for array in augment._kept}
    assert made(frames[:1]).untyped_storage().data_ptr() in free  # also for fewer frames
