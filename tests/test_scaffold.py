"""`python -m tune_mm new`: what it writes runs, and passes the conformance tests of its kind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tune_mm.errors import UserError
from tune_mm.scaffold import scaffold

REPOSITORY = Path(__file__).resolve().parent.parent
FOLDERS = ("tune_mm", "tests", "configs", "search_spaces")
# What else than the written tests holds a new plug-in: the conformance tests of its kind.
CONFORMANCE = {
    "method": ["tests/methods/test_conformance.py", "tests/tune/space/test_spaces.py"],
    "encoder": ["tests/models/test_encoder_conformance.py"],
    "fusion": ["tests/models/test_fusions.py"],
    "dataset": ["tests/data/test_conformance.py", "tests/config/test_config.py"],
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a checkout holds."""
    for folder in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignored)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    return tmp_path


def run(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(
        command, cwd=checkout, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("kind", scaffold.KINDS)
def test_what_is_written_passes_its_tests(checkout: Path, kind: scaffold.Kind) -> None:
    done = run(checkout, "tune_mm", "new", kind, "brand_new")
    assert done.returncode == 0, done.stderr
    places = scaffold.PLACES[kind].values()
    written = [line.removeprefix("wrote ") for line in done.stdout.splitlines()[:-1]]
    assert written == [place.replace("__name__", "brand_new") for place in places]
    style = run(checkout, "ruff", "check", *[name for name in written if name.endswith(".py")])
    assert style.returncode == 0, style.stdout
    own = [name for name in written if Path(name).name.startswith("test_")]
    tests = run(
        checkout,
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "brand_new",
        *own,
        *CONFORMANCE[kind],
    )
    assert tests.returncode == 0, tests.stdout[-3000:]
    assert " passed" in tests.stdout


def test_a_taken_name_is_refused(checkout: Path) -> None:
    done = run(checkout, "tune_mm", "new", "method", "dgl")
    assert (done.returncode, done.stderr) == (2, "new: there is a method 'dgl' already\n")


def test_a_file_that_is_there_is_kept(checkout: Path) -> None:
    mine = checkout / "search_spaces" / "mine_avdigits.yaml"
    mine.write_text("mine")
    with pytest.raises(UserError, match=r"mine_avdigits\.yaml exists already"):
        scaffold.write("method", "mine", checkout)
    assert mine.read_text() == "mine"
    assert not (checkout / "tune_mm" / "methods" / "mine.py").exists()


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("metod", "mine", "no kind 'metod'; nearest 'method'; available: method, encoder, fusion"),
        ("method", "Mine", "must be lower-case letters, digits and '_', and begin with a letter"),
        ("method", "../mine", "must be lower-case letters"),
        ("fusion", "mine", "run this in a checkout of tune_mm; .* has no tune_mm/ and tests/"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, kind: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scaffold.write(kind, name, tmp_path)
    assert not list(tmp_path.iterdir())
