"""The GPU memory of one trial, measured.

Ray counts fractions of GPUs and knows nothing of what a trial takes.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tune_mm.config import Config, dump_config, with_overrides
from tune_mm.core.run import Run
from tune_mm.core.types import Dataset, Padded, Split, Stored
from tune_mm.data import base as data
from tune_mm.data.base import Source
from tune_mm.tune.space.space import Space, variants

# Training steps that are measured: the first allocates, the second has the optimizer's state.
STEPS = 3


def candidates(space: Space, base: Config) -> list[Config]:
    """What a space may make of its config, as far as it decides memory.

    Numbers of the model and the batch are at their greatest; choices of model and method are
    changed one at a time.
    """
    greatest: dict[str, Any] = {}
    for key, domain in space.domains.items():
        bounds = domain.bounds()
        if _decides_memory(key) and all(map(_is_number, bounds)):
            greatest[key] = max(bounds)  # type: ignore[type-var]
    found: dict[str, Config] = {}
    for changes in variants(space):
        config = with_overrides(base, {**greatest, **changes})
        found[dump_config(config)] = config
    return list(found.values())


def _decides_memory(key: str) -> bool:
    return key.startswith(("model.", "train.")) and key != "train.epochs"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def peak(configs: Sequence[Config], source: Source, root: str | None) -> int:
    """Bytes of GPU memory that a trial of any of `configs` takes at most, CUDA context included.

    Asked on a node. Each config trains `STEPS` steps, evaluates and saves its state. What other
    processes take of the GPU counts as well. One that finds too little memory counts as the whole
    GPU. Raises DataError, ValueError, and RuntimeError without a GPU.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("Ray counts a GPU here, but torch cannot use it")
    if not source.root.is_dir():
        folder = None if root is None else Path(root)
        needs_real = source.kind == "real"
        source = data.resolve(configs[0].data, folder, require_real=needs_real)
    found = 0
    refused = ValueError("no settings to measure")
    for config in configs:
        torch.cuda.reset_peak_memory_stats()
        try:
            resident = _train(config, data.load(config.data, source))
        except torch.OutOfMemoryError:
            return int(torch.cuda.mem_get_info()[1])
        except ValueError as error:  # a trial with these settings ends like that, too
            refused = error
            continue
        gc.collect()
        torch.cuda.empty_cache()
        free, total = torch.cuda.mem_get_info()
        others = total - free - torch.cuda.memory_reserved()
        found = max(found, torch.cuda.max_memory_reserved() + resident + others)
    if not found:
        raise refused
    return found


def _train(config: Config, dataset: Dataset) -> int:
    """A few steps and all else that a trial does.

    Returns the bytes that the whole data set takes beside the part used here.
    """
    part = shortened(dataset, config)
    run = Run(config, part)
    run.epoch()
    run.state_dict()
    run.evaluate("test")
    return size(dataset) - size(part)


def shortened(dataset: Dataset, config: Config) -> Dataset:
    """As many samples as `STEPS` batches, the statistics' probe and an evaluation take."""
    train = config.train
    splits: dict[str, Split] = {}
    for name, split in dataset.splits.items():
        count = train.eval_batch_size
        if name == "train":
            count = max(STEPS * train.batch_size, train.probe_size)
        splits[name] = _first(split, count)
    return Dataset(dataset.name, dataset.spec, splits, dataset.kind)


def size(dataset: Dataset) -> int:
    """Bytes of what a run moves to its device beforehand: inputs that are not stored, and targets."""
    tensors = [split.target for split in dataset.splits.values()]
    for split in dataset.splits.values():
        for held in split.inputs.values():
            if isinstance(held, Padded):
                tensors += held.tensors
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _first(split: Split, count: int) -> Split:
    count = min(count, len(split))
    inputs: dict[str, Padded | Stored] = {}
    for modality, held in split.inputs.items():
        if isinstance(held, Padded):
            inputs[modality] = held.take(torch.arange(count))
        else:
            inputs[modality] = _First(held, count)
    if split.drawn is None:
        drawn = None
    else:
        drawn = _First(split.drawn, count)
    return dataclasses.replace(
        split, inputs=inputs, target=split.target[:count], ids=split.ids[:count], drawn=drawn
    )


class _First(Stored):
    """The first samples of a stored modality."""

    def __init__(self, whole: Stored, count: int) -> None:
        self._whole = whole
        self._count = count
        self.shape = whole.shape

    def __len__(self) -> int:
        return self._count

    def to(self, device: torch.device) -> Stored:
        return _First(self._whole.to(device), self._count)

    def take(self, index: torch.Tensor, generator: torch.Generator | None = None) -> Padded:
        return self._whole.take(index, generator)
