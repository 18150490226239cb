"""Data sets that lie in memory, kept as one memory-mapped file: read and checked once, shared by
all trials of a node.

A pickle that is read by every worker of a node is there as often as there are workers. Here the
first one writes what it has read into the store (see `cache`, whose lock and key it gets), and all
of them map that file: its pages are in memory once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tune_mm.core.types import Dataset, DataSpec, Padded, Split, Task
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.store import cache

log = logging.getLogger("tune_mm.data")

FILE = "dataset.pt"
# Bytes of files below which every process reads them itself: that costs less than it saves.
SMALL = 4 * 2**20


def once(name: str, settings: Any, files: Sequence[Path], read: Callable[[], Dataset]) -> Dataset:
    """What `read` returns, from the store where it is there.

    settings: the JSON values of the `data:` section; files: what `read` reads, as far as it is
    there. Where the store cannot be written or is damaged, the data set is read as if there were
    none. Raises what `read` raises.
    """
    there = [path for path in files if path.is_file()]
    if sum(path.stat().st_size for path in there) < SMALL:
        return read()
    top = os.path.commonpath([path.parent for path in there])
    sources = {os.path.relpath(path, top): (path,) for path in there}
    began = False
    dataset: Dataset | None = None

    def build(folder: Path, ids: list[str]) -> dict[str, str]:
        nonlocal began, dataset
        began = True
        dataset = read()
        torch.save(_plain(dataset), folder / FILE)
        return {}

    decisive = {"config": settings, "code": _code()}
    recipe = cache.StoreRecipe(name, "files", decisive, sources)
    try:
        return _open(cache.open_store(recipe, build).folder)
    except DataError as error:
        if dataset is None:
            if began:  # the data set itself cannot be read
                raise
            dataset = read()
        log.warning("%s: every trial keeps a copy of its own: %s", name, error)
        return dataset


def _plain(dataset: Dataset) -> dict[str, Any]:
    """Tensors, texts and numbers alone, which can be read without running anything."""
    return {
        "name": dataset.name,
        "shapes": {m: list(shape) for m, shape in dataset.spec.shapes.items()},
        "task": dataclasses.asdict(dataset.spec.task),
        "splits": {name: _plain_split(split) for name, split in dataset.splits.items()},
        "notes": list(dataset.notes),
        "dropped": dict(dataset.dropped),
    }


def _plain_split(split: Split) -> dict[str, Any]:
    inputs = {}
    for modality, x in split.inputs.items():
        if isinstance(x, Padded):
            inputs[modality] = (x.value, x.mask)
    return {"inputs": inputs, "target": split.target, "ids": list(split.ids)}


def _open(folder: Path) -> Dataset:
    """The data set in a store. Raises DataError where it is damaged."""
    try:
        raw = torch.load(folder / FILE, mmap=True, weights_only=True)
        shapes = {}
        for m, shape in raw["shapes"].items():
            shapes[m] = tuple(shape)
        spec = DataSpec(shapes, Task(**raw["task"]))
        splits = {}
        for name, own in raw["splits"].items():
            splits[name] = _split(own)
    except Exception as error:  # whatever torch raises for a file that is not what was written
        raise cache.damaged(folder, FILE) from error
    dataset = Dataset(raw["name"], spec, splits, notes=tuple(raw["notes"]))
    return dataclasses.replace(dataset, dropped=raw["dropped"])


def _split(raw: dict[str, Any]) -> Split:
    inputs = {}
    for m, (value, mask) in raw["inputs"].items():
        inputs[m] = Padded(value, mask)
    return Split(inputs, raw["target"], tuple(raw["ids"]))


@functools.cache
def _code() -> str:
    """A digest of the modules that read data: what other code has stored is not read."""
    total = hashlib.blake2b(digest_size=8)
    for path in sorted(Path(__file__).parent.parent.rglob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()
