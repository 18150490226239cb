"""Epochs in which no trial is stopped: what it reports there says little about what it will reach.

They are what the method declares (`Method.dips`: after a re-initialisation, when a new stage
begins) and, under a step schedule, all epochs up to a little past the learning rate's last drop.
Ranges of epochs count from 1 and hold both ends.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tune_mm.config import Config, with_overrides
from tune_mm.core.build import method_of
from tune_mm.tune.space.space import Space, variants

Ranges = tuple[tuple[int, int], ...]


def within(epoch: int, ranges: Ranges) -> bool:
    """Whether an epoch lies in any of the ranges."""
    return any(first <= epoch <= last for first, last in ranges)


def behind(epoch: int, ranges: Ranges) -> int:
    """The first epoch from `epoch` on that lies in none of the ranges."""
    while within(epoch, ranges):
        ends = []
        for first, last in ranges:
            if first <= epoch <= last:
                ends.append(last)
        epoch = max(ends) + 1
    return epoch


def text(ranges: Ranges) -> str:
    """ "7-9, 20" """
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in ranges)


def of(config: Config) -> Ranges:
    """What the method of a config declares."""
    return method_of(config).dips(config.train.epochs)


def shared(space: Space, base: Config) -> Ranges:
    """Dips of every method setting that the space lists: all its trials keep to them.

    So rungs compare like with like. What a trial's own numbers add, it keeps to alone.
    base: the config of the stage.
    """
    found: set[tuple[int, int]] = set()
    for changes in variants(space):
        found.update(of(with_overrides(base, changes)))
    merged: list[tuple[int, int]] = []
    for first, last in sorted(found):
        if merged and first <= merged[-1][1] + 1:
            start, end = merged[-1]
            merged[-1] = (start, max(last, end))
        else:
            merged.append((first, last))
    return tuple(merged)


@dataclass(frozen=True)
class ProtectedEpochs:
    """The ranges of epochs in which a trial is not stopped, by its values."""

    base: Config  # before the trial's values
    always: Ranges = ()  # of all trials
    _known: dict[str, Ranges] = field(default_factory=dict)

    def __call__(self, values: Mapping[str, Any]) -> Ranges:
        own = {}
        for key, value in values.items():
            if key.partition(".")[0] == "method":
                own[key] = value
        setting = json.dumps(own, sort_keys=True)
        if setting not in self._known:
            dips = of(with_overrides(self.base, own))
            self._known[setting] = (*self.always, *dips)
        return self._known[setting]
