"""What a trial runs, made from its values. Workers import this module: it must not pull in MLflow
(seconds each).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tune_mm.config import Config, with_overrides
from tune_mm.core.run import Run
from tune_mm.data import base as data
from tune_mm.data.base import Source
from tune_mm.tune.execute.trainable import Runnable

Build = Callable[[Config], Runnable]


def train(config: Config, source: Source, root: str | None) -> Runnable:
    """The default: core's Run on the data set, which is looked for again on a node without the
    driver's folder.

    Raises DataError, ValueError.
    """
    if not source.root.is_dir():
        source = data.resolve(
            config.data, None if root is None else Path(root), require_real=source.kind == "real"
        )
    return Run(config, data.load(config.data, source))


def built(values: Mapping[str, Any], base: Config, build: Build) -> Runnable:
    """A run of `base` with a trial's values."""
    return build(with_overrides(base, values))
