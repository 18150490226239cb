"""A single run from its first epoch to its test."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tune_mm.config import Config
from tune_mm.core.run import Result, Run
from tune_mm.core.types import Dataset
from tune_mm.errors import UserError
from tune_mm.single.display import line, table
from tune_mm.single.state import State
from tune_mm.single.tracked import TrackedRun

DIVERGED = 1


def build(config: Config, dataset: Dataset) -> Run:
    """The run.

    Raises UserError for a method that does not take these data, and for a metric or a device that
    is not there.
    """
    try:
        return Run(config, dataset)
    except ValueError as error:
        raise UserError(str(error)) from error
    except (RuntimeError, AssertionError) as error:  # what torch raises depends on how it was built
        device = config.train.device
        if not device.startswith("cuda"):
            raise
        why = str(error).splitlines()[0]
        raise UserError(f"train.device: '{device}' cannot be used: {why}") from error


def train(state: State, tracked: TrackedRun, console: Console, path: Path | None) -> int:
    """Train, test once, and track how it ended whatever happens. The exit code.

    path: where the state is kept after every epoch; None: nowhere.
    """
    run = state.run
    test: dict[str, float] = {}
    start = time.perf_counter()
    try:
        diverged = _epochs(state, tracked, console, path)
        if run.best_epoch and not diverged:
            test = run.test()
    except KeyboardInterrupt:
        reason = f"interrupted after epoch {run.epochs_done}"
        tracked.finish("stopped", reason, {}, time.perf_counter() - start)
        raise
    except BaseException as error:
        reason = f"{type(error).__name__}: {error}"
        tracked.finish("failed", reason, {}, time.perf_counter() - start)
        raise
    seconds = time.perf_counter() - start
    reason = f"the loss was not finite in epoch {run.epochs_done}" if diverged else ""
    tracked.finish("failed" if diverged else "completed", reason, test, seconds)
    if run.best_epoch:
        console.print(f"best epoch by {run.objective}: {run.best_epoch}", highlight=False)
        console.print(table(state, test))
    if diverged:
        console.print(f"failed: {reason}", highlight=False)
        return DIVERGED
    return 0


def _epochs(state: State, tracked: TrackedRun, console: Console, path: Path | None) -> bool:
    """Train to the end, or until the loss is not finite. Whether it is not."""
    run = state.run
    result: Result | None = None
    with _progress(console) as progress:
        task = progress.add_task("", total=run.config.train.epochs, completed=run.epochs_done)
        while run.epochs_done < run.config.train.epochs:
            result = run.epoch()
            state.history.append(dict(result.metrics))
            tracked.epoch(result)
            if path is not None and not result.diverged:
                state.save(path)
            console.print(line(run, result), highlight=False, soft_wrap=True)
            progress.update(task, completed=run.epochs_done)
            if result.done:
                break
    return result is not None and result.diverged


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    """A bar on a terminal, nothing elsewhere."""
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    disabled = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disabled) as progress:
        yield progress
