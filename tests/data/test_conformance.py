"""What holds for every data set: a new file in tune_mm/data/ is picked up by itself."""

import dataclasses
import filecmp
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tune_mm import plugins
from tune_mm.config import Section
from tune_mm.core.types import VOID, Dataset, Padded, Split, Stored
from tune_mm.data import base

NAMES = plugins.available("data")
SMALL = {"train": 40, "val": 24, "test": 16}


def made(name: str, root: Path, **values: object) -> tuple[Section, base.Source]:
    plugin = plugins.load("data", name)
    config = plugin.Config()
    base.make(config, root, plugin.options(config).changed(**SMALL, **values))
    return config, base.resolve(config, root)


@pytest.fixture(scope="module", autouse=True)
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of this module: equal files are stored once, and what is stored (some 100 MB) is
    removed at the end.
    """
    folder = tmp_path_factory.mktemp("stores")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(base.ENV_CACHE, str(folder))
        yield
    shutil.rmtree(folder)


def everything(split: Split) -> dict[str, Padded]:
    """All samples of a split, as one batch in evaluation."""
    return split.batch(torch.arange(len(split))).inputs


def equal(one: dict[str, Padded], other: dict[str, Padded]) -> bool:
    return all(torch.equal(x.value, other[m].value) for m, x in one.items())


@pytest.fixture(params=NAMES, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def dataset(name: str, stores: None, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return base.load(*made(name, tmp_path_factory.mktemp(name)))


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
    kinds = {
        "classification": torch.int64,
        "regression": torch.float32,
        "segmentation": torch.uint8,
    }
    dtype = kinds[dataset.spec.task.kind]
    assert tuple(dataset.splits) == ("train", "val", "test")
    for split in dataset.splits.values():
        assert split.target.dtype == dtype
        assert tuple(split.inputs) == dataset.spec.modalities
        for modality, shape in dataset.spec.shapes.items():
            x = split.inputs[modality]
            if isinstance(x, Stored):
                assert len(x) == len(split)
                assert x.shape == shape
                assert x.content
            else:
                assert x.value.is_contiguous()
            value, mask, _ = everything(split)[modality]
            assert value.shape == (len(split), *shape)
            assert value.dtype == torch.float32
            assert value.device.type == "cpu"
            assert torch.isfinite(value).all()
            if mask is not None:
                assert mask.dtype == torch.bool
                assert mask.shape == value.shape[:2]
                assert mask.any(dim=1).all()
                assert (value[~mask] == 0).all()


def test_every_split_has_a_mask_for_a_modality_or_none_has(dataset: Dataset) -> None:
    for modality in dataset.spec.modalities:
        batches = [everything(split)[modality] for split in dataset.splits.values()]
        assert len({x.mask is None for x in batches}) == 1


def test_evaluation_is_the_same_at_every_call_and_in_every_batch(dataset: Dataset) -> None:
    split = dataset.splits["val"]
    index = torch.tensor([5, 0, len(split) - 1, 0])
    batch = split.batch(index)
    assert equal(batch.inputs, split.batch(index).inputs)
    assert torch.equal(batch.target, split.target[index])
    for place, i in enumerate(index.tolist()):
        alone = split.batch(torch.tensor([i])).inputs
        assert equal(
            alone, {m: Padded(x.value[place : place + 1]) for m, x in batch.inputs.items()}
        )


def test_training_batches_follow_their_generator(dataset: Dataset) -> None:
    split, index = dataset.splits["train"], torch.arange(12)
    one, same, other = (
        split.batch(index, torch.Generator().manual_seed(seed)).inputs for seed in (1, 1, 2)
    )
    assert equal(one, same)
    # Whatever a store or a transform draws at random (crops, frames, flips) differs; values in
    # memory do not.
    assert equal(one, other) != (split.stored or split.transform is not None)


def test_no_sample_is_lost(dataset: Dataset) -> None:
    sizes = {name: len(split) for name, split in dataset.splits.items()}
    if any("held out" in note for note in dataset.notes):
        # Layouts without a validation list: what was made for it is in train, and another part is
        # carved out.
        assert sizes["train"] + sizes["val"] == SMALL["train"] + SMALL["val"]
        assert sizes["test"] == SMALL["test"]
    else:
        assert sizes == SMALL
    assert dataset.dropped == {}


def test_splits_share_no_sample(dataset: Dataset) -> None:
    splits = list(dataset.splits.values())
    ids = [i for split in splits for i in split.ids]
    assert len(ids) == len(set(ids))
    first = dataset.spec.modalities[0]
    rows = [row.numpy().tobytes() for split in splits for row in everything(split)[first].value]
    assert len(rows) == len(set(rows))


def test_targets_are_in_range_and_varied(dataset: Dataset) -> None:
    task = dataset.spec.task
    for split in dataset.splits.values():
        assert len(split.target.unique()) > 1
        if task.kind != "regression":
            known = (
                split.target[split.target != VOID] if task.kind == "segmentation" else split.target
            )
            assert known.min() >= 0
            assert known.max() < task.outputs
    assert not task.class_names or len(task.class_names) == task.outputs


def test_loading_twice_gives_the_same_object(name: str, tmp_path: Path) -> None:
    config, source = made(name, tmp_path)
    assert base.load(config, source) is base.load(config.model_copy(), dataclasses.replace(source))


def test_one_seed_gives_identical_files(name: str, tmp_path: Path) -> None:
    places = [
        made(name, tmp_path / sub, seed=seed)[1].root
        for sub, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
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


def test_a_missing_file_is_named_and_not_replaced_by_synthetic_data(
    name: str, tmp_path: Path, cache: Path
) -> None:
    config, source = made(name, tmp_path / "root")
    gone = base.plugin_of(config).files(config)[-1]
    remove(source.root / gone)
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
    assert base.plugin_of(config).options(config).train <= 400
    assert sum(p.stat().st_size for p in source.root.rglob("*") if p.is_file()) < 10_000_000


def remove(path: Path) -> None:
    """A file, or a folder of files."""
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def first(path: Path) -> Path:
    """A file, or the first of a folder."""
    return min(path.iterdir()) if path.is_dir() else path


def cut(whole: bytes, file: str) -> bytes:
    """The first half; of a list in text, which is whole at the end of every row, all but half of
    the last row.
    """
    if not file.endswith((".csv", ".txt")):
        return whole[: len(whole) // 2]
    last = whole.rstrip().rpartition(b"\n")[2]
    return whole.rstrip()[: -(len(last) // 2)]


def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    config, source = made(name, tmp_path)
    for file in base.plugin_of(config).files(config):
        path = first(source.root / file)
        whole = path.read_bytes()
        path.write_bytes(cut(whole, file))
        with pytest.raises(base.DataError, match=file):
            base.load(config, source)
        path.write_bytes(whole)
