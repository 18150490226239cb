"""What a user should know of a loaded data set, as plain values: kept with every run, notes shown
when it is loaded.
"""

from __future__ import annotations

from typing import Any

from tune_mm.core.types import Dataset


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
