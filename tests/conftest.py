"""What every test needs: a quiet, single-threaded environment, and the real data where they are at
hand.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports ray, mlflow or torch: they read these once. Ray workers and subprocesses
# inherit them.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Else every MLflow server starts seven consumers of jobs, which outlive one that is killed.
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets: TUNE_MM_DATA, else shared/data beside the project. Skips where
    neither exists.
    """
    named = os.environ.get("TUNE_MM_DATA")
    root = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not root.is_dir():
        pytest.skip(
            f"no real data: {root} does not exist and TUNE_MM_DATA is {repr(named) if named else 'not set'}"
        )
    return root


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh MLflow database, built once; a copy of it is a store."""
    from tune_mm.track import Store

    root = tmp_path_factory.mktemp("template")
    Store.open(f"sqlite:///{root}/mlflow.db", root)
    return root / "mlflow.db"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    if (
        shutil.which("mount") is None
        or os.geteuid() != 0
        or subprocess.run(mount, check=False).returncode
    ):
        pytest.skip("mounting a small file system needs root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)
