"""The queue on disk: what was added is there after a kill, in order; damage is told apart from an
end cut short.
"""

import json
import os
import resource
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_mm.errors import UserError
from tune_mm.track.backoff import Backoff
from tune_mm.track.outbox import folder_lock
from tune_mm.track.outbox.queue import REFUSED, Queue
from tune_mm.track.record_lines import Damaged, Runs, decode, encode
from tune_mm.track.run import MLFLOW_STATUS, Artifact, Buffer, MetricPoint, RunHandle

ABOUT = {"uri": "sqlite:////x.db", "experiment": "space", "artifacts": None, "known": True}


def lines(queue: Queue) -> list[bytes]:
    return [line for segment in queue.segments() for line in queue.read(segment)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "mlruns" / "queue" / "store" / "search"


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system takes 4096 bytes of a file and no more, as where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- the folder


def test_nothing_is_made_before_the_first_record_and_nothing_stays_after_the_last(
    folder: Path,
) -> None:
    queue = Queue(folder, ABOUT)
    assert not folder.exists()
    queue.add(b"a\n")
    assert json.loads((folder / "queue.json").read_text()) == {"format": 1, **ABOUT}
    queue.remove(queue.segments(), [])
    assert queue.empty
    rest = queue.close()
    assert (rest.waiting, rest.aside, rest.lost, rest.any) == (0, {}, 0, False)
    assert [p.name for p in folder.parents[2].iterdir()] == []  # mlruns itself stays


def test_lines_survive_a_queue_that_was_never_closed_and_keep_their_order(folder: Path) -> None:
    first = Queue(folder, ABOUT)
    for i in range(5):
        first.add(b"%d\n" % i)
        if i % 2:
            first.segments()
    del first  # as a kill does: nothing is closed, the system gives the lock back
    second = Queue(folder, ABOUT)
    second.add(b"5\n")
    assert lines(second) == [b"%d\n" % i for i in range(6)]


def test_a_large_segment_ends_by_itself(folder: Path) -> None:
    queue = Queue(folder, ABOUT)
    line = b"x" * 1_000_000 + b"\n"
    for _ in range(9):
        queue.add(line)
    # 4 MB are reached by the fourth line: segments of 4, 4 and 1.
    assert [len(queue.read(s)) for s in queue.segments()] == [4, 4, 1]


def test_two_at_once_have_a_folder_each_and_a_replay_is_refused(folder: Path) -> None:
    first, second = Queue(folder, ABOUT), Queue(folder, ABOUT)
    first.add(b"a\n")
    second.add(b"b\n")
    assert (first.folder, second.folder) == (folder, folder.with_name("search.2"))
    with pytest.raises(folder_lock.FolderTaken):
        Queue(folder)
    assert (first.close().waiting, second.close().waiting) == (1, 1)
    assert lines(Queue(folder)) == [b"a\n"]


def test_records_of_another_experiment_are_not_mixed_in(folder: Path) -> None:
    queue = Queue(folder, ABOUT)
    queue.add(b"a\n")
    queue.close()
    with pytest.raises(
        UserError, match="has records of the experiment 'space', got 'other': replay them first"
    ):
        Queue(folder, {**ABOUT, "experiment": "other"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "Expecting value"),
        ("[]", "lacks artifacts, experiment, format, known, uri"),
        (json.dumps({"format": 9, **ABOUT}), "has format 9, this version reads 1"),
    ],
)
def test_a_folder_that_is_no_queue_is_refused(folder: Path, text: str, said: str) -> None:
    folder.mkdir(parents=True)
    (folder / "queue.json").write_text(text)
    with pytest.raises(UserError, match=said):
        Queue(folder)


def test_refused_records_come_first_when_they_are_tried_again(folder: Path) -> None:
    queue = Queue(folder, ABOUT)
    queue.add(b"later\n")
    queue.set_aside([b"refused\n"], REFUSED)
    assert queue.close().aside == {"refused.jsonl": 1}
    again = Queue(folder)
    again.reconsider()
    assert lines(again) == [b"refused\n", b"later\n"]


# ---- a disk that takes nothing


