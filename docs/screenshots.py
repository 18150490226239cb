"""Pictures of MLflow's pages for the README, taken on a real search: make screenshots
[STORE=sqlite:///...]

Without --store a search of 20 trials is made for it, on small synthetic files in a temporary folder
(some minutes). Nothing of the project is changed but docs/images, and nothing but what was started
here is ended.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mlflow.tracking import MlflowClient

from tune_mm.cli import run_cli
from tune_mm.errors import UserError
from tune_mm.reports.runs.store import Reader
from tune_mm.reports.runs.stored_run import StoredRun
from tune_mm.track import views

IMAGES = Path(__file__).resolve().parent / "images"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
NAME = "cggm_iemocap-1"
DATA = "make iemocap --root data --train 320 --val 320 --test 160 --noise 1.5 --imbalance 0.8"
SEARCH = (
    f"--space cggm_iemocap --name {NAME} --trials 20 --epochs 6 --concurrency 2 --data-root data"
)
FIXED = (
    "method.classifier_lr=5e-4",
    "optim.clip=0.8",
    "optim.weight_decay=0.0",
)  # leaves rho, lam and the rate
PATIENCE = 300.0  # seconds until the server must answer: importing MLflow takes a busy machine long


@dataclass(frozen=True)
class Search:
    """A search in a store. axes: the first two params that it varied, as a plot needs them; metric:
    the objective.
    """

    name: str
    space: str
    axes: tuple[str, str]
    metric: str


def browser() -> str:
    """The path of the system's chromium. Raises UserError when there is none."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise UserError(
            f"no browser on PATH: looked for {', '.join(BROWSERS)}; on Debian: apt-get install chromium"
        )
    return found


def made(folder: Path) -> str:
    """The store of a search that is made in `folder`. Raises UserError when it does not succeed."""
    settings = [word for setting in FIXED for word in ("--set", setting)]
    uri = f"sqlite:///{folder.resolve() / 'mlruns' / 'mlflow.db'}"
    steps = {
        "data": DATA.split(),
        "search": [*SEARCH.split(), *settings, "--tracking-uri", uri],
        "report": ["search", NAME, "--tracking-uri", uri],
    }
    for module, words in steps.items():
        command = [sys.executable, "-m", f"tune_mm.{module}", *words]
        code = subprocess.run(command, cwd=folder, env=_environment(), check=False).returncode
        if code:
            raise UserError(f"tune_mm.{module} {' '.join(words)}: exit code {code}")
    return uri


def _environment() -> dict[str, str]:
    here = str(Path(__file__).resolve().parent.parent)
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0"}
    return {**os.environ, **quiet, "PYTHONPATH": here}


def latest(uri: str) -> Search:
    """The completed search that began last. Raises UserError when the store has none that can be
    shown.
    """
    reader = Reader.open(uri, Path.cwd())
    records = reader.records()
    parents = [r for r in records if r.search and r.parent is None and r.status == "completed"]
    if not parents:
        raise UserError(
            f"{reader.shown}: no search of it is completed; `python -m tune_mm.search` makes one"
        )
    parent = parents[-1]
    shown = columns(uri, parent.space)
    if not shown:
        command = f"python -m tune_mm.search --name {parent.name} --resume"
        raise UserError(f"search '{parent.name}' has no saved views; `{command}` adds them")
    if reader.artifact(parent, f"reports/search_{parent.name}.html") is None:
        raise UserError(
            f"search '{parent.name}' has no page; `python -m tune_mm.report search {parent.name}` adds it"
        )
    trials = [r for r in records if r.parent == parent.id and r.stage == "search"]
    axes = varied([name for group, name in shown if group == "params"], trials)
    if len(axes) < 2:
        raise UserError(
            f"search '{parent.name}': a contour needs two params that vary, got {len(axes)}"
        )
    return Search(parent.name, parent.space, (axes[0], axes[1]), shown[0][1])


def columns(uri: str, space: str) -> list[tuple[str, str]]:
    """Columns of the saved view of trials, as (metrics, params or tags; name); none where there is
    no view.
    """
    experiment = MlflowClient(tracking_uri=uri).get_experiment_by_name(space)
    view = experiment.tags.get(f"{views.PREFIX}trials") if experiment else None
    chosen = json.loads(json.loads(view)["state"])["selectedColumns"] if view else []
    return [(column.partition(".")[0], column.split("`")[1]) for column in chosen]


def varied(params: Sequence[str], trials: Sequence[StoredRun]) -> list[str]:
    """Those of `params` that are numbers, with three values or more among the trials."""
    out = []
    for key in params:
        with contextlib.suppress(ValueError):
            if len({float(trial.params[key]) for trial in trials if key in trial.params}) >= 3:
                out.append(key)
    return out


@contextlib.contextmanager
def served(uri: str, folder: Path) -> Iterator[str]:
    """MLflow's pages of a store, on this machine alone; yields their address. Ended with all that
    it has started.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--workers", "1"]
    environment = {**_environment(), "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(server, f"http://127.0.0.1:{port}", folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        _end(server)


def _wait(server: subprocess.Popen[bytes], address: str, log: Path) -> None:
    """Until the server answers. Raises UserError when it ends or takes too long."""
    deadline = time.monotonic() + PATIENCE
    while server.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
            return
        time.sleep(0.2)
    last = (log.read_text(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
    raise UserError(f"mlflow ui does not answer at {address}: {last}")


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server's process group, which is its own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(timeout=20)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code of the command line. Raises UserError for a mistake in it."""
    parser = argparse.ArgumentParser(
        prog="docs.screenshots", description=__doc__, allow_abbrev=False
    )
    parser.add_argument(
        "--store", metavar="URI", help="take the latest search of this MLflow store"
    )
    parser.add_argument("--out", type=Path, default=IMAGES, metavar="DIR", help="for the pictures")
    given = parser.parse_args(arguments)
    executable = browser()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # so that the server ends with it
    from docs.walk import walk

    with tempfile.TemporaryDirectory(prefix="tune_mm-screenshots-") as scratch:
        folder = Path(scratch)
        uri = given.store or made(folder)
        search = latest(uri)
        given.out.mkdir(parents=True, exist_ok=True)
        with served(uri, folder) as address:
            for picture in walk(executable, address, search, given.out):
                print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_cli(main))
