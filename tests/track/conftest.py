"""A fresh store for every test, copied from one that was built once."""

import shutil
from pathlib import Path

import pytest

from tune_mm.track import Store


@pytest.fixture
def store(tmp_path: Path, template: Path) -> Store:
    """An empty store in `<tmp_path>/mlruns`."""
    (tmp_path / "mlruns").mkdir()
    shutil.copyfile(template, tmp_path / "mlruns" / "mlflow.db")
    return Store.open(f"sqlite:///{tmp_path}/mlruns/mlflow.db", tmp_path)
