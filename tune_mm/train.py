"""One run, without Ray: `python -m tune_mm.train configs/mosi.yaml method=dgl method.alpha=4`.

The run is kept in MLflow in the shape that searches write: experiment = the configuration's name,
params, metrics per epoch, test metrics of the best validation epoch, config.yaml, best.pt and
summary.json. Exit code 0; 1 when the loss was not finite; 2 for a user's mistake; 130 when
interrupted (the run is then marked stopped).
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tune_mm.cli import Parser, run_cli
from tune_mm.config import Config, dump_config, flatten, load_config
from tune_mm.core import artifacts, checkpoint, metrics
from tune_mm.core.run import Result, Run
from tune_mm.core.types import Dataset
from tune_mm.data import base as data
from tune_mm.data.summary import summary
from tune_mm.errors import UserError

if TYPE_CHECKING:  # mlflow takes a second to import, and --no-tracking does without
    from tune_mm.track.run import Status
    from tune_mm.track.writer import Writer

DIVERGED = 1


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line. Raises UserError for a mistake in it."""
    parser = Parser(
        prog="python -m tune_mm.train", description="Train one configuration, without Ray."
    )
    parser.add_argument(
        "config", help="a file, or the name of one in configs/ (mosi, avdigits, cremad ...)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="method=dgl method.alpha=4 optim.lr=3e-4"
    )
    parser.add_argument(
        "--data-root", type=Path, help="folder of the data sets (else TUNE_MM_DATA, else ./data)"
    )
    parser.add_argument(
        "--require-real", action="store_true", help="refuse to train on synthetic data"
    )
    parser.add_argument(
        "--skip-bad", action="store_true", help="leave damaged clips out (data.skip_bad=true)"
    )
    parser.add_argument("--name", help="name of the MLflow run")
    parser.add_argument(
        "--tracking-uri", help="MLflow store (else MLFLOW_TRACKING_URI, else ./mlruns/mlflow.db)"
    )
    parser.add_argument("--no-tracking", action="store_true", help="write nothing to MLflow")
    parser.add_argument(
        "--resume",
        type=Path,
        metavar="FILE",
        help="keep the run's state in FILE after every epoch; if it is there, go on from it, as the same MLflow run",
    )
    return parser.parse_intermixed_args(argv)


