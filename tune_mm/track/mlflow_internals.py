"""What this project uses of MLflow that MLflow does not document, each with the reason.

Held by tests/track/test_mlflow_internals.py, which an upgrade of MLflow breaks first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

# Alembic's scripts of the store's tables. Why: a store of another version is told from a damaged
# one, and named, before anything is read.
MIGRATIONS = Path(mlflow.__file__).parent / "store" / "db_migrations"


def create_database(uri: str, artifacts: Path) -> None:
    """Make the tables of a new store and let go of the database.

    Why: MLflow makes them at the first call, and processes that make them at once break each other.
    """
    untyped: Any = SqlAlchemyStore
    untyped(uri, str(artifacts)).engine.dispose()
