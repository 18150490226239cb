"""The undocumented parts of MLflow that `mlflow_internals` uses are what it takes them for."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from alembic.script import ScriptDirectory

from tune_mm.track.mlflow_internals import MIGRATIONS, create_database


def test_a_new_database_is_at_the_head_of_the_migrations(tmp_path: Path) -> None:
    file = tmp_path / "mlflow.db"
    create_database(f"sqlite:///{file}", tmp_path / "artifacts")
    with closing(sqlite3.connect(file)) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        (version,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    assert {"runs", "experiments", "metrics", "params", "tags"} <= tables
    assert version == ScriptDirectory(str(MIGRATIONS)).get_current_head()
