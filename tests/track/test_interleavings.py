"""Whatever interrupts a writer, and whenever: the store has in the end what it has without
interruptions.
"""

import gc
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.track.stores import NEVER, break_store, content, mend_store
from tune_mm.track import RunHandle, Store, Writer
from tune_mm.track.replay import replay

RUNS = 3  # the first is the parent of the others
CHANGES = {"create_run", "update_run", "delete_tag", "log_batch", "log_text", "set_terminated"}

number = st.integers(0, RUNS - 1)
small = st.integers(0, 3)
records = st.one_of(
    st.tuples(st.just("start"), number, small),
    st.tuples(st.just("log"), number, st.sampled_from(["val", "grad"]), small, small),
    st.tuples(st.just("params"), number, small),
    st.tuples(st.just("tags"), number, small),
    st.tuples(st.just("artifact"), number, small),
    st.tuples(
        st.just("finish"),
        number,
        st.sampled_from(["completed", "pruned", "failed", "stopped"]),
        st.booleans(),
    ),
)
faults = st.one_of(
    st.just(("flush",)),
    st.just(("down",)),
    st.just(("up",)),
    st.just(("kill",)),
    # The connection breaks at a call that changes something, before the store has it or after.
    st.tuples(st.just("cut"), st.integers(0, 12), st.booleans()),
)
Steps = list[tuple[Any, ...]]


class Line:
    """A client whose connection breaks at its n-th call that changes something, and stays broken."""

    def __init__(self, client: Any, calls: int, arrives: bool) -> None:
        self._client, self._left, self._arrives = client, calls, arrives

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._client, name)
        if name not in CHANGES:
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left > 0:
                return found(*args, **kwargs)
            if self._left == 0 and self._arrives:
                found(*args, **kwargs)
            raise ConnectionError("the line is cut")

        return call


class Player:
    """Does the steps of one search, with or without its faults."""

    def __init__(self, store: Store, tmp_path: Path, search: str) -> None:
        self.store, self.tmp_path, self.search = store, tmp_path, search
        self.down = False
        self.writer = self._writer()
        self.runs: list[RunHandle] = []
        for i in range(RUNS):
            parent = self.runs[0] if i else None
            self.runs.append(self.writer.start(f"run {i}", {"lr": 0}, parent=parent, key=f"k{i}"))

    def _writer(self) -> Writer:
        return Writer(self.store, "space", search=self.search, interval=NEVER)

    def play(self, steps: Steps) -> None:
        for step in steps:
            getattr(self, f"do_{step[0]}")(*step[1:])

    def do_start(self, run: int, value: int) -> None:
        parent = self.runs[0] if run else None
        self.runs[run] = self.writer.start(
            f"run {run}", {"lr": value}, parent=parent, key=f"k{run}"
        )

    def do_log(self, run: int, kind: str, step: int, value: int) -> None:
        self.writer.log(self.runs[run], {f"{kind}/loss": value, f"{kind}/norm": value + 0.5}, step)

    def do_params(self, run: int, value: int) -> None:
        self.writer.params(self.runs[run], {"alpha": value})

    def do_tags(self, run: int, value: int) -> None:
        self.writer.tags(self.runs[run], {"note": value})

    def do_artifact(self, run: int, value: int) -> None:
        if value % 2:
            self.writer.artifact(self.runs[run], f"text {value}", "note.txt")
            return
        file = self.tmp_path / "file"
        file.write_text(f"file {value}")
        self.writer.artifact(self.runs[run], file, "note.txt")
        file.unlink()

    def do_finish(self, run: int, status: Any, why: bool) -> None:
        self.writer.finish(self.runs[run], status, "reason" if why else "")

    def do_flush(self) -> None:
        self.writer.flush()

    def do_down(self) -> None:
        if not self.down:
            break_store(self.store, self.tmp_path)
            self.down = True

    def do_up(self) -> None:
        if self.down:
            mend_store(self.store, self.tmp_path)
            self.down = False

    def do_kill(self) -> None:
        self.drop()
        self.writer = self._writer()

    def drop(self) -> None:
        """What a kill does: nothing is written or closed any more."""
        del self.writer
        gc.collect()  # tracebacks of failures hold the writer too

    def do_cut(self, calls: int, arrives: bool) -> None:
        if self.down:
            return
        self.writer._sink.client = Line(self.store.client(), calls, arrives)  # type: ignore[assignment]
        self.writer.flush()
        self.writer._sink.client = self.store.client()


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.one_of(records, faults), max_size=25), st.booleans())
@example(
    [("down",), ("kill",), ("log", 1, "val", 0, 1), ("flush",), ("kill",), ("artifact", 2, 0)], True
)
@example([("kill",), ("start", 1, 0)], False)
@example(
    [
        ("log", 1, "val", 0, 1),
        ("cut", 5, True),
        ("down",),
        ("kill",),
        ("finish", 1, "failed", True),
    ],
    False,
)
def test_interruptions_leave_no_trace(
    store: Store, tmp_path: Path, steps: Steps, by_replay: bool
) -> None:
    search = f"s{next(COUNT)}"
    calm, rough = (
        Player(store, tmp_path, f"{search}-calm"),
        Player(store, tmp_path, f"{search}-rough"),
    )
    calm.play([step for step in steps if step[0] not in {"flush", "down", "up", "kill", "cut"}])
    assert calm.writer.flush()
    rough.play(steps)
    rough.do_up()
    if by_replay:
        queue = rough.writer._queue.folder
        rough.drop()
        assert not queue.exists() or replay(queue).whole
    else:
        assert rough.writer.flush()
    assert content(store, rough.search) == content(store, calm.search)


COUNT = itertools.count()
EVERYTHING: Steps = [
    ("log", 1, "val", 0, 1),
    ("params", 1, 1),
    ("artifact", 1, 2),
    ("finish", 1, "failed", True),
    ("start", 1, 2),
    ("log", 1, "val", 1, 2),
    ("tags", 1, 3),
    ("artifact", 1, 3),
    ("params", 1, 2),
    ("finish", 1, "completed", False),
]


@pytest.mark.parametrize("arrives", [False, True])
def test_a_line_cut_at_any_call(store: Store, tmp_path: Path, arrives: bool) -> None:
    calm = Player(store, tmp_path, "calm")
    for step in EVERYTHING:
        calm.play([step, ("flush",)])
    expected = content(store, "calm")
    # One round of all of it: three runs created and one ended, its params, tags and metrics, two
    # artifacts.
    for calls in range(1, 9):
        rough = Player(store, tmp_path, f"rough-{calls}")
        killed = (calls + arrives) % 2 == 0
        rough.play(
            [*EVERYTHING, ("cut", calls, arrives), *([("kill",)] if killed else []), ("flush",)]
        )
        assert content(store, rough.search) == expected