@pytest.mark.usefixtures("small_files")
def test_what_the_disk_does_not_take_is_kept_in_memory_and_moved_later(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    queue = Queue(folder, ABOUT)
    wanted = [
        b"%d" % i * 1000 + b"\n" for i in range(10)
    ]  # 1001 bytes each: four fit into a file, the fifth in part
    for line in wanted:
        queue.add(line)
    assert lines(queue) == wanted
    assert len([r for r in caplog.records if "kept in memory" in r.getMessage()]) == 1
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert (queue.close().waiting, lines(Queue(folder))) == (10, wanted)


def test_a_place_that_is_no_folder_costs_nothing_but_safety(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mlruns").write_text("in the way")
    (tmp_path / "file").write_text("content")
    queue = Queue(folder, ABOUT)
    queue.add(b"a\n")
    copy = queue.copy(tmp_path / "file", "copy")
    assert (lines(queue), copy.read_text()) == ([b"a\n"], "content")
    assert (queue.close().lost, copy.exists()) == (1, False)


# ---- records


RUN = RunHandle("trial 0", "first", "search/0", RunHandle("search", "first", "search"))
TEXTS = st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3)
NUMBERS = st.floats(allow_nan=False)  # NaN is not equal to itself
BUFFERS = st.builds(
    Buffer,
    start=st.none() | st.integers(0, 2**41),
    params=TEXTS,
    tags=TEXTS,
    points=st.lists(
        st.builds(
            MetricPoint,
            values=st.dictionaries(st.text(max_size=5), NUMBERS, min_size=1, max_size=3),
            step=st.integers(0, 9),
            timestamp=st.integers(0, 2**41),
        ),
        max_size=3,
    ),
    artifacts=st.lists(st.builds(Artifact, st.text(max_size=5), st.text(max_size=9)), max_size=2),
    status=st.none() | st.sampled_from(list(MLFLOW_STATUS)),
    ended=st.none() | st.integers(0, 2**41),
)


@given(BUFFERS)
def test_a_record_is_read_as_it_was_written(buffer: Buffer) -> None:
    runs: Runs = {}
    line = encode(RUN, buffer, Path("/nowhere"))
    run, found = decode(line, runs, Path("/nowhere"))
    assert found == buffer
    assert (run.name, run.search, run.key, run.parent and run.parent.key) == (
        "trial 0",
        "first",
        "search/0",
        "search",
    )
    assert list(runs) == [("first", "search"), ("first", "search/0")]
    assert decode(line, runs, Path("/nowhere"))[0] is run
    told = json.loads(line)
    text = json.dumps(told["record"], separators=(",", ":"))
    assert (line.count(b"\n"), told["crc"]) == (1, f"{zlib.crc32(text.encode()):08x}")


@given(st.data())
def test_one_wrong_byte_is_noticed(data: st.DataObject) -> None:
    line = encode(
        RUN, Buffer(params={"lr": "0.1"}, points=[MetricPoint({"val/loss": 0.25}, 3, 7)]), None
    )
    where = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda b: b != line[where]))
    with pytest.raises(Damaged):
        decode(line[:where] + bytes([byte]) + line[where + 1 :], {}, Path("/nowhere"))


def test_a_file_of_an_artifact_has_to_be_there_whole_and_inside_the_queue(tmp_path: Path) -> None:
    file = tmp_path / "files" / "1" / "best.pt"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"1234")
    line = encode(RUN, Buffer(artifacts=[Artifact("checkpoints/best.pt", file=file)]), tmp_path)
    assert decode(line, {}, tmp_path)[1].artifacts == [Artifact("checkpoints/best.pt", file=file)]
    file.write_bytes(b"12")
    with pytest.raises(Damaged, match="has 2 bytes instead of 4"):
        decode(line, {}, tmp_path)
    file.unlink()
    with pytest.raises(Damaged, match="is missing"):
        decode(line, {}, tmp_path)
    outside = tmp_path.parent / "outside"
    outside.write_text("secret")
    with pytest.raises(Damaged, match="outside the queue"):
        decode(encode(RUN, Buffer(artifacts=[Artifact("a", file=outside)]), tmp_path), {}, tmp_path)


# ---- pauses


def test_pauses_double_up_to_a_minute_and_begin_anew() -> None:
    now = 100.0
    retry = Backoff(lambda: now)
    assert retry.wait == 0
    pauses = []
    for _ in range(2000):  # more than a power of two has room for
        retry.failed()
        pauses.append(retry.wait)
        now += pauses[-1]
        assert retry.wait == 0
    assert pauses[:8] == [1, 2, 4, 8, 16, 32, 60, 60]
    assert set(pauses[8:]) == {60}
    retry.failed()
    now += 45
    assert retry.wait == 15
    retry.succeeded()
    assert retry.wait == 0
    retry.failed()
    assert retry.wait == 1


def test_the_lock_is_the_systems(folder: Path) -> None:
    queue = Queue(folder, ABOUT)
    queue.add(b"a\n")
    assert os.path.exists(folder / "lock")
    with pytest.raises(folder_lock.FolderTaken):
        folder_lock.take(folder, exact=True)
    queue.close()
    assert folder_lock.take(folder, exact=True)[0] == folder
