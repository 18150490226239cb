"""One run, without Ray: `python -m tune_mm.train configs/mosi.yaml method=dgl method.alpha=4`.

The run is kept in MLflow in the shape that searches write: experiment = the configuration's name,
params, metrics per epoch, test metrics of the best validation epoch, config.yaml, best.pt and
summary.json. Exit code 0; 1 when the loss was not finite; 2 for a user's mistake; 130 when
interrupted (the run is then marked stopped).
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from tune_mm.cli import Parser, run_cli
from tune_mm.config import load_config
from tune_mm.data import base as data
from tune_mm.single.state import State
from tune_mm.single.tracked import TrackedRun
from tune_mm.single.training import build, train

if TYPE_CHECKING:
    from tune_mm.track.writer import Writer


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


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code. Raises UserError, KeyboardInterrupt."""
    options = arguments(argv)
    overrides = list(options.overrides)
    if options.skip_bad:
        overrides.append("data.skip_bad=true")
    config = load_config(options.config, overrides)
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
        done = state.run.epochs_done
        console.print(f"resuming after epoch {done} of {options.resume}", highlight=False)
    name = options.name or f"{config.method.name} seed {config.seed}"
    with _writer(options.no_tracking, options.tracking_uri, config.name) as writer:
        tracked = TrackedRun(writer, state, name, source.kind)
        code = train(state, tracked, console, options.resume)
    if writer is not None:
        run = tracked.handle.run_id or "(not written)"
        console.print(
            f"run '{name}' {run} in experiment '{config.name}': "
            f"mlflow ui --backend-store-uri {writer.store.shown}",
            highlight=False,
            soft_wrap=True,
        )
    return code


@contextmanager
def _writer(no_tracking: bool, uri: str | None, experiment: str) -> Iterator[Writer | None]:
    """The writer of the run; None with --no-tracking, which does without importing mlflow."""
    if no_tracking:
        yield None
        return
    from tune_mm.track import Store, Writer

    with Writer(Store.open(uri, Path.cwd()), experiment) as writer:
        yield writer


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's way to say stop
    sys.exit(run_cli(main))
