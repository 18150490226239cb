"""From a queue to its store, in order, as often as it takes: what the store has already is not
written twice.

Runs are found again by search and key, metrics by run and step; params and tags are set as they
were. A segment leaves the queue once the store has all of it, so that whoever comes after a kill
repeats at most the segments that were under way. Nothing here knows of threads or time.
"""

from __future__ import annotations

import logging

from tune_mm.track.outbox.queue import DAMAGED, REFUSED, Queue
from tune_mm.track.outbox.segment import Segment
from tune_mm.track.record_lines import Damaged, Runs, decode, encode
from tune_mm.track.run import Buffer, RunHandle
from tune_mm.track.sink import ArtifactError, Refused, Sink
from tune_mm.track.store import reason

log = logging.getLogger("tune_mm.track")


class Delivery:
    """Takes records from `queue` to `sink`. runs: handles by search and key; those of the records
    are added.

    records, refused, damaged: lines taken from the queue, and those kept aside.
    """

    def __init__(self, queue: Queue, sink: Sink, runs: Runs) -> None:
        self.queue = queue
        self.sink = sink
        self.runs = runs
        self.records = self.refused = self.damaged = 0
        self._loaded: list[Segment] = []  # what `_work` was read from
        self._work: dict[RunHandle, Buffer] = {}

    def round(self) -> str | None:
        """Write everything that is in the queue now, up to a failure of the store, of which the
        reason is returned.

        An artifact that cannot be written holds up nothing but the other artifacts.
        """
        failure: str | None = None
        waiting = []
        for s in self.queue.segments():
            if s not in self._loaded:
                waiting.append(s)
        try:
            if self._loaded or waiting:
                self.sink.connect()
                self.queue.describe(known=True)
            failure = self._write(None)
            for segment in waiting:
                self._load(segment)
                failure = self._write(failure)
        except Exception as error:  # noqa: BLE001  whatever a store does, a search goes on
            return reason(error)
        return failure

    def _write(self, earlier: str | None) -> str | None:
        """Write what was loaded, oldest run first; artifacts only when there was no failure of one
        in this round.
        """
        for run in list(self._work):
            buffer = self._work[run]
            try:
                if run.refused:
                    raise Refused
                self.sink.write(run, buffer, artifacts=earlier is None)
            except Refused as error:
                self._refuse(run, buffer, error)
            except ArtifactError as error:
                earlier = reason(error)
                continue
            if not buffer.artifacts:
                del self._work[run]
        if self._loaded and not self._work:
            self.queue.remove(self._loaded, self.sink.written)
            self._loaded = []
            self.sink.written = []
        return earlier

    def _refuse(self, run: RunHandle, buffer: Buffer, error: Refused) -> None:
        """Keep what the store does not want, so that other runs are not held up."""
        if not run.refused:
            run.refused = True
            log.warning(
                "tracking: run '%s' is no longer written, the store refuses it: %s", run.name, error
            )
        if len(buffer) or buffer.start is not None:
            self.queue.set_aside([encode(run, buffer, self.queue.folder)], REFUSED)
            self.refused += 1
        buffer.artifacts.clear()

    def _load(self, segment: Segment) -> None:
        """Read a segment; a torn last line is dropped, any other that cannot be read is kept aside."""
        folder = self.queue.folder
        lines = list[bytes]()
        bad: list[bytes] = []
        self._loaded.append(segment)
        try:
            lines = self.queue.read(segment)
        except FileNotFoundError:
            log.warning(
                "tracking: %s was removed by somebody: its records are lost",
                self.queue.path(segment),
            )
        for number, line in enumerate(lines, 1):
            try:
                run, buffer = decode(line, self.runs, folder, anywhere=segment.lines is not None)
            except Damaged as error:
                if number == len(lines) and not line.endswith(b"\n"):
                    said = "its last line was cut short and is dropped"
                else:
                    bad.append(line)
                    said = f"line {number} is damaged ({error}) and kept in {folder / DAMAGED}"
                log.warning("tracking: %s: %s", self.queue.path(segment), said)
                continue
            self._work.setdefault(run, Buffer()).absorb(buffer)
            self.records += 1
        if bad:
            self.queue.set_aside(bad, DAMAGED)
            self.damaged += len(bad)
