"""One buffered writer of MLflow runs, on the driver: callers never wait for the store and never see
it fail.

    with Writer(Store.open(None, Path.cwd()), experiment="cggm_iemocap", search="first") as writer:
        parent = writer.start("first", key="search")
        trial = writer.start("trial 0", params={"method.rho": 1.3}, parent=parent, key="search-0")
        writer.log(trial, {"val/accuracy": 0.61}, step=1)
        writer.finish(trial, "completed")

`start` returns a handle at once; the run itself is created by the background thread, which writes
what has gathered every `interval` seconds or `FLUSH_SIZE` values: per run and round one log_batch,
whatever the number of metrics.

Every record goes into a queue on disk before the call returns, and leaves it when the store has it:
a kill loses nothing, and a writer on the same queue (a resumed search), or `python -m tune_mm.track
replay`, goes on with it. A store that fails, or does not answer when the search begins, is reported
once and tried again after 1, 2, 4 ... 60 s. `close` tries a last time and says what still waits.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, Self

from tune_mm.errors import UserError
from tune_mm.track import limits
from tune_mm.track.availability import ask
from tune_mm.track.backoff import Backoff
from tune_mm.track.delivery import Delivery
from tune_mm.track.outbox.queue import Queue
from tune_mm.track.record_lines import Runs, encode
from tune_mm.track.run import REASON, Artifact, Buffer, MetricPoint, RunHandle, Status
from tune_mm.track.sink import Sink
from tune_mm.track.store import FAILURES, Store, Unreachable, reason
from tune_mm.track.wording import left, shown, way

log = logging.getLogger("tune_mm.track")

INTERVAL = 1.0  # seconds between rounds
FLUSH_SIZE = 1000  # values that start a round at once
PATIENCE = (
    10.0  # seconds without any progress after which a call to the store is no longer waited for
)


class Writer:
    """Writes the runs of one search to one experiment. Raises UserError when the experiment cannot
    be had for good.

    search: what identifies the search across restarts: runs started with the same search and key
    are the same run. It should change when a search begins anew under an old name. Default: the tag
    `search` of a run, else the experiment. queue: folder of what the store has not got yet; default
    `Store.queue(search)`, one of its own without `search`.
    """

    def __init__(
        self,
        store: Store,
        experiment: str,
        search: str | None = None,
        interval: float = INTERVAL,
        *,
        queue: Path | None = None,
        retry: Backoff | None = None,
    ) -> None:
        self.store = store
        self.experiment = experiment
        self.search = search
        self._sink = Sink(store, experiment)
        failure = self._connect()
        place = {
            "uri": store.shown,
            "artifacts": None if store.artifacts is None else str(store.artifacts),
        }
        about = {**place, "experiment": experiment, "known": self._sink.known}
        self._queue = Queue(
            queue or store.queue(search or f"{experiment}-{uuid.uuid4().hex[:8]}"), about
        )
        self._runs: Runs = {}
        self._delivery = Delivery(self._queue, self._sink, self._runs)
        self._retry = retry or Backoff()
        self._interval = interval
        self._open: dict[RunHandle, None] = {}
        # `_lock` guards what callers change and is held for microseconds; `_writing` is held during
        # calls to the store.
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._wake = threading.Event()
        self._fresh = self._lost = 0
        self._before = 0  # records that were delivered when the store last worked
        self._closed = False
        if failure is not None:
            self._report(failure)
        self._thread = threading.Thread(
            target=_loop,
            args=(weakref.ref(self), self._wake, self._pause()),
            name="tune_mm.track",
            daemon=True,
        )
        weakref.finalize(self, self._wake.set)
        self._thread.start()

    @property
    def experiment_id(self) -> str:
        """MLflow's id of the experiment; empty until the store has answered."""
        return self._sink.experiment_id

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

        With a key that the search has used before, in this process or an earlier one, it is that
        run, reopened; its steps are not written again. Without a key it is always a new run.
        """
        key = key or f"run-{uuid.uuid4().hex}"
        tags = dict(tags or {})
        search = (
            self.search
            or tags.get("search")
            or (parent.search if parent else None)
            or self.experiment
        )
        if parent is not None:  # one handle per run: the queue may hold its beginning still
            parent = self._runs.setdefault((parent.search, parent.key), parent)
        handle = RunHandle(name, str(search), limits.text(key, limits.TAG), parent)
        handle = self._runs.setdefault((handle.search, handle.key), handle)
        found = limits.tags({"search": search, **tags, "status": "running"})
        self._open[handle] = None
        self._add(handle, Buffer(start=_now(), params=limits.params(params or {}), tags=found))
        return handle

    def log(self, run: RunHandle, metrics: Mapping[str, float], step: int) -> None:
        """Metrics of one step. A step that the run has already (before a resume, or repeated) is
        skipped.
        """
        values = limits.metrics(metrics)
        if values:
            self._add(run, Buffer(points=[MetricPoint(values, int(step), _now())]))

    def params(self, run: RunHandle, params: Mapping[str, Any]) -> None:
        """Params; one that has another value already keeps it, and the new one becomes the tag
        `changed.<param>`.
        """
        self._add(run, Buffer(params=limits.params(params)))

    def tags(self, run: RunHandle, tags: Mapping[str, Any]) -> None:
        """Tags; one that is set again changes, one that is None is left as it is."""
        self._add(run, Buffer(tags=limits.tags(tags)))

    def artifact(self, run: RunHandle, content: str | Path, name: str) -> None:
        """A text, or a file (copied now: it may go away), under `name` ("summary.json",
        "checkpoints/best.pt").

        Raises OSError when the file cannot be read, ValueError when `name` leaves the run's folder.
        """
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.name:
            raise ValueError(
                f"an artifact's name must be a relative path inside the run, but got '{name}'"
            )
        text, file = (
            (content, None)
            if isinstance(content, str)
            else (None, self._queue.copy(content, path.name))
        )
        self._add(run, Buffer(artifacts=[Artifact(name, text, file)]))

    def finish(self, run: RunHandle, status: Status, reason: str = "") -> None:
        """End a run: MLflow FINISHED, FINISHED, FAILED or KILLED for completed, pruned, failed or
        stopped.

        The tag `status` has the word itself; `reason` becomes a tag.
        """
        self._open.pop(run, None)
        tags = {"status": status, **({REASON: reason} if reason else {})}
        self._add(run, Buffer(tags=limits.tags(tags), status=status, ended=_now()))

    def flush(self) -> bool:
        """Write everything now, in this thread. Whether nothing is left; never raises.

        A store that is known to be away, and a call of the background thread that gets no answer,
        cost seconds.
        """
        return self._round(asked=True)

    def close(self) -> None:
        """Write everything, mark runs that nobody finished as stopped, and say what is not written.

        May be called twice. A store that hangs is not waited for; what it has not got stays in the
        queue.
        """
        if self._closed:
            return
        for run in list(self._open):
            self.finish(run, "stopped")
        with self._lock:
            self._closed = True
        self._wake.set()
        if self._ended() and self._writing.acquire(timeout=PATIENCE):
            try:
                self._attempt(asked=True)
                rest = self._queue.close()
            finally:
                self._writing.release()
            lost = replace(rest, lost=rest.lost + self._lost)
            for line in left(lost, self._queue.folder, self.experiment):
                log.warning("tracking: %s", line)
        else:
            self._queue.sync()
            log.warning(
                "tracking: %s does not answer; %s", self.store.shown, way(self._queue.folder)
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # ---- the background

    def _add(self, run: RunHandle, buffer: Buffer) -> None:
        line = encode(run, buffer, self._queue.folder)
        with self._lock:
            if self._closed:
                self._lost += 1
                return
            self._queue.add(line)
            self._fresh += len(buffer)
            full = self._fresh >= FLUSH_SIZE
            self._fresh = 0 if full else self._fresh
        if full:
            self._wake.set()

    def _beat(self) -> None:
        """What the thread does when it wakes: a round, unless the store failed and is not to be
        tried again yet.
        """
        if self._retry.wait == 0:
            self._round()

    def _pause(self) -> float:
        if self._retry.failures:
            return self._retry.wait
        return self._interval

    def _round(self, asked: bool = False) -> bool:
        """Write what has gathered. Whether nothing is left."""
        if not self._writing.acquire(timeout=PATIENCE):
            return False
        try:
            return self._attempt(asked)
        finally:
            self._writing.release()

    def _attempt(self, asked: bool) -> bool:
        with self._lock:
            self._fresh = 0
        if self._queue.empty:
            return True
        failure = (self._ask() if asked or self._retry.failures else None) or self._delivery.round()
        if failure is not None:
            self._queue.sync()
        self._report(failure)
        return failure is None

    def _ask(self) -> str | None:
        """Why the store does not answer, if so."""
        try:
            ask(self.store.uri)
        except OSError as error:
            return reason(error)
        return None

    def _connect(self) -> str | None:
        """The same, at the beginning. Raises UserError when the store answers and will not have the
        experiment.
        """
        try:
            self._sink.connect()
        except FAILURES as error:
            if isinstance(error, UserError) and not isinstance(error, Unreachable):
                raise
            return reason(error)
        return None

    def _report(self, failure: str | None) -> None:
        """Say that the store fails, or works again: once each."""
        if failure is None:
            if self._retry.failures:
                told = self._delivery.records - self._before
                log.warning(
                    "tracking: %s works again, %d queued records are written",
                    self.store.shown,
                    told,
                )
            self._before = self._delivery.records
            self._retry.succeeded()
            return
        if not self._retry.failures:
            said = "tracking: %s fails (%s); work goes on, records are queued in %s"
            log.warning(said, self.store.shown, failure, shown(self._queue.folder))
        self._retry.failed()

    def _ended(self) -> bool:
        """Wait for the thread, as long as it makes progress."""
        while self._thread.is_alive():
            before = self._sink.calls
            self._thread.join(PATIENCE)
            if self._thread.is_alive() and self._sink.calls == before:
                return False
        return True


def _loop(writer: weakref.ref[Writer], wake: threading.Event, pause: float) -> None:
    """The thread, which does not keep a writer that nobody has any more. pause: seconds before it
    first wakes.
    """
    while True:
        wake.wait(pause)
        wake.clear()
        found = writer()
        if found is None or found._closed:
            return
        found._beat()
        pause = found._pause()
        del found


def _now() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000
