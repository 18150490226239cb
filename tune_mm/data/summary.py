"""What a user should know of a loaded data set: as plain values, which are kept with every run, and as
lines for a terminal.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from tune_mm.core.types import VOID, Dataset, Padded, Split
from tune_mm.data.arrays.checks import count


def summary(dataset: Dataset) -> dict[str, Any]:
    """Name, task with the classes in the order of their indices, shapes, sizes, notes, what was
    left out and why.
    """
    task = dataset.spec.task
    return {
        "name": dataset.name,
        "kind": dataset.kind,
        "task": {"kind": task.kind, "outputs": task.outputs, "class_names": list(task.class_names)},
        "shapes": {m: list(shape) for m, shape in dataset.spec.shapes.items()},
        "samples": {name: len(split) for name, split in dataset.splits.items()},
        "notes": list(dataset.notes),
        "dropped": dict(dataset.dropped),
    }


def described(dataset: Dataset) -> list[str]:
    """Shapes, sizes, how the target is spread and how much is padding, one line each."""
    task = dataset.spec.task
    outputs = f", {task.outputs} classes"
    if task.kind == "regression":
        outputs = ""
    lines = [f"task: {task.kind}{outputs}"]
    for modality, shape in dataset.spec.shapes.items():
        padding = _padding(dataset.splits["train"], modality)
        lines.append(f"{modality}: {list(shape)}{padding}")
    spread = _SPREADS[task.kind]
    for name, split in dataset.splits.items():
        lines.append(f"{name}: {len(split)} samples, {spread(split.target)}")
    lines += [f"note: {note}" for note in dataset.notes]
    lines += [f"left out: {name}: {reason}" for name, reason in dataset.dropped.items()]
    return lines


def _padding(train: Split, modality: str) -> str:
    x = train.inputs[modality]
    if not isinstance(x, Padded) or x.mask is None:
        return ""
    share = 1 - x.mask.float().mean().item()
    return f", {share:.0%} of train's steps are padding"


def _of_scores(target: Tensor) -> str:
    least = target.min().item()
    largest = target.max().item()
    return f"values {least:.3g} to {largest:.3g}, mean {target.mean().item():.3g}"


def _of_pixels(target: Tensor) -> str:
    found = count(target.numpy())
    void = found.pop(VOID, 0)
    known = sum(found.values())
    shares = " ".join(f"{name}:{number / known:.1%}" for name, number in found.items())
    if not void:
        return f"pixels {shares}"
    return f"pixels {shares}, {void / target.numel():.1%} unknown"


def _of_classes(target: Tensor) -> str:
    found = count(target.numpy())
    return "per class " + " ".join(f"{name}:{number}" for name, number in found.items())


_SPREADS = {
    "regression": _of_scores,
    "segmentation": _of_pixels,
    "classification": _of_classes,
}
