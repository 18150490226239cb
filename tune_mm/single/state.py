"""What outlives the process of a single run."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tune_mm.config import dump_config
from tune_mm.core import checkpoint
from tune_mm.core.run import Run
from tune_mm.errors import UserError


@dataclass
class State:
    """A run, and what this program adds to it."""

    run: Run
    # Of the MLflow run, which a resumed run goes on with.
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    # The metrics of each epoch.
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it to `path`. Raises UserError where that is not possible."""
        values = {
            "config": dump_config(self.run.config),
            "key": self.key,
            "history": self.history,
            "run": self.run.state_dict(),
        }
        try:
            checkpoint.save(values, path)
        except OSError as error:
            raise UserError(
                f"--resume {path}: cannot be written: {error.strerror or error}"
            ) from error

    def restore(self, path: Path) -> None:
        """Go on from `path`. Raises UserError when it is no state of this very configuration."""
        ours = dump_config(self.run.config)
        try:
            found = checkpoint.load(path)
            theirs = found["config"]
            if theirs == ours:
                self.run.load_state_dict(found["run"])
                self.key = found["key"]
                self.history = found["history"]
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"--resume {path}: no state of a training run: {error}") from error
        if theirs != ours:
            raise UserError(f"--resume {path}: {_difference(theirs, ours)}")

    @property
    def best_metrics(self) -> dict[str, float]:
        """Validation metrics of the best epoch ({} before the first)."""
        if not self.run.best_epoch:
            return {}
        best = self.history[self.run.best_epoch - 1]
        return {name: value for name, value in best.items() if name.startswith("val/")}


def _difference(theirs: str, ours: str) -> str:
    """The first line in which two dumped configurations differ."""
    there = here = ""
    for there, here in zip([*theirs.splitlines(), ""], [*ours.splitlines(), ""], strict=False):
        if there != here:
            break
    return (
        f"was made with another configuration ('{there.strip()}', now '{here.strip()}'); "
        "remove the file to begin anew"
    )
