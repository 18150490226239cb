"""How the models of one modality are trained that a method begins with or learns from."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tune_mm.config import OptimConfig, ScheduleConfig, Section, to_dict
from tune_mm.core.types import Task


class Teacher(Section):
    """Settings of a training of their own, which a search leaves alone: trials that share them
    share the models.

    The learning rate stays constant; the best epoch counts.
    """

    # The optimizer and its settings.
    optim: OptimConfig = OptimConfig()
    # Epochs of training (null: as many as the run has).
    epochs: int | None = Field(None, ge=1)
    # Samples in a batch.
    batch_size: int = Field(64, ge=1)

    def changes(self, task: Task) -> dict[str, Any]:
        """By dotted key what differs from the run's own config: all of its training, and one linear
        layer on the pooled features in place of its fusion, but where pixels are predicted. The
        encoder stays, since features must be of one shape.
        """
        out: dict[str, Any] = {}
        for field, value in to_dict(self.optim).items():
            out[f"optim.{field}"] = value
        for field, value in to_dict(ScheduleConfig()).items():
            out[f"schedule.{field}"] = value
        out["train.batch_size"] = self.batch_size
        out["train.amp"] = "none"
        if task.kind != "segmentation":
            out["model.fusion"] = "concat"
        if self.epochs is not None:
            out["train.epochs"] = self.epochs
        return out
