"""What tests of the writer share: stores that go away for real, and what a store has at the end."""

import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow.artifacts import download_artifacts
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

from tune_mm.track import Store

NEVER = 3600.0  # an interval that does not pass: only `flush` and `close` write


def break_store(store: Store, tmp_path: Path) -> None:
    """The database goes away, and something else is in its place."""
    disconnect(
        store
    )  # mlflow keeps its engine: the pooled connections would go on with the moved file
    (tmp_path / "mlruns" / "mlflow.db").rename(tmp_path / "away.db")
    (tmp_path / "mlruns" / "mlflow.db").mkdir()


def mend_store(store: Store, tmp_path: Path) -> None:
    """The database is back."""
    (tmp_path / "mlruns" / "mlflow.db").rmdir()
    (tmp_path / "away.db").rename(tmp_path / "mlruns" / "mlflow.db")
    disconnect(store)


def disconnect(store: Store) -> None:
    """Close the connections that mlflow keeps to the database."""
    engine = SqlAlchemyStore._engine_map.get(store.uri)
    if engine is not None:
        engine.dispose()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the writer said."""
    return [
        r.getMessage()
        for r in caplog.records
        if r.levelno >= logging.WARNING and r.name == "tune_mm.track"
    ]


def content(store: Store, search: str, experiment: str = "space") -> dict[str, Any]:
    """What the store has of a search, by key, without ids and times. A key of two runs fails."""
    client = store.client()
    runs = client.search_runs([store.experiment(experiment)], f"tags.`tune_mm.search` = '{search}'")
    keys = {run.info.run_id: run.data.tags["tune_mm.key"] for run in runs}
    assert len(set(keys.values())) == len(keys)
    found = {}
    for run in runs:
        tags = {
            k: v
            for k, v in run.data.tags.items()
            if not k.startswith(("mlflow.", "tune_mm.")) and k != "search"
        }
        parent = run.data.tags.get("mlflow.parentRunId")
        history = {
            name: sorted(
                (m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)
            )
            for name in run.data.metrics
        }
        paths = [file.path for file in client.list_artifacts(run.info.run_id)]
        files = {path: _text(store, f"{run.info.artifact_uri}/{path}") for path in paths}
        found[keys[run.info.run_id]] = {
            "name": run.info.run_name,
            "status": run.info.status,
            "parent": None if parent is None else keys[parent],
            "params": run.data.params,
            "tags": tags,
            "metrics": history,
            "files": files,
        }
    return found


def _text(store: Store, uri: str) -> str:
    return Path(download_artifacts(artifact_uri=uri, tracking_uri=store.uri)).read_text()
