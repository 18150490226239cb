"""The script alone, as `ray submit` uploads it: it finds the installed package, its spaces, and the
cluster.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tune_mm import search

SCRIPT = Path(search.__file__)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    shutil.copy(SCRIPT, tmp_path / "search.py")
    return tmp_path


def run(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The copy, run in its folder; the package is importable as it is where it is installed."""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(SCRIPT.parents[1]), "RAY_TMPDIR": str(home)}
    command = [sys.executable, "search.py", *arguments]
    return subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, check=False
    )


def test_the_package_itself_is_no_copy() -> None:
    assert not search.uploaded()


def test_a_copy_finds_the_spaces_of_the_package(home: Path) -> None:
    done = run(home, "--list")
    assert done.returncode == 0, done.stderr
    assert "cggm_iemocap" in done.stdout


@pytest.mark.slow  # not beside other tests: `auto` finds any Ray of the machine, theirs too
def test_a_copy_joins_the_cluster_and_starts_none_of_its_own(home: Path) -> None:
    done = run(home, "--space", "cggm_iemocap", "--trials", "1")
    assert done.returncode == 2, done.stdout
    assert "--address: no Ray cluster at 'auto'" in done.stderr
    assert "Traceback" not in done.stderr
