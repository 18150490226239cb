"""Records on disk that are not in the store yet, in the order in which they came.

    <folder>/queue.json           the store (without a password), the experiment, the place of its artifacts
    <folder>/01000000.jsonl ...   segments: one record a line, never changed, removed once the store has all of it
    <folder>/files/<id>/<name>    copies of artifacts
    <folder>/refused.jsonl        records that the store refuses for good; a replay tries them again
    <folder>/damaged.jsonl        lines that cannot be read

A line is handed to the system before `add` returns, so that a killed process loses none; only
`sync` waits for the disk, for the sake of a power cut. Where the disk takes nothing (full,
read-only), lines are kept in memory.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tempfile
import threading
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tune_mm.errors import UserError
from tune_mm.filesystem import fsync
from tune_mm.track.outbox import folder_lock, queue_file
from tune_mm.track.outbox.segment import Rest, Segment, count

log = logging.getLogger("tune_mm.track")

FILES = "files"
REFUSED = "refused.jsonl"
DAMAGED = "damaged.jsonl"
FIRST = 1_000_000  # number of the first segment: refused records go before it
SEGMENT = 4_000_000  # bytes after which a new segment begins
CAPACITY = (
    1_000_000  # lines kept in memory where the disk takes none; what comes after that is lost
)


class Queue:
    """The queue in `folder`, which this object alone has until it is closed, with what an earlier
    process left in it.

    about: content of queue.json. A folder is made with the first record; where another process has
    it, the next one beside it is. Without `about` the folder has to be a queue: UserError when it
    is none, folder_lock.FolderTaken when it is taken.
    """

    def __init__(self, folder: Path, about: Mapping[str, Any] | None = None) -> None:
        self._exact = about is None
        self.folder = folder
        self.about: dict[str, Any] = (
            queue_file.read(folder) if about is None else {"format": queue_file.FORMAT, **about}
        )
        self._lock = threading.Lock()
        self._held: int | None = None  # descriptor of the lock
        self._sealed: list[Segment] = []
        self._open: Segment | None = (
            None  # what grows: on disk with a descriptor, in memory with lines
        )
        self._fd: int | None = None
        self._size = self._lost = 0
        self._next = FIRST
        self._complained = self._told = False
        self._spool: Path | None = None
        if folder.exists():
            try:
                self._take()
            except OSError as error:
                self._complain(error)

    # ---- records come

    def add(self, line: bytes) -> None:
        """Append a line (it ends in a newline); the system has it when this returns."""
        with self._lock:
            if self._size >= SEGMENT:
                self._seal()
            if self._open is None or self._open.lines is None:
                try:
                    self._append(line)
                    return
                except OSError as error:
                    self._complain(error)
                    self._seal()
                    self._open = Segment(self._number(), [])
            self._keep(self._open, line)

    def copy(self, file: Path, name: str) -> Path:
        """A copy of `file` that is the queue's own, called `name`. Raises OSError when it cannot be
        read or copied.
        """
        with self._lock:
            folder = self._files() / uuid.uuid4().hex
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, folder, ignore_errors=True)
            folder.mkdir(parents=True)
            shutil.copyfile(file, folder / name)
            undo.pop_all()
        return folder / name

    def _append(self, line: bytes) -> None:
        if self._fd is None:
            self._take()
            segment = Segment(self._number())
            self._fd = os.open(
                self.path(segment), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o644
            )
            self._open = segment
            self._size = 0
        if os.write(self._fd, line) < len(line):
            os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += len(line)

    def _keep(self, segment: Segment, line: bytes) -> None:
        if segment.lines is not None and len(segment.lines) < CAPACITY:
            segment.lines.append(line)
        else:
            self._lost += 1

    def _complain(self, error: OSError) -> None:
        if not self._complained:
            self._complained = True
            what = "records are kept in memory until the store has them, and a kill would lose them"
            log.warning(
                "tracking: %s cannot be written (%s); %s",
                self.folder,
                error.strerror or error,
                what,
            )

    def _files(self) -> Path:
        try:
            self._take()
        except OSError as error:
            self._complain(error)
            self._spool = self._spool or Path(tempfile.mkdtemp(prefix="tune_mm-"))
            return self._spool
        return self.folder / FILES

    # ---- records go

    def segments(self) -> list[Segment]:
        """What has been added up to now, oldest first; what comes later goes into a new one."""
        with self._lock:
            self._seal()
            return list(self._sealed)

    def path(self, segment: Segment) -> Path:
        """Where it is on disk."""
        return self.folder / f"{segment.number:08d}.jsonl"

    def read(self, segment: Segment) -> list[bytes]:
        """Its lines. Raises OSError."""
        if segment.lines is not None:
            return segment.lines
        return self.path(segment).read_bytes().splitlines(keepends=True)

    def remove(self, segments: Sequence[Segment], files: Sequence[Path]) -> None:
        """The store has all of them, and `files`, the copies that they name."""
        with self._lock:
            self._sealed = [s for s in self._sealed if s not in segments]
        for segment in segments:
            self.path(segment).unlink(missing_ok=True)
        for file in files:  # after the records: one without its file is damaged
            shutil.rmtree(file.parent, ignore_errors=True)

    def set_aside(self, lines: Sequence[bytes], name: str) -> None:
        """Keep lines that cannot be written. name: REFUSED or DAMAGED."""
        with self._lock:
            try:
                self._take()
                with (self.folder / name).open("ab") as file:
                    file.writelines(
                        line if line.endswith(b"\n") else line + b"\n" for line in lines
                    )
            except OSError as error:
                self._complain(error)
                self._lost += len(lines)

    def reconsider(self) -> None:
        """Put the refused records in front of all others. Raises OSError."""
        path = self.folder / REFUSED
        if path.exists():
            front = Segment(min([FIRST, *(s.number for s in self._sealed)]) - 1)
            path.rename(self.path(front))
            self._sealed.insert(0, front)

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._sealed and self._open is None

    # ---- its state, and its end

    def describe(self, **changes: Any) -> None:
        """Change queue.json."""
        with self._lock:
            before = self.about
            self.about = {**self.about, **changes}
            if self._held is not None and self.about != before:
                with contextlib.suppress(OSError):
                    queue_file.write(self.folder, self.about)

    def sync(self) -> None:
        """Wait until the disk has everything; what was kept in memory is tried on the disk again."""
        with self._lock:
            self._seal()
            sealed = [s for s in self._sealed if not s.synced]
            with contextlib.suppress(OSError):
                for segment in sealed:
                    self._settle(segment)
            there = [s for s in sealed if s.lines is None]
        with contextlib.suppress(
            OSError
        ):  # outside the lock: nobody who adds a record waits for this
            for segment in there:
                fsync(self.path(segment))
                segment.synced = True
            if there:
                fsync(self.folder)

    def close(self) -> Rest:
        """Give the folder back, and remove it when nothing is left in it."""
        self.sync()
        with self._lock:
            waiting = sum(count(self.path(s)) for s in self._sealed if s.lines is None)
            self._lost += sum(len(s.lines) for s in self._sealed if s.lines is not None)
            aside = {}
            for name in (REFUSED, DAMAGED):
                aside[name] = count(self.folder / name)
            rest = Rest(waiting, {name: n for name, n in aside.items() if n}, self._lost)
            if self._held is not None:
                if not rest.waiting and not rest.aside:
                    folder_lock.remove(self.folder)
                os.close(self._held)
                self._held = None
            if self._spool is not None:
                shutil.rmtree(self._spool, ignore_errors=True)
            self._sealed = []
            self._lost = 0
        return rest

    def __del__(self) -> None:
        for descriptor in (getattr(self, "_fd", None), getattr(self, "_held", None)):
            if descriptor is not None:
                os.close(descriptor)

    def _take(self) -> None:
        """Take the folder, once; what is in it waits from now on. Raises OSError, folder_lock.FolderTaken."""
        if self._told:
            return
        if self._held is None:
            self.folder, self._held = folder_lock.take(self.folder, exact=self._exact)
            numbers = sorted(int(p.stem) for p in self.folder.glob("*.jsonl") if p.stem.isdigit())
            self._sealed = [*map(Segment, numbers), *self._sealed]
            self._next = max([self._next, *(n + 1 for n in numbers)])
            self._agree()
        queue_file.write(self.folder, self.about)
        self._told = True

    def _agree(self) -> None:
        """Take over what queue.json says of the store. Raises UserError when the records are
        another experiment's.
        """
        try:
            before = queue_file.read(self.folder)
        except UserError:  # a new one, or one that a power cut has emptied
            return
        if self._sealed and before["experiment"] != self.about["experiment"]:
            ours = self.about["experiment"]
            theirs = before["experiment"]
            raise UserError(
                f"{self.folder} has records of the experiment '{theirs}', got '{ours}': replay them first"
            )
        self.about["known"] = self.about["known"] or before["known"]

    def _number(self) -> int:
        self._next += 1
        return self._next - 1

    def _seal(self) -> None:
        if self._open is not None:
            self._sealed.append(self._open)
            self._open = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
        self._size = 0

    def _settle(self, segment: Segment) -> None:
        """Move lines from memory to the disk."""
        if segment.lines is None:
            return
        self._take()
        new = self.path(segment).with_suffix(".new")
        new.write_bytes(b"".join(segment.lines))
        new.replace(self.path(segment))
        segment.lines = None
