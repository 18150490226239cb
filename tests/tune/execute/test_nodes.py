"""A second node that does not see the first one's folders, for real: a raylet in a mount namespace
of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
import ray
from rich.console import Console

from tests.tune.conftest import Searches
from tests.tune.toy import Toy
from tune_mm.config import load_config
from tune_mm.errors import UserError
from tune_mm.tune import search
from tune_mm.tune.execute import nodes, ray_session
from tune_mm.tune.plan.plan import Options

pytestmark = pytest.mark.slow
DEADLINE = 120.0


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two nodes; the folder that the second one sees empty."""
    folder = tmp_path_factory.mktemp("hidden")
    try_it = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", str(folder)]
    if (
        shutil.which("unshare") is None
        or os.geteuid() != 0
        or subprocess.run(try_it, check=False).returncode
    ):
        pytest.skip("a mount namespace needs root")
    connection = ray_session.connect(None, 1, 1)
    address = ray.get_runtime_context().gcs_address
    join = f"{sys.executable} -m ray.scripts.scripts start --address={address} --num-cpus=1 --block"
    command = ["unshare", "-m", "sh", "-c", f"mount -t tmpfs tmpfs '{folder}' && exec {join}"]
    # A raylet dies with what has started it; the group is ended as a whole.
    other = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + DEADLINE
        while len(nodes.alive()) < 2 and time.monotonic() < deadline:
            assert other.poll() is None, "the second node did not start"
        yield folder
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(other.pid, signal.SIGTERM)
        other.wait(timeout=60)
        connection.close()


def test_this_node_comes_first(hidden: Path) -> None:
    assert [node.here for node in nodes.alive()] == [True, False]


def test_every_node_is_asked_where_it_is(hidden: Path) -> None:
    answers = nodes.ask(nodes.alive(), _own_id)
    assert list(answers.values()) == [node.id for node in nodes.alive()]


def test_storage_that_a_node_does_not_see_is_refused_and_nothing_is_left(
    hidden: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        UserError,
        match=rf"--storage: {hidden}/ray is not seen by 1 of 2 nodes \(.+\): .* s3://BUCKET",
    ):
        nodes.check_storage(str(hidden / "ray"))
    assert list((hidden / "ray").iterdir()) == []
    nodes.check_storage(str(tmp_path / "seen"))
    nodes.check_storage("s3://bucket/anywhere")
    assert list((tmp_path / "seen").iterdir()) == []


def test_a_search_with_such_storage_does_not_begin(hidden: Path, tmp_path: Path) -> None:
    space = Searches(tmp_path).write()
    options = Options(root=tmp_path, space=space, storage=str(hidden / "ray"))
    with pytest.raises(UserError, match=r"--storage: .* is not seen by 1 of 2 nodes"):
        search.run(options, Console(file=StringIO()), build=Toy)
    assert not list((tmp_path / "mlruns").rglob("search.json"))


def test_data_that_a_node_does_not_have_name_the_node(hidden: Path, data_root: Path) -> None:
    if not (data_root / "avdigits").is_dir():
        pytest.skip(f"no avdigits in {data_root}")
    section = load_config("avdigits")
    nodes.check_data(section, "real", str(data_root))
    (hidden / "avdigits").symlink_to(data_root / "avdigits")
    other = nodes.alive()[1].name
    with pytest.raises(UserError, match="data are missing on 1 of 2 nodes") as told:
        nodes.check_data(section, "real", str(hidden))
    assert f"{other}: avdigits: real data are required, but no " in str(told.value)


def test_a_question_that_fails_names_the_node(hidden: Path) -> None:
    with pytest.raises(UserError, match=r"node .+: division by zero"):
        nodes.ask(nodes.alive()[1:], _fails)


def _own_id() -> str:
    return str(ray.get_runtime_context().get_node_id())


def _fails() -> float:
    return 1 / 0
