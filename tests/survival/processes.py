"""Searches in processes of their own, each with a Ray of its own, and what they leave in journal
and MLflow.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial

from tests.tune.conftest import Searches
from tune_mm.track import Store

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE = 600.0  # seconds that a test waits for what must happen; a machine that is busy is slow
SPACE = """config: iemocap
method: joint
objective: val/accuracy
domains:
  optim.lr: {loguniform: [1e-5, 1e-1]}
defaults:
  - {optim.lr: 1e-3}
trials: 8
searcher: {name: tpe, startup: 3}
scheduler: {name: asha, epochs: 4, grace: 1, reduction: 2}
finals: {top: 1, seeds: 2, epochs: 3}
"""


class Process:
    """A module that runs in `root`. says: everything it has printed so far, which is written to a
    file in `log`.
    """

    def __init__(
        self, root: Path, log: Path, module: str, *arguments: str, **environment: str
    ) -> None:
        self.root = root
        self._log = log / f"{module}-{time.monotonic_ns()}.log"
        kept = {
            k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI")
        }
        kept |= {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1", **environment}
        kept["RAY_worker_niceness"] = (
            "0"  # by default workers give way to everything else that runs
        )
        with self._log.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                cwd=root,
                env=kept,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # as a terminal's foreground group
            )

    @property
    def says(self) -> str:
        return self._log.read_text()

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait for a condition while the process lives."""
        end = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, f"ended before {what}:\n{self.says}"
            assert time.monotonic() < end, f"no sign of {what}:\n{self.says}"
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.05)

    def ends(self, patience: float = PATIENCE) -> int:
        """Its exit code."""
        try:
            return self.process.wait(patience)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"does not end:\n{self.says}") from None

    def kill_all(self) -> None:
        """kill -9 of it and of everything that it has started in its session."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """End it, if it has not ended, and all of its session: the workers of an MLflow server
        outlive that.
        """
        with contextlib.suppress(ProcessLookupError):
            self.kill_all()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()


class Started:
    """Starts processes; whoever made it closes it. log: folder of what they print (None: where they
    run).
    """

    def __init__(self) -> None:
        self._all: list[Process] = []
        self.log: Path | None = None

    def search(
        self, root: Path, *, environment: Mapping[str, str] | None = None, **given: Any
    ) -> Process:
        """A search with `Options` and settings of the toy as in `driver`."""
        return self.module(
            root,
            "tests.survival.driver",
            json.dumps({"root": str(root), **given}),
            **(environment or {}),
        )

    def module(self, root: Path, module: str, *arguments: str, **environment: str) -> Process:
        self._all.append(Process(root, self.log or root, module, *arguments, **environment))
        return self._all[-1]

    def close(self) -> None:
        for process in self._all:
            process.close()


def write(root: Path, text: str = SPACE, name: str = "toy") -> str:
    """A space file; its path."""
    root.mkdir(exist_ok=True)
    return Searches(root).write(text, name)


def summary(root: Path, name: str = "toy-1") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (root / "mlruns" / "search" / name / "summary.json").read_text()
    )
    return found


def saved(root: Path, stage: str, number: int, epoch: int, name: str = "toy-1") -> bool:
    """Whether the journal of a search that runs names the checkpoint of a trial after `epoch`."""
    journal = (root / "mlruns" / "search" / name / "optuna.journal").read_text()
    return bool(re.search(rf'/{stage}/[^"]*/{number:05d}-[^"]*","epoch":{epoch}\}}', journal))


def trials(root: Path, stage: str = "search", name: str = "toy-1") -> list[FrozenTrial]:
    """A stage's trials, of a search that does not run."""
    return Searches(root).book(name, stage).trials()


def last_checkpoint(root: Path, number: int = 0) -> tuple[Path, int]:
    """The folder of the last checkpoint of trial `number` that the journal names, and its epoch."""
    place = trials(root)[number].user_attrs["checkpoint"]
    return Path(place["path"]), place["epoch"]


def runs(root: Path, name: str | None = None, uri: str | None = None) -> list[Any]:
    """All MLflow runs of the default store, or of that at `uri`; with `name` those of one search."""
    client = Store.open(uri, root).client()
    found = client.search_runs(
        [e.experiment_id for e in client.search_experiments()], max_results=1000
    )
    return [r for r in found if name in (None, r.data.tags.get("search"))]


def tracked(root: Path, name: str = "toy-1", uri: str | None = None) -> dict[str, dict[str, Any]]:
    """What MLflow has of a search by key: status, params, (step, value) of each metric, sizes of
    files in bytes.

    A key must occur once. Sizes of summaries are left out: the seconds in them differ.
    """
    client, out = Store.open(uri, root).client(), dict[str, dict[str, Any]]()
    for run in runs(root, name, uri):
        key, own = run.data.tags["tune_mm.key"], run.info.run_id
        assert key not in out, f"two runs of {key}"
        histories = {m: client.get_metric_history(own, m) for m in run.data.metrics}
        files = {file.path: file.file_size for file in client.list_artifacts(own)}
        out[key] = {
            "status": (run.info.status, run.data.tags["status"]),
            "params": run.data.params,
            "metrics": {
                m: sorted((p.step, p.value) for p in found) for m, found in histories.items()
            },
            "files": files | ({"summary.json": None} if "summary.json" in files else {}),
        }
    return out
