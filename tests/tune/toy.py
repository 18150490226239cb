"""A run of the same shape as core's Run that learns nothing: its objective is a formula of the
config and the epoch.

It lives in a module of its own because Ray's workers import it.
"""

from __future__ import annotations

import math
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tune_mm.config import Config


@dataclass(frozen=True)
class ToyResult:
    metrics: dict[str, float]
    best: bool
    done: bool
    diverged: bool
    notes: tuple[str, ...] = ()


@dataclass
class Toy:
    """The objective rises with the epochs towards 1 - |log10(lr) + 3| / 4. wait: seconds per epoch.
    passes: over the data, per epoch.

    In epoch 2 a weight_decay of 1 is not finite, 2 raises, 3 kills the worker (once per folder
    `marks`).
    """

    config: Config
    wait: float = 0.0
    marks: str = ""
    passes: float = 1.0
    best_value: float = -math.inf
    best_epoch: int = 0
    epochs_done: int = 0

    def epoch(self) -> ToyResult:
        _pause(self.wait)
        self.epochs_done += 1
        goal = 1 - abs(math.log10(self.config.optim.lr) + 3) / 4
        value = goal * self.epochs_done / (self.epochs_done + 1)
        trouble = self.config.optim.weight_decay if self.epochs_done == 2 else 0.0
        if trouble == 1:
            value = math.nan
        if trouble == 2:
            raise ValueError("a setting that the model refuses")
        if trouble == 3:
            mark = Path(self.marks) / "died"
            if not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        best = value > self.best_value
        if best:
            self.best_value, self.best_epoch = value, self.epochs_done
        done = math.isnan(value) or self.epochs_done >= self.config.train.epochs
        metrics = {"val/accuracy": value, "train/loss": 1 - value, "val/worker": float(os.getpid())}
        metrics["passes"] = self.passes * self.epochs_done
        return ToyResult(metrics, best, done, math.isnan(value))

    def test(self) -> dict[str, float]:
        return {"test/accuracy": self.best_value - 0.1 + self.config.seed * 1e-3}

    def state_dict(self) -> dict[str, Any]:
        return {"epochs_done": self.epochs_done, "best": [self.best_epoch, self.best_value]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs_done = state["epochs_done"]
        self.best_epoch, self.best_value = state["best"]

    def best_state(self) -> dict[str, torch.Tensor]:
        return {"weight": torch.full((2,), self.best_value)}

    def gradient_vectors(self) -> dict[str, torch.Tensor]:
        return {"text/unimodal": torch.full((1, 2), self.best_value)}


def _pause(seconds: float) -> None:
    """Take that long, as training would."""
    if seconds:
        import time

        time.sleep(seconds)
