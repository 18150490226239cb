"""A single run in MLflow, in the shape that searches write."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tune_mm.config import dump_config, flatten
from tune_mm.core import artifacts
from tune_mm.core.run import Result
from tune_mm.data.summary import summary
from tune_mm.single.state import State

if TYPE_CHECKING:  # mlflow takes a second to import, and --no-tracking does without
    from tune_mm.track.run import Status
    from tune_mm.track.writer import Writer


class TrackedRun:
    """The run in MLflow; does nothing without a writer."""

    def __init__(self, writer: Writer | None, state: State, name: str, data_kind: str) -> None:
        self.writer = writer
        self.state = state
        if writer is None:
            return
        from tune_mm.track.tags import environment, tags_for

        config = state.run.config
        tags = {
            **tags_for(config, stage="train", data_kind=data_kind),
            **environment(),
            "objective": state.run.objective,
        }
        self.handle = writer.start(name, flatten(config), tags, key=state.key)
        writer.artifact(self.handle, dump_config(config), "config.yaml")
        about = json.dumps(summary(state.run.dataset), indent=1)
        writer.artifact(self.handle, f"{about}\n", "data.json")
        # What a kill kept from the store; steps that it has are skipped.
        for epoch, values in enumerate(state.history, 1):
            writer.log(self.handle, values, epoch)

    def epoch(self, result: Result) -> None:
        """An epoch's metrics."""
        if self.writer is not None:
            self.writer.log(self.handle, result.metrics, result.epoch)

    def finish(
        self, status: Status, reason: str, test: Mapping[str, float], seconds: float
    ) -> None:
        """How it ended: best and test metrics, summary, the tensors of the best epoch."""
        if self.writer is None:
            return
        run = self.state.run
        values = dict(test)
        for name, value in self.state.best_metrics.items():
            values[f"best/{name}"] = value
        self.writer.log(self.handle, values, run.epochs_done)
        told = json.dumps(summarize(self.state, status, reason, test, seconds), indent=2)
        self.writer.artifact(self.handle, f"{told}\n", "summary.json")
        if run.best_epoch:
            with tempfile.TemporaryDirectory() as folder:
                artifacts.write(Path(folder), run.best_state(), run.gradient_vectors())
                for file in sorted(Path(folder).iterdir()):
                    self.writer.artifact(self.handle, file, file.name)
        self.writer.finish(self.handle, status, reason)


def summarize(
    state: State, status: str, reason: str, test: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    """What summary.json holds: how the run ended.

    Numbers that are not finite are null, which any JSON reader takes.
    """
    run = state.run
    return {
        "config": run.config.name,
        "method": run.config.method.name,
        "seed": run.config.seed,
        "data_kind": run.dataset.kind,
        "status": status,
        "reason": reason,
        "epochs": run.epochs_done,
        "objective": run.objective,
        "mode": run.mode,
        "best_epoch": run.best_epoch,
        "best_value": _finite(run.best_value),
        "best_metrics": {name: _finite(value) for name, value in state.best_metrics.items()},
        "test": {name: _finite(value) for name, value in test.items()},
        "seconds": round(seconds, 3),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
