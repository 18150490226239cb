"""A real store for all tests of reports, made once; `tests/reports/sample_runs.py` says what is in it, by
formula.
"""

from pathlib import Path

import pytest

from tests.reports import sample_runs
from tune_mm.track import Store


@pytest.fixture(scope="session")
def store_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the store: `<store_root>/mlruns/mlflow.db`. Read only: it is shared by all
    tests.
    """
    root = tmp_path_factory.mktemp("reports")
    sample_runs.make(root)
    return root


@pytest.fixture(scope="session")
def store(store_root: Path) -> Store:
    """The same store, opened for writing (attach, say); tests that change runs take a copy of the
    folder.
    """
    return Store.open(f"sqlite:///{store_root}/mlruns/mlflow.db", store_root)


@pytest.fixture
def no_uri_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands then use the store below the working directory."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
