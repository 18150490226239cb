"""One buffered writer of MLflow runs, on the driver: callers never wait for the store and never see it fail.

    with Writer(Store.open(None, Path.cwd()), experiment="cggm_iemocap", search="first") as writer:
        parent = writer.start("first", key="search")
        trial = writer.start("trial 0", params={"method.rho": 1.3}, parent=parent, key="search-0")
        writer.log(trial, {"val/accuracy": 0.61}, step=1)
        writer.finish(trial, "completed")

`start` returns a handle at once; the run itself is created by the background thread, which writes what has gathered
every `interval` seconds or `FLUSH_SIZE` records: per run and round one log_batch, whatever the number of metrics.

A store that fails is reported once; records stay in memory and are tried again after 1, 2, 4 ... 60 s. `close` tries a
last time and says how many are lost.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Self

from tune_mm.track import limits
from tune_mm.track.run import Artifact, Buffer, Point, RunHandle, Status
from tune_mm.track.sink import REASON, ArtifactError, Sink
from tune_mm.track.store import Store, reason, redacted

log = logging.getLogger("tune_mm.track")

INTERVAL = 1.0  # seconds between rounds
FLUSH_SIZE = 1000  # records that start a round at once
BACKOFF_MAX = 60.0  # seconds
CAPACITY = 1_000_000  # records kept while the store is away (about 300 MB); what comes after that is lost


class Writer:
    """Writes the runs of one search to one experiment. Raises UserError when the experiment cannot be had.

    search: what identifies the search across restarts: runs started with the same search and key are the same run. It
    should change when a search begins anew under an old name. Default: the tag `search` of a run, else the experiment.
    """

    def __init__(self, store: Store, experiment: str, search: str | None = None, interval: float = INTERVAL) -> None:
        self.store, self.experiment, self.search = store, experiment, search
        self.experiment_id = store.experiment(experiment)
        self._sink = Sink(store.client(), self.experiment_id)
        self._interval = interval
        self._runs: dict[tuple[str, str], RunHandle] = {}
        self._open: dict[RunHandle, None] = {}
        self._names = itertools.count()
        # `_lock` guards the inboxes and is held for microseconds; `_writing` guards the work buffers, during calls.
        self._lock, self._writing, self._wake = threading.Lock(), threading.Lock(), threading.Event()
        self._inbox: dict[RunHandle, Buffer] = {}
        self._work: dict[RunHandle, Buffer] = {}
        self._waiting = self._lost = self._failures = 0
        self._spool: Path | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name="tune_mm.track", daemon=True)
        self._thread.start()

    # ---- what a driver calls

    def start(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        parent: RunHandle | None = None,
        key: str | None = None,
    ) -> RunHandle:
        """A run with MLflow status RUNNING, below `parent` in the UI.

        With a key that the search has used before, in this process or an earlier one, it is that run, reopened; its
        steps are not written again. Without a key it is always a new run.
        """
        tags = dict(tags or {})
        search = self.search or tags.get("search") or (parent.search if parent else None) or self.experiment
        handle = RunHandle(name, str(search), limits.text(key or "", limits.TAG), parent)
        if key:
            handle = self._runs.setdefault((handle.search, handle.key), handle)
        found = limits.tags({"search": search, **tags, "status": "running"})
        self._open[handle] = None
        self._add(handle, Buffer(start=True, params=limits.params(params or {}), tags=found))
        return handle

    def log(self, run: RunHandle, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of one step. A step that the run has already (before a resume, or repeated) is skipped."""
        values = limits.metrics(metrics)
        if values:
            self._add(run, Buffer(points=[Point(values, int(step), time.time_ns() // 1_000_000)]))

    def params(self, run: RunHandle, params: Mapping[str, Any]) -> None:
        """Params; one that has another value already keeps it, and the new one becomes the tag `changed.<param>`."""
        self._add(run, Buffer(params=limits.params(params)))

    def tags(self, run: RunHandle, tags: Mapping[str, Any]) -> None:
        """Tags; one that is set again changes, one that is None is left as it is."""
        self._add(run, Buffer(tags=limits.tags(tags)))

    def artifact(self, run: RunHandle, content: str | Path, name: str) -> None:
        """A text, or a file (copied now: it may go away), under `name` ("summary.json", "checkpoints/best.pt").

        Raises OSError when the file cannot be read, ValueError when `name` leaves the run's folder.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(f"an artifact's name must be a relative path inside the run, but got '{name}'")
        text, file = (content, None) if isinstance(content, str) else (None, self._copy(content, path))
        self._add(run, Buffer(artifacts=[Artifact(name, text, file)]))

    def finish(self, run: RunHandle, status: Status, reason: str = "") -> None:
        """End a run: MLflow FINISHED, FINISHED, FAILED or KILLED for completed, pruned, failed or stopped.

        The tag `status` has the word itself; `reason` becomes a tag.
        """
        self._open.pop(run, None)
        tags = {"status": status, **({REASON: reason} if reason else {})}
        self._add(run, Buffer(tags=limits.tags(tags), status=status))

    def flush(self) -> bool:
        """Write everything now, in this thread. Whether nothing is left; never raises."""
        return self._round()

    def close(self) -> None:
        """Write everything, mark runs that nobody finished as stopped, and say what is lost. May be called twice."""
        if self._closed:
            return
        for run in list(self._open):
            self.finish(run, "stopped")
        self._closed = True
        self._wake.set()
        self._thread.join()
        self._round()
        lost = self._lost + self._waiting + self._sink.refused
        if lost:
            log.warning("tracking: %d records of '%s' were lost", lost, self.experiment)
        if self._spool is not None:
            shutil.rmtree(self._spool, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- the background

    def _add(self, run: RunHandle, buffer: Buffer) -> None:
        with self._lock:
            if self._closed or self._waiting >= CAPACITY:
                self._lost += len(buffer)
                return
            self._inbox.setdefault(run, Buffer()).absorb(buffer)
            self._waiting += len(buffer)
            full = self._waiting >= FLUSH_SIZE and not self._failures
        if full:
            self._wake.set()

    def _loop(self) -> None:
        while not self._closed:
            self._wake.wait(min(2.0 ** (self._failures - 1), BACKOFF_MAX) if self._failures else self._interval)
            self._wake.clear()
            if not self._closed:
                self._round()

    def _round(self) -> bool:
        """Write what has gathered, oldest run first, up to a failure of the store. Whether nothing is left."""
        with self._writing:
            with self._lock:
                for run, buffer in self._inbox.items():
                    self._work.setdefault(run, Buffer()).absorb(buffer)
                self._inbox.clear()
            failure: Exception | None = None
            for run in list(self._work):
                try:
                    self._sink.write(run, self._work[run])
                    del self._work[run]
                except ArtifactError as error:
                    failure = error
                except Exception as error:  # noqa: BLE001  whatever a store does, a search goes on
                    failure = error
                    break
            with self._lock:
                self._waiting = sum(len(b) for buffers in (self._work, self._inbox) for b in buffers.values())
            self._report(failure)
            return failure is None

    def _report(self, failure: Exception | None) -> None:
        """Say that the store fails, or works again: once each."""
        where = redacted(self.store.uri)
        if failure is not None and not self._failures:
            log.warning("tracking: %s fails (%s); work goes on, records are kept to try again", where, reason(failure))
        if failure is None and self._failures:
            log.warning("tracking: %s works again", where)
        self._failures = self._failures + 1 if failure is not None else 0

    def _copy(self, file: Path, name: PurePosixPath) -> Path:
        """A copy of `file` that is the writer's own, with the last part of `name`."""
        if self._spool is None:
            self._spool = Path(tempfile.mkdtemp(prefix="tune_mm-"))
        folder = self._spool / str(next(self._names))
        folder.mkdir()
        target = folder / name.name
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            shutil.copyfile(file, target)
            undo.pop_all()
        return target
