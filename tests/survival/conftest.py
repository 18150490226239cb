"""Processes that are ended with the test that started them, and folders in which nothing may be
run.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.survival.hostile import Place
from tests.survival.processes import Started


@pytest.fixture
def started() -> Iterator[Started]:
    found = Started()
    yield found
    found.close()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    found = Place(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TUNE_MM_DATA", str(found.data))
    monkeypatch.setenv("TUNE_MM_CACHE", str(tmp_path / "cache"))
    yield found
    assert not found.target.exists(), "something was run"
