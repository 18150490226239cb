"""Learning-rate factors by epoch or by step: constant, step, cosine and plateau, each after an
optional linear warm-up, and one cycle, whose two parts are cosines.

A span that is a float in (0, 1) is a fraction of all epochs, an int is epochs; a change of the
budget therefore scales a schedule written in fractions.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tune_mm.config import ScheduleConfig


class Plateau(NamedTuple):
    """Memory of the plateau schedule: the factor reached, the best loss, and epochs since."""

    factor: float = 1.0
    best: float = math.inf
    bad: int = 0


def epochs_of(span: int | float, epochs: int) -> float:
    """A span in epochs. A float in (0, 1) is a fraction of `epochs`."""
    if isinstance(span, float) and 0 < span < 1:
        return span * epochs
    return float(span)


def factor(
    config: ScheduleConfig, epoch: int, epochs: int, plateau: Plateau, share: float = 0.0
) -> float:
    """What the base learning rate is multiplied by in `epoch` (from 0) of `epochs`.

    share: of the epoch's steps, those that are done, in 0..1; it counts where the schedule goes
    `per` step.
    """
    warmup = epochs_of(config.warmup, epochs)
    now = epoch + (share if config.per == "step" else 0.0)
    if config.name == "onecycle":
        return _one_cycle(config, now, warmup - 1, epochs - 1)
    if now < warmup:
        return config.warmup_start + (1 - config.warmup_start) * now / warmup
    if config.name == "step":
        passed = sum(now >= round(epochs_of(m, epochs)) for m in config.milestones)
        return float(config.factor**passed)
    if config.name == "cosine":
        done = (now - warmup) / max(epochs - warmup, 1)
        return _eased(1.0, config.floor, done)
    if config.name == "plateau":
        return plateau.factor
    return 1.0


def _one_cycle(config: ScheduleConfig, now: float, top: float, last: float) -> float:
    """As torch's OneCycleLR counts: 1 is reached in the last epoch of the warm-up, `floor` in the
    last of all.
    """
    if now < top:
        return _eased(config.warmup_start, 1.0, now / top)
    return _eased(
        1.0, config.floor, min((now - max(top, 0.0)) / max(last - max(top, 0.0), 1.0), 1.0)
    )


def _eased(start: float, end: float, done: float) -> float:
    """Half a cosine from `start` (done = 0) to `end` (1)."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * done))


def observe(config: ScheduleConfig, plateau: Plateau, loss: float, epochs: int) -> Plateau:
    """Plateau's memory after an epoch: as torch's ReduceLROnPlateau (mode min, relative threshold
    1e-4).
    """
    if config.name != "plateau":
        return plateau
    if loss < plateau.best * (1 - 1e-4):
        return Plateau(plateau.factor, loss, 0)
    bad = plateau.bad + 1
    if bad > epochs_of(config.patience, epochs):
        return Plateau(plateau.factor * config.factor, plateau.best, 0)
    return plateau._replace(bad=bad)


def restore(values: Any) -> Plateau:
    """A Plateau from its stored list."""
    return Plateau(float(values[0]), float(values[1]), int(values[2]))
