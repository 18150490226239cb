"""Checks and small conversions between the files' arrays and the tensors of a `Dataset`.

Shapes: N samples, T time steps, D channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tune_mm.core.types import VOID, Dataset, Padded, Split, Stored, Task
from tune_mm.errors import UserError, nearest

SPLITS = ("train", "val", "test")
Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Index = NDArray[np.int64]


class DataError(UserError):
    """Data that are missing, damaged or not what the configuration says: file, what, got, allowed."""


def entry(group: Mapping[str, Any], key: str, where: str) -> Any:
    """`group[key]`. Raises DataError with the keys that are there."""
    if key not in group:
        known = ", ".join(map(str, group)) or "none"
        raise DataError(f"{where}: no '{key}'{nearest(key, map(str, group))}; available: {known}")
    return group[key]


def features(raw: Any, where: str, *, dims: tuple[int, ...] = (2, 3)) -> Float:
    """A contiguous float32 copy of real numbers, integers or booleans with a number of axes in
    `dims`.

    Raises DataError for another dtype, number of axes, or an empty axis.
    """
    array = np.asarray(raw)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{where}: must hold numbers, got {array.dtype}")
    if array.ndim not in dims or 0 in array.shape:
        allowed = " or ".join({2: "[N, D]", 3: "[N, T, D]"}[d] for d in dims)
        raise DataError(f"{where}: must be {allowed} with no empty axis, got {list(array.shape)}")
    return np.array(array, dtype=np.float32, order="C")


def require_finite(values: Float, where: str) -> None:
    """Raises DataError with the count and the first sample that holds NaN or infinity."""
    bad = ~np.isfinite(values)
    if bad.any():
        first = int(np.argwhere(bad)[0][0])
        raise DataError(
            f"{where}: must be finite, got {int(bad.sum())} NaN or infinite, first in sample {first}"
        )


def nonzero_steps(values: Float) -> Mask:
    """[N, T]: True where a step of [N, T, D] holds anything but zeros; position 0 is always real."""
    mask: Mask = (values != 0).any(axis=-1)
    mask[:, 0] = True
    return mask


def length_mask(lengths: Any, steps: int, where: str) -> Mask:
    """[N, T] from lengths [N] or [N, 1] in 1..T. Raises DataError."""
    array = np.asarray(lengths)
    if array.dtype.kind not in "iu" or array.size != len(array):
        raise DataError(f"{where}: must be integers [N], got {array.dtype} {list(array.shape)}")
    array = array.reshape(-1)
    if array.size and not (array.min() >= 1 and array.max() <= steps):
        raise DataError(
            f"{where}: lengths must be between 1 and {steps}, got {array.min()} to {array.max()}"
        )
    mask: Mask = np.arange(steps)[None, :] < array[:, None]
    return mask


def column(raw: Any, where: str) -> NDArray[Any]:
    """[N] from [N], [N, 1] or [N, 1, 1] numbers. Raises DataError."""
    array = np.asarray(raw)
    if array.dtype.kind not in "fiub" or array.ndim == 0 or array.size != len(array):
        raise DataError(
            f"{where}: must be one number per sample, got {array.dtype} {list(array.shape)}"
        )
    return array.reshape(-1)


def class_labels(raw: Any, where: str) -> NDArray[np.int64]:
    """int64 [N], each >= 0. Floats are taken when they are whole. Raises DataError."""
    array = column(raw, where)
    if np.isfinite(array).all():
        whole = array.astype(np.int64)
    else:
        whole = None
    if whole is None or not (whole == array).all() or (whole < 0).any():
        if array.dtype.kind in "fiu":
            bad = array[(array < 0) | (array != np.floor(array))]
        else:
            bad = array
        raise DataError(
            f"{where}: classes must be integers >= 0, got {', '.join(map(str, bad[:3].tolist()))}"
        )
    return whole


def scores(raw: Any, where: str) -> Float:
    """float32 [N], finite. Raises DataError."""
    array = column(raw, where).astype(np.float32)
    require_finite(array, where)
    return array


def same_length(named: Mapping[str, int], where: str) -> None:
    """Raises DataError unless all counts of samples agree."""
    if len(set(named.values())) > 1:
        counts = ", ".join(f"{k} {n}" for k, n in named.items())
        raise DataError(f"{where}: all arrays must have as many samples, got {counts}")


def same_shapes(
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]], where: str
) -> dict[str, tuple[int, ...]]:
    """The shape of each modality out of those by split. Raises DataError where splits differ."""
    first = next(iter(shapes.values()))
    for modality in first:
        by_split = {}
        for split, own in shapes.items():
            by_split[split] = own[modality]
        if len(set(by_split.values())) > 1:
            got = ", ".join(f"{split} {list(s)}" for split, s in by_split.items())
            raise DataError(
                f"{where}: '{modality}' must have one shape per sample in all splits, got {got}"
            )
    return dict(first)


def padded(values: Float, mask: Mask | None) -> Padded:
    """Tensors that share the arrays' memory."""
    return Padded(
        torch.from_numpy(values),
        None if mask is None else torch.from_numpy(np.ascontiguousarray(mask)),
    )


def without_full(
    masks: Mapping[str, Mapping[str, Mask | None]],
) -> dict[str, dict[str, Mask | None]]:
    """Masks by split and modality, with those of a modality dropped where no split has a padded
    step.
    """
    padding = set()
    for own in masks.values():
        for m, mask in own.items():
            if mask is not None and not mask.all():
                padding.add(m)
    return {
        split: {m: mask if m in padding else None for m, mask in own.items()}
        for split, own in masks.items()
    }


