"""Writes queued records into their stores once these are back. Idempotent: it may be killed and run
again.

A queue that was written whole is removed: the store has all of it, and a copy that stays would cost
as much room as the artifacts in it and invite a second replay.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tune_mm.errors import UserError, nearest
from tune_mm.track import quiet
from tune_mm.track.availability import ask
from tune_mm.track.delivery import Delivery
from tune_mm.track.outbox import folder_lock, queue_file
from tune_mm.track.outbox.queue import Queue
from tune_mm.track.record_lines import Runs
from tune_mm.track.sink import Sink
from tune_mm.track.store import HIDDEN, Store, reason, redacted
from tune_mm.track.wording import left, shown

# Below the working directory: a writer's own place, and the one below a search's folder.
PATTERNS = ("mlruns/queue/*/*", "mlruns/search/*/queue")


@dataclass(frozen=True)
class Outcome:
    """What became of one queue."""

    # What to say.
    lines: tuple[str, ...]
    # Whether the store has all of it, and the queue is gone.
    whole: bool


def find(queue: Path | None, root: Path) -> list[Path]:
    """The queues there are: `queue`, or those directly below it; without it those below `root`.
    Raises UserError.
    """
    if queue is None:
        return _queues(path for pattern in PATTERNS for path in sorted(root.glob(pattern)))
    if not queue.is_dir():
        known = [str(shown(path)) for path in find(None, root)]
        listed = f"; there are: {', '.join(known)}" if known else ""
        raise UserError(f"--queue: no such folder '{queue}'{nearest(str(queue), known)}{listed}")
    found = _queues([queue, *sorted(queue.glob("*")), *sorted(queue.glob("*/*"))])
    if not found:
        raise UserError(f"--queue: {queue} is no queue of tracking records, and has none below it")
    return found


def _queues(paths: Iterable[Path]) -> list[Path]:
    found = []
    for path in paths:
        if (path / queue_file.FILE).is_file():
            found.append(path)
    return found


def replay(folder: Path, uri: str | None = None) -> Outcome:
    """Write the queue in `folder` into its store, or into that at `uri`. Raises UserError when
    `folder` is no queue.
    """
    quiet.loggers()
    try:
        queue = Queue(folder)
    except folder_lock.FolderTaken:
        return Outcome(
            (f"{shown(folder)}: in use by a running search, which writes it itself",), False
        )
    runs: Runs = {}
    done = 0
    failure: str | None = None
    try:
        store = _store(queue.about, uri)
        ask(store.uri)
        queue.reconsider()
        # A missing sqlite file has been moved away, as far as one can tell: only one that is named
        # is made.
        known = queue.about["known"] or uri is None
        delivery = Delivery(queue, Sink(store, queue.about["experiment"], known=known), runs)
        failure = delivery.round()
        done = delivery.records - delivery.refused
    except (UserError, OSError) as error:
        failure = reason(error)
    rest = queue.close()
    lines = [f"kept: {failure}"] if failure is not None else []
    lines += left(rest, folder, queue.about["experiment"])
    if not lines:
        lines = [
            f"{done} records of {len(runs)} runs are in {redacted(uri or queue.about['uri'])}; the queue is removed"
        ]
    return Outcome(
        tuple(f"{shown(folder)}: {line}" for line in lines), failure is None and not rest.any
    )


def _store(told: Mapping[str, Any], uri: str | None) -> Store:
    """The store that a queue is for. Raises UserError when its password is needed and not at hand."""
    if uri is not None:
        return Store.at(uri, Path.cwd())
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    known = told["uri"]
    if HIDDEN in known:
        if redacted(given) != known:
            raise UserError(
                f"the password of {known} is not kept: give the whole address by --tracking-uri"
            )
        known = given
    artifacts = told["artifacts"]
    return replace(
        Store.at(known, Path.cwd()), artifacts=None if artifacts is None else Path(artifacts)
    )
