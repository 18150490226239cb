"""Where runs are kept: an MLflow tracking store that exists and answers once it is opened.

Without a URI that is `<root>/mlruns/mlflow.db` (sqlite) with artifacts in `<root>/mlruns/artifacts/<experiment>`.
MLflow's own defaults are not used: they depend on the working directory, and on whether a `mlruns/<digits>/meta.yaml`
lies there. Nothing global is set: clients get the URI.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from tune_mm.config import UserError
from tune_mm.track import _quiet

FAILURES = (MlflowException, SQLAlchemyError, OSError, ValueError, ImportError)  # ImportError: no driver for a database


@dataclass(frozen=True)
class Store:
    """An opened store. artifacts: folder of the artifacts of new experiments; None: the server decides."""

    uri: str
    artifacts: Path | None

    @classmethod
    def open(cls, uri: str | None, root: Path) -> Store:
        """The store at `uri`, else at MLFLOW_TRACKING_URI, else below `root`; creates it first if it is a missing file.

        Safe when several processes open the same missing store together. Raises UserError when it cannot be used.
        """
        _quiet.loggers()
        folder = root.resolve() / "mlruns"
        chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{folder / 'mlflow.db'}"
        file = _sqlite_file(chosen)
        try:
            if file is not None:
                chosen = f"sqlite:///{file}"
                _create(file)
            if "://" in chosen and not re.match(r"https?:|file:|databricks", chosen):
                _connect(chosen)
            store = cls(chosen, _artifacts(chosen, file, folder))
            store.client().search_experiments(max_results=1)
        except FAILURES as error:
            raise UserError(f"tracking store {redacted(chosen)} cannot be used: {reason(error)}") from error
        return store

    @property
    def shown(self) -> str:
        """The URI as it may be printed: without a password."""
        return redacted(self.uri)

    def client(self) -> MlflowClient:
        """A client of this store (cheap)."""
        return MlflowClient(tracking_uri=self.uri)

    def experiment(self, name: str) -> str:
        """The id of experiment `name`, created if it is not there. Raises UserError when it cannot be had."""
        client = self.client()
        location = None if self.artifacts is None else (self.artifacts / re.sub(r"[^-.\w]", "_", name)).as_uri()
        try:
            found = client.get_experiment_by_name(name)
            if found is None:
                # Another process may create it between the two calls.
                with contextlib.suppress(MlflowException):
                    return str(client.create_experiment(name, artifact_location=location))
                found = client.get_experiment_by_name(name)
        except FAILURES as error:
            raise UserError(f"experiment '{name}' cannot be opened in {redacted(self.uri)}: {reason(error)}") from error
        if found is None:
            raise UserError(f"experiment '{name}' cannot be created in {redacted(self.uri)}")
        if found.lifecycle_stage != "active":
            way = f"`mlflow experiments restore -x {found.experiment_id}`, or take another name"
            raise UserError(f"experiment '{name}' is deleted in {redacted(self.uri)}: {way}")
        return str(found.experiment_id)


def redacted(uri: str) -> str:
    """`uri` without a password."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1:***@", uri)


def reason(error: BaseException) -> str:
    """The first line of an error, without the SQL that SQLAlchemy adds."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite URI; None for other stores and for a database in memory."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)", uri)
    return None if match is None or match[1] == ":memory:" else Path(match[1]).resolve()


def _artifacts(uri: str, file: Path | None, folder: Path) -> Path | None:
    """Beside a sqlite file; below `folder` for another database; None for a server, which has a place of its own."""
    if file is not None:
        return file.parent / "artifacts"
    return None if re.match(r"https?:|databricks|file:|[^:]*$", uri) else folder / "artifacts"


def _connect(uri: str) -> None:
    """Fail at once where the database does not answer: MLflow itself would try again for the better part of an hour."""
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _create(file: Path) -> None:
    """Create the database `file` with MLflow's tables, if it is missing; raises OSError, MlflowException.

    MLflow creates tables in place, and processes that meet in an empty database break one another; so does a kill in
    the middle. Here the database is made under a name of its own and linked into place once complete: the first wins.
    """
    if file.exists():
        for path in (file, file.parent):  # sqlite keeps its journal beside the file
            if not os.access(path, os.W_OK):
                raise PermissionError(f"{path} is not writable")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=file.parent) as scratch:
        new = Path(scratch) / file.name
        build: Any = SqlAlchemyStore  # which has no type hints
        build(f"sqlite:///{new}", str(file.parent / "artifacts")).engine.dispose()
        try:
            os.link(new, file)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links: rename, which replaces a database made in this instant
            if not file.exists():
                os.replace(new, file)
