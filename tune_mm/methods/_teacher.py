"""How the models of one modality are trained that a method begins with or learns from."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from tune_mm.config import OptimConfig, ScheduleConfig, Section, to_dict
from tune_mm.core.types import Task


class Teacher(Section):
    """Settings of a training of their own, which a search leaves alone: trials that share them
    share the models.

    epochs: null is as many as the run has. The learning rate stays constant; the best epoch counts.
    """

    optim: OptimConfig = OptimConfig()
    epochs: int | None = Field(None, ge=1)
    batch_size: int = Field(64, ge=1)

    def changes(self, task: Task) -> dict[str, Any]:
        """By dotted key what differs from the run's own config: all of its training, and one linear
        layer on the pooled features in place of its fusion, but where pixels are predicted. The
        encoder stays, since features must be of one shape.
        """
        out: dict[str, Any] = {}
        for k, v in to_dict(self.optim).items():
            out[f"optim.{k}"] = v
        out |= {f"schedule.{k}": v for k, v in to_dict(ScheduleConfig()).items()}
        out |= {"train.batch_size": self.batch_size, "train.amp": "none"}
        out |= {} if task.kind == "segmentation" else {"model.fusion": "concat"}
        if self.epochs is None:
            return out
        return {**out, "train.epochs": self.epochs}