def names(raw: Any, where: str) -> tuple[str, ...]:
    """Sample names out of text, bytes or rows of them ([N], [N, 1], [N, K]: joined by '_'). Raises
    DataError.
    """
    rows = raw.tolist() if isinstance(raw, np.ndarray) else raw
    if not isinstance(rows, (list, tuple)):
        raise DataError(f"{where}: must be a list of names, got {type(rows).__name__}")
    return tuple(_name(row) for row in rows)


def _name(row: Any) -> str:
    if isinstance(row, bytes):
        return row.decode("utf-8", "replace")
    if isinstance(row, np.ndarray):
        row = row.tolist()
    if isinstance(row, (list, tuple)):
        return "_".join(_name(part) for part in row)
    return str(row)


def check(dataset: Dataset, place: Path) -> None:
    """What the trainer relies on: shapes, dtypes, finite values, targets, disjoint splits. Raises
    DataError.
    """
    if tuple(dataset.splits) != SPLITS:
        raise DataError(
            f"{place}: splits must be {', '.join(SPLITS)}, got {', '.join(dataset.splits)}"
        )
    for name, split in dataset.splits.items():
        where = f"{place}: {name}"
        if len(split) == 0:
            raise DataError(f"{where}: must have at least one sample, got none")
        if split.ids and len(split.ids) != len(split):
            raise DataError(f"{where}: {len(split.ids)} names for {len(split)} samples")
        _check_target(split.target, dataset.spec.task, where)
        if split.drawn is not None:
            _check_input(split.drawn, tuple(split.target.shape), f"{where}: drawn target")
        if tuple(split.inputs) != dataset.spec.modalities:
            raise DataError(
                f"{where}: modalities must be {dataset.spec.modalities}, got {tuple(split.inputs)}"
            )
        for modality, shape in dataset.spec.shapes.items():
            _check_input(
                split.inputs[modality], (len(split), *_whole(shape, split)), f"{where}: {modality}"
            )
    disjoint({name: split.ids for name, split in dataset.splits.items()}, str(place))


def _whole(shape: tuple[int, ...], split: Split) -> tuple[int, ...]:
    """The shape of one sample before the split's transform, which cuts images to `shape`."""
    if split.target.ndim == 1:
        return shape
    return (*shape[:-2], *split.target.shape[1:])


def _check_target(target: torch.Tensor, task: Task, where: str) -> None:
    if task.kind == "segmentation":
        _check_masks(target, task, where)
        return
    if task.kind == "classification":
        dtype = torch.int64
    else:
        dtype = torch.float32
    if target.dtype != dtype or target.ndim != 1:
        raise DataError(
            f"{where}: target must be {dtype} [N], got {target.dtype} {list(target.shape)}"
        )
    if (
        task.kind == "classification"
        and not 0 <= int(target.min()) <= int(target.max()) < task.outputs
    ):
        got = f"{int(target.min())} to {int(target.max())}"
        raise DataError(f"{where}: classes must be between 0 and {task.outputs - 1}, got {got}")
    if not bool(torch.isfinite(target).all()):
        raise DataError(f"{where}: target must be finite")


def _check_masks(target: torch.Tensor, task: Task, where: str) -> None:
    if target.dtype != torch.uint8 or target.ndim != 3:
        raise DataError(
            f"{where}: target must be torch.uint8 [N, H, W], got {target.dtype} {list(target.shape)}"
        )
    known = target[target != VOID]
    if not len(known):
        raise DataError(f"{where}: target must have a known pixel, got none")
    if int(known.max()) >= task.outputs:
        raise DataError(
            f"{where}: classes must be between 0 and {task.outputs - 1}, got {int(known.max())}"
        )


def _check_input(x: Padded | Stored, shape: tuple[int, ...], where: str) -> None:
    if isinstance(x, Stored):
        # The values of a store are checked when it is built.
        if (len(x), *x.shape) != shape:
            raise DataError(f"{where}: must be {list(shape)}, got {[len(x), *x.shape]}")
        return
    if (
        x.value.dtype != torch.float32
        or tuple(x.value.shape) != shape
        or not x.value.is_contiguous()
    ):
        raise DataError(
            f"{where}: must be contiguous float32 {list(shape)}, got {x.value.dtype} {list(x.value.shape)}"
        )
    if not bool(torch.isfinite(x.value).all()):
        raise DataError(f"{where}: must be finite")
    if x.mask is None:
        return
    if x.mask.dtype != torch.bool or x.mask.shape != x.value.shape[:2]:
        got = f"{x.mask.dtype} {list(x.mask.shape)}"
        raise DataError(f"{where}: mask must be bool {list(x.value.shape[:2])}, got {got}")
    empty = (~x.mask.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise DataError(
            f"{where}: every sample must have a real step, {len(empty)} have none, first {empty[0]}"
        )


def disjoint(ids: Mapping[str, Sequence[str]], where: str) -> None:
    """Raises DataError with the first name that two splits share."""
    seen: dict[str, str] = {}
    for split, own in ids.items():
        for name in own:
            if seen.setdefault(name, split) != split:
                raise DataError(
                    f"{where}: splits must not share samples, got '{name}' in {seen[name]} and {split}"
                )


def count(target: Iterable[Any]) -> dict[Any, int]:
    """How often each value occurs, by value."""
    values, counts = np.unique(np.asarray(target), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def split_of(
    values: Mapping[str, Float], masks: Mapping[str, Mask | None], target: Any, ids: tuple[str, ...]
) -> Split:
    """A `Split` out of arrays by modality."""
    return Split(
        {m: padded(values[m], masks[m]) for m in values}, torch.from_numpy(np.array(target)), ids
    )
