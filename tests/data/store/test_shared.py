"""Data sets in memory that all processes of a machine share: equal to what the files say, read
once, mapped.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tune_mm.config import Section, load_config
from tune_mm.core.types import Dataset, Padded
from tune_mm.data import base
from tune_mm.data.base import DataError, Source
from tune_mm.data.store import shared
from tune_mm.data.synthetic.vectors import SyntheticOptions

NAMES = ("mosi", "iemocap", "utd_mhad")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own; nothing is too small for it."""
    monkeypatch.setenv(base.ENV_CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(shared, "SMALL", 0)
    return tmp_path / "cache" / "store"


def forget() -> None:
    """As in a process that has loaded nothing yet."""
    base._loaded.clear()


def made(name: str, root: Path) -> tuple[Section, Source]:
    """A small data set on disk."""
    section = load_config(name).data
    plugin = base.plugin_of(section)
    options = dataclasses.replace(plugin.options(section))
    return section, Source(base.make(section, root, options), "synthetic")


def equal(a: Dataset, b: Dataset) -> None:
    assert dataclasses.replace(a, splits={}) == dataclasses.replace(b, splits={})
    assert list(a.splits) == list(b.splits)
    for name, split in a.splits.items():
        other = b.splits[name]
        assert split.ids == other.ids
        assert torch.equal(split.target, other.target)
        assert list(split.inputs) == list(other.inputs)
        for one, two in zip(split.inputs.values(), other.inputs.values(), strict=True):
            assert isinstance(one, Padded) and isinstance(two, Padded)
            assert torch.equal(one.value, two.value)
            assert (one.mask is None) == (two.mask is None)
            assert one.mask is None or two.mask is None or torch.equal(one.mask, two.mask)


def maps() -> str:
    return Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("name", NAMES)
def test_the_second_process_maps_what_the_first_read(
    name: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, source = made(name, tmp_path)
    plugin = base.plugin_of(section)
    read = plugin.load(section, source.root)
    forget()
    first = base.load(section, source)
    (store,) = (p for p in cache.iterdir() if p.is_dir())
    forget()
    monkeypatch.setattr(plugin, "load", classmethod(lambda *_: pytest.fail("read again")))
    second = base.load(section, source)
    for found in (first, second):
        equal(found, dataclasses.replace(read, kind="synthetic"))
    if sys.platform == "linux":
        assert str(store / shared.FILE) in maps()


def test_two_processes_share_the_pages(tmp_path: Path) -> None:
    """Each maps the file that the other maps; neither has a copy: no anonymous memory of that size."""
    section = load_config("mosi").data
    options = SyntheticOptions(
        {"text": (50, 200), "audio": (50, 50), "visual": (50, 50)}, "text", classes=2
    )
    base.make(section, tmp_path, dataclasses.replace(options, train=900, val=50, test=50))
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from tune_mm.config import load_config\n"
        "from tune_mm.data import base\n"
        "section = load_config('mosi').data\n"
        "data = base.load(section, base.resolve(section, Path(sys.argv[1])))\n"
        "seen = float(sum(x.value.sum() for s in data.splits.values() for x in s.inputs.values()))\n"
        "lines = Path('/proc/self/smaps').read_text().splitlines()\n"
        "at = next(i for i, line in enumerate(lines) if 'dataset.pt' in line)\n"
        "size = {line.split(':')[0]: int(line.split()[1]) for line in lines[at + 1 : at + 22]}\n"
        "print(size['Rss'], size['Anonymous'], seen)\n"
    )
    if sys.platform != "linux":
        pytest.skip("needs /proc")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}

    def run() -> list[float]:
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return [float(x) for x in done.stdout.split()]

    forget()
    base.load(section, base.resolve(section, tmp_path))
    resident, anonymous, total = run()
    expected = 1000 * 50 * (200 + 50 + 50) * 4 / 1024  # KiB of float32 in all three splits
    assert resident > 0.9 * expected, "what was summed up is in memory"
    assert anonymous < 0.01 * expected, "as pages of the file, not as a copy"
    assert run()[2] == total


def test_changed_files_are_read_again(tmp_path: Path, cache: Path) -> None:
    section, source = made("mosi", tmp_path)
    forget()
    base.load(section, source)
    path = source.root / "mosi_data.pkl"
    raw = pickle.loads(path.read_bytes())
    raw["train"]["audio"] = np.full_like(raw["train"]["audio"], 2.5)
    path.write_bytes(pickle.dumps(raw))
    forget()
    found = base.load(section, source).splits["train"].inputs["audio"]
    assert isinstance(found, Padded)
    assert float(found.value.min()) == float(found.value.max()) == 2.5
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 2


def test_a_file_that_appears_counts(tmp_path: Path) -> None:
    """val.npz is optional: without it a part of train is carved out."""
    section, source = made("utd_mhad", tmp_path)
    kept = source.root / "val.npz"
    count = len(base.load(section, source).splits["val"])
    forget()
    kept.rename(tmp_path / "val.npz")
    carved = base.load(section, source)
    assert carved.notes and len(carved.splits["val"]) != count
    forget()
    (tmp_path / "val.npz").rename(kept)
    assert len(base.load(section, source).splits["val"]) == count


def test_other_code_reads_anew(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, source = made("mosi", tmp_path)
    forget()
    base.load(section, source)
    monkeypatch.setattr(shared, "_code", lambda: "another version")
    forget()
    base.load(section, source)
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 2


def without_permission(cache: Path) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text("a file where the folder should be")


def damaged(cache: Path) -> None:
    (store,) = (p for p in cache.iterdir() if p.is_dir())
    content = (store / shared.FILE).read_bytes()
    (store / shared.FILE).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(("spoil", "before"), [(without_permission, False), (damaged, True)])
def test_without_a_store_the_files_are_read(
    spoil: Callable[[Path], None],
    before: bool,
    tmp_path: Path,
    cache: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    section, source = made("mosi", tmp_path)
    forget()
    read = base.plugin_of(section).load(section, source.root)
    if before:
        base.load(section, source)
        forget()
    spoil(cache)
    equal(base.load(section, source), dataclasses.replace(read, kind="synthetic"))
    assert "mosi: every trial keeps a copy of its own" in caplog.text


def test_a_data_set_that_cannot_be_read_is_read_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section, source = made("mosi", tmp_path)
    forget()
    tries = []

    def load(*_: object) -> Dataset:
        tries.append(1)
        raise DataError("mosi_data.pkl: is not what it should be")

    monkeypatch.setattr(base.plugin_of(section), "load", load)
    with pytest.raises(DataError, match="is not what it should be"):
        base.load(section, source)
    assert tries == [1]
    assert not [p for p in cache.iterdir() if p.is_dir()]
