"""Where runs are kept: an MLflow tracking store that exists and answers once it is opened.

Without a URI that is `<root>/mlruns/mlflow.db` (sqlite) with artifacts in
`<root>/mlruns/artifacts/<experiment>`. MLflow's own defaults are not used: they depend on the
working directory, and on whether a `mlruns/<digits>/meta.yaml` lies there. Nothing global is set:
clients get the URI.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from tune_mm.errors import UserError
from tune_mm.track import limits, quiet
from tune_mm.track.availability import ask, away, present, sqlite_file
from tune_mm.track.mlflow_internals import create_database

FAILURES = (
    MlflowException,
    SQLAlchemyError,
    OSError,
    ValueError,
    ImportError,
)  # ImportError: no driver for a database


HIDDEN = ":***@"  # in place of a password
AUTOFLUSH = "(raised as a result of Query-invoked autoflush"  # SQLAlchemy's first line, of interest to programmers


class Unreachable(UserError):
    """The store is away, and may be back later."""


@dataclass(frozen=True)
class Store:
    """An opened store."""

    uri: str
    # Folder of the artifacts of new experiments; None: the server decides.
    artifacts: Path | None
    # Folder of the queues of records that it has not got yet; None: beside a sqlite file, else
    # below the working directory.
    queues: Path | None = None

    @classmethod
    def at(cls, uri: str | None, root: Path) -> Store:
        """The store at `uri`, else below `root`, of which nothing is known yet."""
        folder = root.resolve() / "mlruns"
        chosen = uri or f"sqlite:///{folder / 'mlflow.db'}"
        file = sqlite_file(chosen)
        chosen = chosen if file is None else f"sqlite:///{file}"
        return cls(chosen, _artifacts(chosen, file, folder), folder / "queue")

    @classmethod
    def open(cls, uri: str | None, root: Path, *, required: bool = True) -> Store:
        """The store at `uri`, else at MLFLOW_TRACKING_URI, else below `root`; creates it first if
        it is a missing file.

        Safe when several processes open the same missing store together. Raises UserError when it
        cannot be used: Unreachable when it is only away (no answer, a locked database, a full
        disk), which is let pass unless `required`.
        """
        quiet.loggers()
        store = cls.at(uri or os.environ.get("MLFLOW_TRACKING_URI"), root)
        try:
            store.prepare()
            store.client().search_experiments(max_results=1)
        except FAILURES as error:
            text = f"tracking store {store.shown} cannot be used: {reason(error)}"
            if not away(error):
                raise UserError(text) from error
            if required:
                raise Unreachable(text) from error
        return store

    def prepare(self, *, create: bool = True) -> None:
        """Create a missing sqlite file, unless told otherwise, and see that the store answers;
        quick where it does not.

        Raises one of FAILURES.
        """
        file = sqlite_file(self.uri)
        if file is not None and create:
            _create(file)
        present(self.uri)
        if "://" in self.uri and not re.match(r"https?:|file:|databricks", self.uri):
            _connect(self.uri)
        ask(self.uri)

    def queue(self, search: str) -> Path:
        """Where the records of a search are queued by default:
        <root>/mlruns/queue/<store>/<search>.
        """
        file = sqlite_file(self.uri)
        if file is not None:
            plain = file.stem
        else:
            plain = re.sub(r"^\w+://|[^/]*@", "", redacted(self.uri))
        digest = hashlib.sha256(redacted(self.uri).encode()).hexdigest()[:8]
        queues = (
            self.queues or (file.parent if file is not None else Path.cwd() / "mlruns") / "queue"
        )
        return (
            queues
            / f"{limits.identifier(plain).strip('_')[-60:]}-{digest}"
            / limits.identifier(search)[:100]
        )

    @property
    def shown(self) -> str:
        """The URI as it may be printed: without a password."""
        return redacted(self.uri)

    def client(self) -> MlflowClient:
        """A client of this store (cheap)."""
        return MlflowClient(tracking_uri=self.uri)

    def experiment(self, name: str) -> str:
        """The id of experiment `name`, created if it is not there.

        Raises UserError when it cannot be had: Unreachable when the store is away.
        """
        client = self.client()
        if self.artifacts is None:
            location = None
        else:
            location = (self.artifacts / re.sub(r"[^-.\w]", "_", name)).as_uri()
        try:
            found = client.get_experiment_by_name(name)
            if found is None:
                # Another process may create it between the two calls.
                with contextlib.suppress(MlflowException):
                    return str(client.create_experiment(name, artifact_location=location))
                found = client.get_experiment_by_name(name)
        except FAILURES as error:
            kind = Unreachable if away(error) else UserError
            raise kind(
                f"experiment '{name}' cannot be opened in {redacted(self.uri)}: {reason(error)}"
            ) from error
        if found is None:
            raise UserError(f"experiment '{name}' cannot be created in {redacted(self.uri)}")
        if found.lifecycle_stage != "active":
            way = f"`mlflow experiments restore -x {found.experiment_id}`, or take another name"
            raise UserError(f"experiment '{name}' is deleted in {redacted(self.uri)}: {way}")
        return str(found.experiment_id)


def redacted(uri: str) -> str:
    """`uri` without a password."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", rf"\1{HIDDEN}", uri)


def reason(error: BaseException) -> str:
    """The first line of an error that says something, without the SQL that SQLAlchemy adds."""
    lines = []
    for line in str(error).strip().splitlines():
        if not line.startswith(AUTOFLUSH):
            lines.append(line)
    if lines:
        return lines[0]
    return type(error).__name__


def _artifacts(uri: str, file: Path | None, folder: Path) -> Path | None:
    """Beside a sqlite file; below `folder` for another database; None for a server, which has a
    place of its own.
    """
    if file is not None:
        return file.parent / "artifacts"
    if re.match(r"https?:|databricks|file:|[^:]*$", uri):
        return None
    return folder / "artifacts"


def _connect(uri: str) -> None:
    """Fail at once where the database does not answer: MLflow itself would try again for the better
    part of an hour.
    """
    engine = sqlalchemy.create_engine(uri)
    try:
        sqlalchemy.inspect(engine).get_table_names()
    finally:
        engine.dispose()


def _create(file: Path) -> None:
    """Create the database `file` with MLflow's tables, if it is missing; raises OSError,
    MlflowException.

    MLflow creates tables in place, and processes that meet in an empty database break one another;
    so does a kill in the middle. Here the database is made under a name of its own and linked into
    place once complete: the first wins.
    """
    if file.exists():
        if not file.is_file():
            raise IsADirectoryError(f"{file} is no file")
        for path in (file, file.parent):  # sqlite keeps its journal beside the file
            if not os.access(path, os.W_OK):
                raise PermissionError(f"{path} is not writable")
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=file.parent) as scratch:
        new = Path(scratch) / file.name
        create_database(f"sqlite:///{new}", file.parent / "artifacts")
        try:
            os.link(new, file)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links: rename, which replaces a database made in this instant
            if not file.exists():
                os.replace(new, file)
