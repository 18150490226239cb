"""BraTS: what is read, which slice comes when, fixed lists, hostile files, and the published
configuration.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tests.data.images.scans import PLAIN, SIZE, TUMOUR, load, put, put_seven, scan
from tune_mm.config import load_config, with_overrides
from tune_mm.core import metrics, schedule
from tune_mm.core.build import check
from tune_mm.core.run import Run
from tune_mm.core.types import DataSpec, Task
from tune_mm.data import base
from tune_mm.data.datasets.brats import CLASS_NAMES, MODALITIES, REGIONS, Brats, BratsConfig


@pytest.fixture
def place(tmp_path: Path, cache: Path) -> Path:
    return put_seven(tmp_path)


def test_slices_with_a_tumour_in_order_with_4_read_as_3(place: Path) -> None:
    data = load(place, eval_slices="all")
    val = data.splits["val"]
    assert val.ids == ("d:2", "d:3", "d:5", "e:2", "e:3", "e:5")
    batch = val.batch(torch.arange(6))
    for i, (seed, z) in enumerate((s, z) for s in (3, 4) for z in TUMOUR):
        image, label = scan(seed)
        assert np.array_equal(batch.target[i].numpy(), np.where(label == 4, 3, label)[:, :, z])
        for channel, m in enumerate(("flair", "t1ce", "t1", "t2")):
            assert np.array_equal(batch.inputs[m].value[i, 0].numpy(), image[channel, :, :, z])
    assert data.spec.shapes == dict.fromkeys(MODALITIES, (1, 20, 18))
    assert "val: 6 slices, fixed (all), of 6 with a tumour in 2 cases" in data.notes


def test_the_middle_slice_has_the_largest_tumour(place: Path) -> None:
    data = load(place)
    assert data.splits["test"].ids == ("f:3", "g:3")
    assert data.splits["train"].ids == ("a", "b", "c")
    shown = data.splits["train"].batch(torch.tensor([2])).inputs["t2"].value
    assert float(shown[0, 0, 0, 0]) == 300 + 30 + 2


def test_training_draws_one_slice_of_the_case_for_all_sequences_and_the_target(place: Path) -> None:
    train, seen = load(place).splits["train"], set()
    stream = torch.Generator().manual_seed(0)
    for _ in range(20):
        batch = train.batch(torch.tensor([1, 0, 2]), stream)
        places = torch.stack(
            [batch.inputs[m].value[:, 0, 0, 0] - 100 * i for i, m in enumerate(MODALITIES)]
        )
        case = places % 10
        assert torch.equal(case, torch.tensor([1.0, 0.0, 2.0]).expand(4, 3))
        z = (places[0] // 10).long()
        assert torch.equal(places, places[:1].expand(4, 3))
        assert [int((t != 0).any(1).sum()) for t in batch.target] == [TUMOUR[k] for k in z.tolist()]
        seen |= {(int(c), k) for c, k in zip(case[0], z.tolist(), strict=True)}
    assert seen == {(c, z) for c in range(3) for z in TUMOUR}


def test_without_valid_whole_cases_of_train_are_held_out(place: Path) -> None:
    for path in (place / "valid").iterdir():
        path.rename(place / "train" / path.name)
    (place / "valid").rmdir()
    data = load(place, val_fraction=0.4)
    train, val = data.splits["train"].ids, {i.partition(":")[0] for i in data.splits["val"].ids}
    assert len(val) == 2
    assert sorted([*train, *val]) == ["a", "b", "c", "d", "e"]
    assert data.splits["test"].ids == ("f:3", "g:3")
    assert "no valid/: 2 of 5 train cases held out (seed 0)" in data.notes


def test_a_case_that_is_left_out_moves_no_other(place: Path) -> None:
    """The held out cases of 20 are those of 20, whichever of them cannot be read: A without the bad
    one stays A.
    """
    shutil.rmtree(place / "valid")
    for number in range(3, 20):
        put(place / "train" / f"x{number:02d}.h5", *scan(number))

    def parts(**values: Any) -> list[set[str]]:
        data = Brats.load(BratsConfig(**{**PLAIN, "val_fraction": 0.3, **values}), place)
        return [{i.partition(":")[0] for i in data.splits[s].ids} for s in ("train", "val", "test")]

    whole = parts()
    train, val = sorted(whole[0]), sorted(whole[1])
    assert (len(train), len(val)) == (14, 6)
    for case in (train[0], val[-1], train[7]):
        text(place / "train" / f"{case}.h5")
        whole = [own - {case} for own in whole]
        assert parts(skip_bad=True) == whole


def test_a_split_of_bad_cases_alone_is_named(place: Path) -> None:
    for path in (place / "valid").iterdir():
        text(path)
    with pytest.raises(
        base.DataError, match=r"brats/valid: must hold a case <name>\.h5 that can be read, got none"
    ):
        load(place, skip_bad=True)


def test_a_list_of_slices(place: Path) -> None:
    (place / "slices.csv").write_text("case,slice\ne,5\nd,2\nf,3\ng,2\ne,2\n")
    data = load(place, eval_slices="list")
    assert data.splits["val"].ids == ("e:5", "d:2", "e:2")
    assert data.splits["test"].ids == ("f:3", "g:2")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("dd,2", r"slices\.csv line 2: no case 'dd' in validation or test; nearest 'd'"),
        ("d,4", r"line 2: must be a slice of 'd' with a tumour, 2 to 5, got '4'"),
        ("d,x", r"line 2: must be a slice of 'd' with a tumour, 2 to 5, got 'x'"),
        ("d,2\nd,2", r"line 3: every slice must be listed once, got slice 2 of 'd' twice"),
        ("d,2", r"slices\.csv: must name a slice of every case of val, got none of 'e'"),
    ],
)
def test_a_wrong_list_is_named(place: Path, rows: str, message: str) -> None:
    (place / "slices.csv").write_text(f"case,slice\n{rows}\n")
    with pytest.raises(base.DataError, match=message):
        load(place, eval_slices="list")


def linked(path: Path, link: Any) -> None:
    with h5py.File(path, "a") as file:
        del file["image"]
        file["image"] = link


def virtual(path: Path) -> None:
    layout = h5py.VirtualLayout((4, *SIZE), np.float32)
    layout[:] = h5py.VirtualSource("/etc/passwd", "image", (4, *SIZE))
    with h5py.File(path, "a") as file:
        del file["image"]
        file.create_virtual_dataset("image", layout)


def outside(path: Path) -> None:
    with h5py.File(path, "a") as file:
        del file["label"]
        file.create_dataset("label", SIZE, np.uint8, external=[("/etc/passwd", 0, 2520)])


def huge(path: Path) -> None:
    """Nothing is written: a chunked array of zeros takes no place on disk."""
    with h5py.File(path, "w") as file:
        file.create_dataset("image", (4, 1024, 1024, 1024), np.float32, chunks=True)
        file.create_dataset("label", (1024, 1024, 1024), np.uint8, chunks=True)


def text(path: Path) -> None:
    path.write_bytes(b"no HDF5")


def values(change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Path], None]:
    return lambda path: put(path, *change(*scan()))


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "external link": (
        lambda p: linked(p, h5py.ExternalLink("/etc/passwd", "x")),
        "'image' must lie in the file itself, got a link",
    ),
    "soft link": (
        lambda p: linked(p, h5py.SoftLink("/nowhere")),
        "'image' must lie in the file itself, got a link",
    ),
    "virtual": (virtual, "'image' must lie in the file itself, got a link"),
    "outside": (outside, "'label' must lie in the file itself, got a link"),
    "huge": (
        huge,
        r"'label' must be \[H, W, D\], each at most 1024 and 67108864 voxels in all, got \[1024, 1024",
    ),
    "no file": (text, "cannot be read: "),
    "names": (
        lambda p: h5py.File(p, "w").create_group("img").file.close(),
        "no 'image'; the file holds 'img'",
    ),
    "group": (
        lambda p: h5py.File(p, "w").create_group("image").file.close(),
        "'image' must be an array of numbers",
    ),
    "axes": (values(lambda i, y: (i, y[0])), r"'label' must be \[H, W, D\], .* got \[18, 7\]"),
    "sequences": (
        values(lambda i, y: (i[:3], y)),
        r"'image' must be \[4, 20, 18, 7\] .* got \[3, 20, 18, 7\]",
    ),
    "nan": (values(lambda i, y: (i * np.nan, y)), "'image' must be finite"),
    "raw": (
        values(lambda i, y: (i * 1e4, y)),
        r"'image' must be within -65504 to 65504 .*, got 3\.\d+e\+06",
    ),
    "classes": (values(lambda i, y: (i, y + 3)), "'label' must hold classes 0 to 3 .* got 3 to 7"),
    "both": (
        values(lambda i, y: (i, np.where(y == 2, 3, y))),
        "'label' must hold 3 or 4 .*, got both",
    ),
    "fractions": (values(lambda i, y: (i, y / 2)), "'label' must hold whole numbers"),
    "healthy": (
        values(lambda i, y: (i, 0 * y)),
        r"'label' must have a tumour \(classes 1 to 3\), got none",
    ),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_case_is_named_and_may_be_left_out(place: Path, kind: str) -> None:
    spoil, message = HOSTILE[kind]
    spoil(place / "train" / "b.h5")
    with pytest.raises(
        base.DataError, match=rf"1 of 7 cases cannot be read: .*train/b\.h5: {message}"
    ) as error:
        load(place)
    assert "\n" not in str(error.value)
    data = load(place, skip_bad=True)
    assert data.splits["train"].ids == ("a", "c")
    assert list(data.dropped) == ["b"]


def test_slices_of_other_sizes_and_cases_in_two_splits_are_named(place: Path) -> None:
    image, label = scan()
    put(place / "test" / "f.h5", image[:, :-1], label[:-1])
    with pytest.raises(
        base.DataError, match=r"must have one size, got \[20, 18\] \(a\) and \[19, 18\] \(f\)"
    ):
        load(place)
    put(place / "test" / "a.h5", image, label)
    with pytest.raises(
        base.DataError, match="splits must not share samples, got 'a' in train and test"
    ):
        load(place)


def test_the_config_is_as_published_and_fits_every_method() -> None:
    """CGGM, App. B: 4e-4 up to 1e-2 (ten of 75 epochs in its code), down to 1e-3; weights of the
    classes; regions.
    """
    config = load_config("brats")

    def rate(epoch: int, share: float = 0.0) -> float:
        return config.optim.lr * schedule.factor(
            config.schedule, epoch, 75, schedule.Plateau(), share
        )

    assert rate(0) == pytest.approx(4e-4)
    assert rate(5) == pytest.approx((4e-4 + 1e-2) / 2)
    assert rate(10) == pytest.approx(1e-2)
    assert rate(10 + 32, 0.5) == pytest.approx((1e-2 + 1e-3) / 2)
    assert rate(74, 1.0) == pytest.approx(1e-3)
    task = Task("segmentation", 4, CLASS_NAMES, config.data.weights, config.data.dice, REGIONS)
    spec = DataSpec(dict.fromkeys(MODALITIES, (1, config.data.crop, config.data.crop)), task)
    assert spec.task.weights == (0.2, 0.3, 0.25, 0.25)
    assert spec.task.dice == 1.0
    assert {f"dice_{r}" for r in ("wt", "tc", "et")} <= set(metrics.names(spec.task))
    assert dict(spec.task.regions) == {"et": (3,), "tc": (1, 3), "wt": (1, 2, 3)}
    check(with_overrides(config, {"method": "cggm"}), spec)
    for method in ("joint", "dgl"):
        check(with_overrides(config, {"method": method, "model.encoder.depth": 18}), spec)


def test_a_run_on_synthetic_files_reports_the_regions(tmp_path: Path, cache: Path) -> None:
    values = {
        "model.encoder.depth": 18,
        "model.encoder.width": 4,
        "model.fusion.low": 2,
        "method": "cggm",
        "train.epochs": 1,
        "train.batch_size": 8,
        "train.gradient_statistics": False,
        "train.device": "cpu",
        "data.eval_slices": "middle",
    }
    config = with_overrides(load_config("brats"), values)
    base.make(config.data, tmp_path, Brats.options(config.data).changed(train=8, val=8, test=8))
    run = Run(config, base.load(config.data, base.resolve(config.data, tmp_path)))
    found = run.epoch().metrics
    assert found["val/dice"] == pytest.approx(
        np.mean([found[f"val/dice_{r}"] for r in ("wt", "tc", "et")])
    )
    assert {f"balance/{m}" for m in MODALITIES} <= found.keys()
    assert 0 <= run.test()["test/dice"] <= 1
