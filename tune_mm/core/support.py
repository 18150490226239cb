"""What a method can train, as a statement that is checked before anything starts and shown as a
table.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import get_args

from tune_mm.core.types import DataSpec, TaskKind
from tune_mm.errors import nearest

TASKS: tuple[TaskKind, ...] = get_args(TaskKind)
SPARSE: tuple[TaskKind, ...] = ("classification", "regression")  # one output per sample


@dataclass(frozen=True)
class Support:
    """What a method trains, and at what cost."""

    # Numbers of modalities; `most` None: any number above.
    least: int = 1
    most: int | None = None
    tasks: tuple[TaskKind, ...] = SPARSE
    # Names of the plug-ins; None: all that the method's `check` accepts.
    fusions: tuple[str, ...] | None = None
    # What it takes beside a joint step, in words.
    cost: str = "none"

    @property
    def modalities(self) -> str:
        """Their allowed number: "2", "2 or more"."""
        if self.most is None:
            return f"{self.least} or more"
        if self.least == self.most:
            return str(self.least)
        return f"{self.least} to {self.most}"

    def require(self, name: str, spec: DataSpec, fusion: str) -> None:
        """Raises ValueError, naming what is supported, for data, a task or a fusion that method
        `name` cannot train.
        """
        count = len(spec.modalities)
        too_many = self.most is not None and count > self.most
        if count < self.least or too_many:
            got = f"{count} ({', '.join(spec.modalities)})"
            raise ValueError(f"method.name: {name} needs {self.modalities} modalities, got {got}")
        if spec.task.kind not in self.tasks:
            allowed = ", ".join(self.tasks)
            raise ValueError(
                f"method.name: {name} trains {allowed}, and these data are {spec.task.kind}"
            )
        if self.fusions is not None and fusion not in self.fusions:
            allowed = ", ".join(self.fusions)
            one_of = "one of " if len(self.fusions) > 1 else ""
            raise ValueError(f"model.fusion: {name} needs {one_of}{allowed}, got '{fusion}'")


def require_modalities(field: str, names: Iterable[str], spec: DataSpec) -> None:
    """Raises ValueError for the first of `names`, keys of the setting method.<field>, that is no
    modality of `spec`.
    """
    for name in names:
        if name not in spec.shapes:
            hint = nearest(name, spec.modalities)
            known = ", ".join(spec.modalities)
            raise ValueError(f"method.{field}: no modality '{name}'{hint}; available: {known}")