@dataclass
class State:
    """What outlives a process: the run, and what this program adds to it. history: the metrics of
    each epoch.
    """

    run: Run
    key: str = field(default_factory=lambda: uuid.uuid4().hex)
    history: list[dict[str, float]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write it to `path`. Raises UserError where that is not possible."""
        values = {"config": dump_config(self.run.config), "key": self.key, "history": self.history}
        try:
            checkpoint.save({**values, "run": self.run.state_dict()}, path)
        except OSError as error:
            raise UserError(
                f"--resume {path}: cannot be written: {error.strerror or error}"
            ) from error

    def restore(self, path: Path) -> None:
        """Go on from `path`. Raises UserError when it is no state of this very configuration."""
        try:
            found = checkpoint.load(path)
            if found["config"] != dump_config(self.run.config):
                raise UserError(
                    f"--resume {path}: {_difference(found['config'], dump_config(self.run.config))}"
                )
            self.run.load_state_dict(found["run"])
            self.key = found["key"]
            self.history = found["history"]
        except UserError:
            raise
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"--resume {path}: no state of a training run: {error}") from error

    @property
    def best_metrics(self) -> dict[str, float]:
        """Validation metrics of the best epoch ({} before the first)."""
        if self.run.best_epoch:
            best = self.history[self.run.best_epoch - 1]
        else:
            best = {}
        return {k: v for k, v in best.items() if k.startswith("val/")}


def _difference(theirs: str, ours: str) -> str:
    """The first line in which two dumped configurations differ."""
    pairs = zip([*theirs.splitlines(), ""], [*ours.splitlines(), ""], strict=False)
    there, here = next(((a.strip(), b.strip()) for a, b in pairs if a != b), ("", ""))
    return f"was made with another configuration ('{there}', now '{here}'); remove the file to begin anew"


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
        writer.artifact(
            self.handle, json.dumps(summary(state.run.dataset), indent=1) + "\n", "data.json"
        )
        for epoch, values in enumerate(
            state.history, 1
        ):  # what a kill kept from the store; the rest is skipped
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
        best = {}
        for k, v in self.state.best_metrics.items():
            best[f"best/{k}"] = v
        self.writer.log(self.handle, {**best, **test}, run.epochs_done)
        summary = summarize(self.state, status, reason, test, seconds)
        self.writer.artifact(self.handle, json.dumps(summary, indent=2) + "\n", "summary.json")
        if run.best_epoch:
            with tempfile.TemporaryDirectory() as folder:
                artifacts.write(Path(folder), run.best_state(), run.gradient_vectors())
                for file in sorted(Path(folder).iterdir()):
                    self.writer.artifact(self.handle, file, file.name)
        self.writer.finish(self.handle, status, reason)


def summarize(
    state: State, status: str, reason: str, test: Mapping[str, float], seconds: float
) -> dict[str, Any]:
    """summary.json: how the run ended, in values that any JSON reader takes (null where a number is
    not finite).
    """
    run = state.run
    numbers = {"best_value": run.best_value, **state.best_metrics, **test}
    clean = {}
    for k, v in numbers.items():
        clean[k] = v if math.isfinite(v) else None
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
        "best_value": clean.pop("best_value"),
        "best_metrics": {k: v for k, v in clean.items() if k not in test},
        "test": {k: clean[k] for k in test},
        "seconds": round(seconds, 3),
    }


def build(config: Config, dataset: Dataset) -> Run:
    """The run. Raises UserError for a method that does not take these data, a metric or a device
    that is not there.
    """
    try:
        return Run(config, dataset)
    except ValueError as error:
        raise UserError(str(error)) from error
    except (RuntimeError, AssertionError) as error:  # what torch raises depends on how it was built
        if not config.train.device.startswith("cuda"):
            raise
        raise UserError(
            f"train.device: '{config.train.device}' cannot be used: {str(error).splitlines()[0]}"
        ) from error


def line(run: Run, result: Result) -> str:
    """An epoch on one line; `*` marks the best so far."""
    values = result.metrics
    total = run.config.train.epochs
    parts = [f"epoch {result.epoch:>{len(str(total))}}/{total}"]
    for k in dict.fromkeys(("train/loss", "val/loss", run.objective)):
        if k in values:
            parts.append(f"{k} {values[k]:.4f}")
    alone = []
    for m in run.spec.modalities:
        if f"{run.objective}/{m}" in values:
            alone.append(m)
    parts += [" ".join(f"{m} {values[f'{run.objective}/{m}']:.4f}" for m in alone)] if alone else []
    return "  ".join([*parts, f"{values['time/epoch']:.1f} s", *(["*"] if result.best else [])])


def table(state: State, test: Mapping[str, float]) -> Table:
    """Metrics at the best validation epoch, multimodal and of each modality alone."""
    run = state.run
    values = {**state.best_metrics, **test}
    heads = ["", *(f"/{m}" for m in run.spec.modalities if f"{run.objective}/{m}" in values)]
    found = Table("", "multimodal", *(h[1:] for h in heads[1:]))
    for column in found.columns[1:]:
        column.justify = "right"
    for split in ("val", "test") if test else ("val",):
        for name in metrics.names(run.spec.task):
            cells = (values.get(f"{split}/{name}{head}") for head in heads)
            found.add_row(f"{split}/{name}", *("-" if v is None else f"{v:.4f}" for v in cells))
        found.add_section()
    return found


def loop(state: State, tracked: TrackedRun, console: Console, path: Path | None) -> Result | None:
    """Train to the end, or until the loss is not finite; the last epoch's result (None: all were
    done before).
    """
    run = state.run
    result = None
    total = run.config.train.epochs
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as progress:
        task = progress.add_task("", total=total, completed=run.epochs_done)
        while run.epochs_done < total and not (result and result.done):
            result = run.epoch()
            state.history.append(dict(result.metrics))
            tracked.epoch(result)
            if path is not None and not result.diverged:
                state.save(path)
            console.print(line(run, result), highlight=False, soft_wrap=True)
            progress.update(task, completed=run.epochs_done)
    return result


def train(state: State, tracked: TrackedRun, console: Console, path: Path | None) -> int:
    """Train, test once, record how it ended whatever happens. The exit code."""
    start = time.perf_counter()
    try:
        result = loop(state, tracked, console, path)
        diverged = result is not None and result.diverged
        if diverged or not state.run.best_epoch:
            test = {}
        else:
            test = state.run.test()
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt)
        if stopped:
            reason = f"interrupted after epoch {state.run.epochs_done}"
        else:
            reason = f"{type(error).__name__}: {error}"
        tracked.finish("stopped" if stopped else "failed", reason, {}, time.perf_counter() - start)
        raise
    if diverged:
        reason = f"the loss was not finite in epoch {state.run.epochs_done}"
    else:
        reason = ""
    tracked.finish("failed" if diverged else "completed", reason, test, time.perf_counter() - start)
    if state.run.best_epoch:
        console.print(
            f"best epoch by {state.run.objective}: {state.run.best_epoch}", highlight=False
        )
        console.print(table(state, test))
    if diverged:
        console.print(f"failed: {reason}", highlight=False)
    if diverged:
        return DIVERGED
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code. Raises UserError, KeyboardInterrupt."""
    options = arguments(argv)
    config = load_config(
        options.config, [*options.overrides, *(["data.skip_bad=true"] if options.skip_bad else [])]
    )
    source = data.resolve(config.data, options.data_root, require_real=options.require_real)
    console = Console()
    if source.message:
        console.print(source.message, style="yellow", highlight=False, soft_wrap=True)
    dataset = data.load(config.data, source)
    for note in dataset.notes:
        console.print(note, style="yellow", highlight=False, soft_wrap=True)
    state = State(build(config, dataset))
    if options.resume is not None and options.resume.exists():
        state.restore(options.resume)
        console.print(
            f"going on after epoch {state.run.epochs_done} of {options.resume}", highlight=False
        )
    name = options.name or f"{config.method.name} seed {config.seed}"
    with (
        nullcontext()
        if options.no_tracking
        else _writer(options.tracking_uri, config.name) as writer
    ):
        tracked = TrackedRun(writer, state, name, source.kind)
        code = train(state, tracked, console, options.resume)
    if writer is not None:
        place = (
            f"run '{name}' {tracked.handle.run_id or '(not written)'} in experiment '{config.name}'"
        )
        console.print(
            f"{place}: mlflow ui --backend-store-uri {writer.store.shown}",
            highlight=False,
            soft_wrap=True,
        )
    return code


def _writer(uri: str | None, experiment: str) -> Writer:
    from tune_mm.track import Store, Writer

    return Writer(Store.open(uri, Path.cwd()), experiment)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way to say stop
    sys.exit(run_cli(main))
