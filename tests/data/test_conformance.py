"""What holds for every data set: a new file in tune_mm/data/ is picked up by itself."""

import dataclasses
import filecmp
from pathlib import Path

import pytest
import torch

from tune_mm import plugins
from tune_mm.config import Section
from tune_mm.core.types import Dataset
from tune_mm.data import base

NAMES = plugins.available("data")
SMALL = {"train": 40, "val": 24, "test": 16}


def made(name: str, root: Path, **values: object) -> tuple[Section, base.Source]:
    plugin = plugins.load("data", name)
    config = plugin.Config()
    base.make(config, root, plugin.options(config).changed(**SMALL, **values))
    return config, base.resolve(config, root)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def dataset(name: str, tmp_path: Path) -> Dataset:
    return base.load(*made(name, tmp_path))


def test_the_plugin_says_what_it_is(name: str) -> None:
    plugin = plugins.load("data", name)
    assert issubclass(plugin, base.DataPlugin)
    assert issubclass(plugin.Config, Section)
    assert plugin.Config().name == name
    assert plugin.files(plugin.Config())


def test_made_files_are_found_and_known_to_be_synthetic(name: str, tmp_path: Path) -> None:
    config, source = made(name, tmp_path)
    plugin = base.plugin_of(config)
    assert source.root == tmp_path / plugin.folder_of(config)
    assert plugin.present(config, source.root)
    assert source.kind == "synthetic"
    assert "SYNTHETIC" in source.message
    assert base.load(config, source).kind == "synthetic"
    # The folder itself may be given as the root.
    assert base.resolve(config, source.root).root == source.root


def test_without_the_marker_the_same_files_are_real(name: str, tmp_path: Path) -> None:
    config, source = made(name, tmp_path)
    (source.root / base.MARKER).unlink()
    assert base.resolve(config, tmp_path, require_real=True) == base.Source(source.root, "real", "")


def test_tensors_match_the_spec(dataset: Dataset) -> None:
    dtype = torch.int64 if dataset.spec.task.kind == "classification" else torch.float32
    assert tuple(dataset.splits) == ("train", "val", "test")
    for split in dataset.splits.values():
        assert split.target.dtype == dtype
        assert tuple(split.inputs) == dataset.spec.modalities
        for modality, shape in dataset.spec.shapes.items():
            value, mask = split.inputs[modality]
            assert value.shape == (len(split), *shape)
            assert value.dtype == torch.float32
            assert value.device.type == "cpu"
            assert value.is_contiguous()
            assert torch.isfinite(value).all()
            if mask is not None:
                assert mask.dtype == torch.bool
                assert mask.shape == value.shape[:2]
                assert mask.any(dim=1).all()
                assert (value[~mask] == 0).all()


def test_every_split_has_a_mask_for_a_modality_or_none_has(dataset: Dataset) -> None:
    for modality in dataset.spec.modalities:
        assert len({split.inputs[modality].mask is None for split in dataset.splits.values()}) == 1


def test_no_sample_is_lost(dataset: Dataset) -> None:
    assert {name: len(split) for name, split in dataset.splits.items()} == SMALL


def test_splits_share_no_sample(dataset: Dataset) -> None:
    splits = list(dataset.splits.values())
    ids = [i for split in splits for i in split.ids]
    assert len(ids) == len(set(ids))
    first = dataset.spec.modalities[0]
    rows = [row.numpy().tobytes() for split in splits for row in split.inputs[first].value]
    assert len(rows) == len(set(rows))


def test_targets_are_in_range_and_varied(dataset: Dataset) -> None:
    task = dataset.spec.task
    for split in dataset.splits.values():
        assert len(split.target.unique()) > 1
        if task.kind == "classification":
            assert split.target.min() >= 0
            assert split.target.max() < task.outputs
    assert not task.class_names or len(task.class_names) == task.outputs


def test_loading_twice_gives_the_same_object(name: str, tmp_path: Path) -> None:
    config, source = made(name, tmp_path)
    assert base.load(config, source) is base.load(config.model_copy(), dataclasses.replace(source))


def test_one_seed_gives_identical_files(name: str, tmp_path: Path) -> None:
    places = [made(name, tmp_path / sub, seed=seed)[1].root for sub, seed in (("a", 3), ("b", 3), ("c", 4))]
    files = sorted(p.relative_to(places[0]) for p in places[0].rglob("*") if p.is_file())
    _, changed, missing = filecmp.cmpfiles(places[0], places[1], files, shallow=False)
    assert (changed, missing) == ([], [])
    assert filecmp.cmpfiles(places[0], places[2], files, shallow=False)[1]


def test_nothing_is_overwritten(name: str, tmp_path: Path) -> None:
    config, source = made(name, tmp_path)
    before = {p: p.read_bytes() for p in source.root.rglob("*") if p.is_file()}
    with pytest.raises(base.DataError, match="exists already and is not overwritten"):
        base.make(config, tmp_path, base.plugin_of(config).options(config))
    assert {p: p.read_bytes() for p in source.root.rglob("*") if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == [source.root.name]


def test_a_missing_file_is_named_and_not_replaced_by_synthetic_data(name: str, tmp_path: Path, cache: Path) -> None:
    config, source = made(name, tmp_path / "root")
    gone = base.plugin_of(config).files(config)[-1]
    (source.root / gone).unlink()
    with pytest.raises(base.DataError, match=f"incomplete in .*: no {gone}"):
        base.resolve(config, tmp_path / "root")
    assert not cache.exists()


def test_the_stand_in_is_small_and_said_in_one_line(name: str, cache: Path) -> None:
    config = plugins.load("data", name).Config()
    source = base.resolve(config)
    assert source.kind == "synthetic"
    assert "\n" not in source.message
    assert "SYNTHETIC" in source.message
    assert "numbers say nothing about the real" in source.message
    assert str(source.root) in source.message
    assert source.root.is_relative_to(cache)
    assert base.resolve(config) == source
    assert len(base.load(config, source).splits["train"]) <= 400
    assert sum(p.stat().st_size for p in source.root.rglob("*") if p.is_file()) < 10_000_000


def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    config, source = made(name, tmp_path)
    for file in base.plugin_of(config).files(config):
        whole = (source.root / file).read_bytes()
        (source.root / file).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(base.DataError, match=file):
            base.load(config, source)
        (source.root / file).write_bytes(whole)
