"""Which training samples come when, and how they are read: functions of the seed and the epoch
alone.

Nothing here depends on what was trained before, so a resumed run sees the same batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from tune_mm.core.types import Batch, Split


def key(seed: int, epoch: int) -> int:
    """The random stream of an epoch (from 0)."""
    return seed * 1_000_003 + epoch


def order(count: int, size: int, key: int) -> list[Tensor]:
    """Indices of all `count` samples, shuffled, in batches of `size`.

    A last batch of one sample joins the one before it: BatchNorm has no statistics of one value.
    """
    parts = list(
        torch.split(torch.randperm(count, generator=torch.Generator().manual_seed(key)), size)
    )
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def read(split: Split, order: list[Tensor], key: int, ahead: bool = False) -> Iterator[Batch]:
    """Training batches; crops, frames and flips of each are drawn from a stream of its own.

    ahead: a thread reads the next batch while the present one is used (for stored data, where a GPU
    computes).
    """
    one = partial(_batch, split, key)
    if not ahead:
        yield from map(one, order, range(len(order)))
        return
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(one, order[0], 0)
        for number in range(1, len(order)):
            batch = coming.result()
            coming = reader.submit(one, order[number], number)
            yield batch
        yield coming.result()


def _batch(split: Split, key: int, index: Tensor, number: int) -> Batch:
    stream = torch.Generator().manual_seed((key * 100_003 + number) % 2**63)
    return split.batch(index, stream)
