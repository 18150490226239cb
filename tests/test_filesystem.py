"""Locks between processes and writes that are whole or not there."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tune_mm.filesystem import locked, try_locked, write_json

TRY = """
import sys
from pathlib import Path
from tune_mm.filesystem import try_locked
with try_locked(Path(sys.argv[1])) as held:
    print(held)
"""


def tried_by_another(path: Path) -> str:
    """What another process, which does not wait, says of the lock."""
    command = [sys.executable, "-c", TRY, str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_lock_that_is_free_is_held_until_the_end_of_the_block(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with try_locked(path) as held:
        assert held
        assert tried_by_another(path) == "False"
    assert tried_by_another(path) == "True"


def test_a_lock_that_is_taken_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path):
        assert tried_by_another(path) == "False"
        with try_locked(path) as held:
            assert not held
        # The one who holds it is not disturbed by the attempt.
        assert tried_by_another(path) == "False"


def test_an_error_in_the_block_releases_the_lock_and_is_raised(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(ValueError, match="of the block"), try_locked(path):
        raise ValueError("of the block")
    with try_locked(path) as held:
        assert held


def test_a_lock_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), try_locked(tmp_path / "file" / "lock"):
        pass


def test_json_replaces_what_was_there_and_leaves_no_scratch_file(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    write_json(path, {"a": 1})
    write_json(path, {"a": 2}, indent=None)
    assert json.loads(path.read_text()) == {"a": 2}
    with pytest.raises(TypeError):
        write_json(path, object())
    assert json.loads(path.read_text()) == {"a": 2}
    assert [found.name for found in tmp_path.iterdir()] == ["values.json"]
