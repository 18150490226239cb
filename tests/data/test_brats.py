"""BraTS: what is read and stored, which slice comes when, fixed lists, hostile files, and the changes in training."""

from __future__ import annotations

import io
import math
import os
import pickle
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from tune_mm import config as C
from tune_mm.core import metrics, schedule
from tune_mm.core.build import check
from tune_mm.core.run import Run
from tune_mm.core.types import Dataset, DataSpec, Padded, Task
from tune_mm.data import base
from tune_mm.data._scan_changes import ScanChanges
from tune_mm.data._scans import open_cases
from tune_mm.data.brats import CLASS_NAMES, MODALITIES, REGIONS, Brats, BratsConfig

PLAIN: dict[str, Any] = {
    "crop": None, "flip": False, "turn": False, "contrast": 0.0, "brightness": 0.0, "noise": 0.0,
}  # fmt: skip
SIZE = (20, 18, 7)
TUMOUR = {2: 1, 3: 6, 5: 4}  # slice: rows of tumour


def scan(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """image[m, y, x, z] = 100 m + 10 z + the case's number + y / 4, exact in float16; label: rows of 1, 2 and 4."""
    m, y, _, z = np.meshgrid(range(4), *(range(n) for n in SIZE), indexing="ij")
    label = np.zeros(SIZE, np.uint8)
    for place, rows in TUMOUR.items():
        label[:rows, :, place] = np.array([1, 2, 4])[np.arange(SIZE[1]) % 3]
    return (100.0 * m + 10 * z + seed + y / 4).astype(np.float32), label


def put(path: Path, image: Any, label: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["image"], file["label"] = image, label


@pytest.fixture
def place(tmp_path: Path, cache: Path) -> Path:
    """Three cases to train on, two each to evaluate."""
    for number, name in enumerate(("train/a", "train/b", "train/c", "valid/d", "valid/e", "test/f", "test/g")):
        put(tmp_path / "brats" / f"{name}.h5", *scan(number))
    return tmp_path / "brats"


def load(place: Path, **values: Any) -> Dataset:
    config = BratsConfig(**{**PLAIN, **values})
    return base.load(config, base.resolve(config, place.parent))


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
        places = torch.stack([batch.inputs[m].value[:, 0, 0, 0] - 100 * i for i, m in enumerate(MODALITIES)])
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
    "soft link": (lambda p: linked(p, h5py.SoftLink("/nowhere")), "'image' must lie in the file itself, got a link"),
    "virtual": (virtual, "'image' must lie in the file itself, got a link"),
    "outside": (outside, "'label' must lie in the file itself, got a link"),
    "huge": (huge, r"'label' must be \[H, W, D\], each at most 1024 and 67108864 voxels in all, got \[1024, 1024"),
    "no file": (text, "cannot be read: "),
    "names": (lambda p: h5py.File(p, "w").create_group("img").file.close(), "no 'image'; the file holds 'img'"),
    "group": (lambda p: h5py.File(p, "w").create_group("image").file.close(), "'image' must be an array of numbers"),
    "axes": (values(lambda i, y: (i, y[0])), r"'label' must be \[H, W, D\], .* got \[18, 7\]"),
    "sequences": (values(lambda i, y: (i[:3], y)), r"'image' must be \[4, 20, 18, 7\] .* got \[3, 20, 18, 7\]"),
    "nan": (values(lambda i, y: (i * np.nan, y)), "'image' must be finite"),
    "raw": (values(lambda i, y: (i * 1e4, y)), r"'image' must be within -65504 to 65504 .*, got 3\.\d+e\+06"),
    "classes": (values(lambda i, y: (i, y + 3)), "'label' must hold classes 0 to 3 .* got 3 to 7"),
    "both": (values(lambda i, y: (i, np.where(y == 2, 3, y))), "'label' must hold 3 or 4 .*, got both"),
    "fractions": (values(lambda i, y: (i, y / 2)), "'label' must hold whole numbers"),
    "healthy": (values(lambda i, y: (i, 0 * y)), r"'label' must have a tumour \(classes 1 to 3\), got none"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_case_is_named_and_may_be_left_out(place: Path, kind: str) -> None:
    spoil, message = HOSTILE[kind]
    spoil(place / "train" / "b.h5")
    with pytest.raises(base.DataError, match=rf"1 of 7 cases cannot be read: .*train/b\.h5: {message}") as error:
        load(place)
    assert "\n" not in str(error.value)
    data = load(place, skip_bad=True)
    assert data.splits["train"].ids == ("a", "c")
    assert list(data.dropped) == ["b"]


def test_slices_of_other_sizes_and_cases_in_two_splits_are_named(place: Path) -> None:
    image, label = scan()
    put(place / "test" / "f.h5", image[:, :-1], label[:-1])
    with pytest.raises(base.DataError, match=r"must have one size, got \[20, 18\] \(a\) and \[19, 18\] \(f\)"):
        load(place)
    put(place / "test" / "a.h5", image, label)
    with pytest.raises(base.DataError, match="splits must not share samples, got 'a' in train and test"):
        load(place)


def test_the_store_is_built_case_by_case_and_follows_the_files(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {p.stem: p for p in (place / "train").iterdir()}
    some = open_cases("brats", {c: files[c] for c in ("a", "c")}, MODALITIES)
    kept = {c: some[c].folder for c in ("a", "c")}
    written = {c: (f / "images.npy").stat().st_mtime_ns for c, f in kept.items()}
    put(files["c"], *scan(9))
    every = open_cases("brats", files, MODALITIES)
    again = {c: every[c].folder for c in ("a", "c")}
    assert again["a"] == kept["a"]
    assert (again["a"] / "images.npy").stat().st_mtime_ns == written["a"]
    assert again["c"] != kept["c"]
    chosen = [("c", 1)]
    assert every.samples(chosen, 0).content != some.samples(chosen, 0).content
    copied = pickle.loads(pickle.dumps(every.samples(chosen, 0)))
    index = torch.tensor([0])
    assert torch.equal(copied.take(index).value, every.samples(chosen, 0).take(index).value)
    assert float(copied.take(index).value[0, 0, 0, 0]) == 30 + 9
    assert capsys.readouterr().err == ""


@pytest.fixture
def most_files() -> Iterator[Callable[[int], None]]:
    """Sets how many descriptors this process may have; the limit is put back afterwards."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_more_cases_than_files_may_be_open(tmp_path: Path, cache: Path, most_files: Callable[[int], None]) -> None:
    """40 cases of three files each, of which 64 may be open at once."""
    names = [
        f"{folder}/{n:02d}" for n in range(40) for folder in ("train" if n < 30 else "valid" if n < 35 else "test",)
    ]
    for number, name in enumerate(names):
        put(tmp_path / "brats" / f"{name}.h5", *scan(number))
    most_files(open_files() + 64)
    data = load(tmp_path / "brats", eval_slices="all")
    before = open_files()
    batch = data.splits["train"].batch(torch.arange(30), torch.Generator().manual_seed(0))
    assert torch.equal(batch.inputs["flair"].value[:, 0, 0, 0] % 10, torch.arange(30.0) % 10)
    drawn = [int((t != 0).any(1).sum()) for t in batch.target]
    assert set(drawn) == set(TUMOUR.values())
    shown = data.splits["test"].batch(torch.arange(15))
    expected = torch.tensor([300.0 + 10 * z + n for n in range(35, 40) for z in TUMOUR])
    assert torch.equal(shown.inputs["t2"].value[:, 0, 0, 0], expected)
    assert open_files() == before


def test_a_store_that_cannot_be_opened_now_is_not_said_to_be_damaged(
    place: Path, most_files: Callable[[int], None]
) -> None:
    train = load(place).splits["train"]
    most_files(3)  # those of input and output
    with pytest.raises(base.DataError, match=r"images\.npy: cannot be read: Too many open files$"):
        train.batch(torch.arange(3))


def test_a_damaged_store_is_named(place: Path) -> None:
    cases = open_cases("brats", {p.stem: p for p in (place / "train").iterdir()}, MODALITIES)
    path = cases["b"].folder / "images.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(base.DataError, match=r"this store is damaged \(images\.npy\); remove the folder"):
        open_cases("brats", {p.stem: p for p in (place / "train").iterdir()}, MODALITIES)
    with pytest.raises(base.DataError, match=r"this store is damaged \(images\.npy\); remove the folder"):
        cases.samples([("b", 2)], 3).take(torch.tensor([0]))
    np.save(path, np.load(io.BytesIO(whole)).astype(np.float32))
    with pytest.raises(base.DataError, match=r"this store is damaged \(images\.npy\); remove the folder"):
        open_cases("brats", {p.stem: p for p in (place / "train").iterdir()}, MODALITIES)


def coordinates(count: int, size: int) -> tuple[dict[str, Padded], torch.Tensor]:
    """Images in which every pixel has a number of its own (not 0), and a target that holds the same."""
    number = 1 + torch.arange(size * size).view(1, size, size).expand(count, size, size)
    return {m: Padded(k * number[:, None].float()) for k, m in ((1, "a"), (-1, "b"))}, number


def test_geometry_is_the_same_for_all_sequences_and_the_labels() -> None:
    inputs, target = coordinates(12, 10)
    change = ScanChanges(crop=6, flip=True, turn=True)
    found, labels = change(inputs, target, torch.Generator().manual_seed(0))
    assert torch.equal(found["a"].value[:, 0].long(), labels)
    assert torch.equal(found["b"].value, -found["a"].value)
    assert len({tuple(x.flatten().tolist()) for x in labels}) > 6
    same, middle = change(inputs, target)
    assert torch.equal(middle, target[:, 2:8, 2:8])
    assert torch.equal(same["a"].value[:, 0].long(), middle)
    # As CGGM's code: from the middle in training too; smaller slices are not cut.
    _, labels = ScanChanges(crop=6, anywhere=False)(inputs, target, torch.Generator().manual_seed(0))
    assert torch.equal(labels, middle)
    assert ScanChanges(crop=160, turn=True).shape(24, 30) == (24, 24)


def test_jitter_is_affine_on_the_brain_and_noise_comes_with_its_probability() -> None:
    """Of each image: value -> factor x value + offset, background left at 0."""
    images = torch.randn(40, 1, 6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).float()
    images[:, :, 0] = 0
    target = torch.zeros(40, 6, 6)
    found, _ = ScanChanges(contrast=0.3, brightness=0.2)(
        {"a": Padded(images)}, target, torch.Generator().manual_seed(2)
    )
    out, factors = found["a"].value, []
    assert not out[:, :, 0].any()
    for before, after in zip(images[:, 0, 1:].flatten(1), out[:, 0, 1:].flatten(1), strict=True):
        factor, offset = np.polyfit(before.numpy(), after.numpy(), 1)
        np.testing.assert_allclose(after, factor * before + offset, atol=1e-5)
        assert 0.7 <= factor <= 1.3
        assert abs(offset) <= 0.2
        factors.append(factor)
    assert max(factors) - min(factors) > 0.4
    noisy, _ = ScanChanges(noise=0.3, deviation=0.5)({"a": Padded(images)}, target, torch.Generator().manual_seed(3))
    differs = (noisy["a"].value != images).flatten(1).any(1)
    share = float(differs.double().mean())
    assert abs(share - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 40)
    spread = (noisy["a"].value - images)[differs].flatten(1).std(1)
    assert 0.1 < float(spread.mean()) < 0.4
    assert float(spread.max()) < 0.8


def test_the_config_is_as_published_and_fits_every_method() -> None:
    """CGGM, App. B: 4e-4 up to 1e-2 (ten of 75 epochs in its code), down to 1e-3; weights of the classes; regions."""
    config = C.load("brats")

    def rate(epoch: int, share: float = 0.0) -> float:
        return config.optim.lr * schedule.factor(config.schedule, epoch, 75, schedule.Plateau(), share)

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
    check(C.replace(config, {"method": "cggm"}), spec)
    for method in ("joint", "dgl"):
        check(C.replace(config, {"method": method, "model.encoder.depth": 18}), spec)


def test_a_run_on_synthetic_files_reports_the_regions(tmp_path: Path, cache: Path) -> None:
    values = {
        "model.encoder.depth": 18, "model.encoder.width": 4, "model.fusion.low": 2, "method": "cggm",
        "train.epochs": 1, "train.batch_size": 8, "train.gradient_statistics": False,
        "train.device": "cpu", "data.eval_slices": "middle",
    }  # fmt: skip
    config = C.replace(C.load("brats"), values)
    base.make(config.data, tmp_path, Brats.options(config.data).changed(train=8, val=8, test=8))
    run = Run(config, base.load(config.data, base.resolve(config.data, tmp_path)))
    found = run.epoch().metrics
    assert found["val/dice"] == pytest.approx(np.mean([found[f"val/dice_{r}"] for r in ("wt", "tc", "et")]))
    assert {f"balance/{m}" for m in MODALITIES} <= found.keys()
    assert 0 <= run.test()["test/dice"] <= 1
