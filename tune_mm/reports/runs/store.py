"""The tracking store as reports read it: runs as `StoredRun`s, their metrics by epoch, their
artifacts.

Reading creates and changes nothing. MLflow itself creates a missing database, fills an empty one
with tables and migrates one of an older version when it is opened; so all three are looked for, and
refused, before it is asked.
"""

from __future__ import annotations

import gc
import math
import os
import shutil
import sys
import tempfile
import weakref
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from tune_mm.track import quiet  # first: it sets defaults that mlflow reads while it is imported

# isort: split
import mlflow
import sqlalchemy
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from mlflow.entities import Run
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from sqlalchemy.exc import SQLAlchemyError

from tune_mm.errors import UserError
from tune_mm.reports.runs.stored_run import Curve, StoredRun
from tune_mm.track.mlflow_internals import MIGRATIONS
from tune_mm.track.sink import PARENT, SEARCH
from tune_mm.track.store import FAILURES, reason, redacted

PAGE = 1000  # runs per call; servers take up to 50 000, but answer in time with fewer
STAGES = frozenset({"search", "baseline", "final", "train"})
STATUS = {
    "FINISHED": "completed",
    "FAILED": "failed",
    "KILLED": "stopped",
}  # where a run lacks the tag
SERVERS = ("http://", "https://", "databricks")
MAKE_RUNS = "`python -m tune_mm.search --space NAME` makes runs"
ELSEWHERE = "--tracking-uri or MLFLOW_TRACKING_URI names another store"


class Reader:
    """A store that is there and has runs of this project; `Reader.open` makes one.

    Histories are kept once read: a reader is for one report, not for a server. All methods raise
    UserError when the store fails. notes: runs that were left out of `records`, and why.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._client = MlflowClient(tracking_uri=uri)
        self._histories: dict[tuple[str, str], Curve] = {}
        self._scratch: Path | None = None
        self.notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, uri: str | None, root: Path) -> Reader:
        """The store at `uri`, else at MLFLOW_TRACKING_URI, else `<root>/mlruns/mlflow.db`; never
        creates one.

        Raises UserError for a store that is missing, empty, without runs of this project, of
        another version of MLflow, or that cannot be read.
        """
        quiet.loggers()
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
        default = f"sqlite:///{root.resolve() / 'mlruns' / 'mlflow.db'}"
        chosen = uri or os.environ.get("MLFLOW_TRACKING_URI") or default
        try:
            if "://" in chosen and not chosen.startswith((*SERVERS, "file:")):
                _check_database(chosen)
            reader = cls(chosen)
            found = reader._experiments(None)
            ours = found and reader._client.search_runs(
                list(found), "tags.stage LIKE '%'", max_results=1
            )
        except FAILURES as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"tracking store {redacted(chosen)} cannot be read: {reason(error)}"
            ) from error
        if not ours:
            raise UserError(
                f"tracking store {redacted(chosen)} has no runs of tune_mm: {MAKE_RUNS}; {ELSEWHERE}"
            )
        return reader

    @property
    def shown(self) -> str:
        """The URI as it may be printed: without a password."""
        return redacted(self._uri)

    def records(self, spaces: Collection[str] | None = None) -> list[StoredRun]:
        """All runs of this project, or those of some experiments (unknown names have none); oldest
        first.

        Runs of others, and runs that say neither stage nor a whole number as their seed, are left
        out (`notes`).
        """
        found = []
        unreadable = 0
        with self._reading(), _no_collection():
            experiments = self._experiments(spaces)
            for run in self._runs(list(experiments)):
                if "stage" not in run.data.tags:
                    continue
                record = _record(run, experiments[run.info.experiment_id])
                if record is None:
                    unreadable += 1
                else:
                    found.append(record)
        if unreadable == 1:
            runs = "1 run was"
        else:
            runs = f"{unreadable} runs were"
        if unreadable:
            self.notes = (f"{runs} left out: of an unknown stage or seed",)
        else:
            self.notes = ()
        return sorted(found, key=lambda r: (r.started, r.id))

    def curve(self, record: StoredRun, metric: str) -> Curve:
        """A metric by step, that is by epoch from 1; of a step that was logged twice the last
        value. NaN stays NaN.

        Empty when the run has no such metric.
        """
        if metric not in record.metrics:
            return ()
        key = record.id, metric
        if key not in self._histories:
            with self._reading():
                history = self._client.get_metric_history(*key)
            last = {m.step: m for m in sorted(history, key=lambda m: m.timestamp)}
            self._histories[key] = tuple((step, _number(last[step].value)) for step in sorted(last))
        return self._histories[key]

    def curves(self, record: StoredRun, metrics: Iterable[str]) -> dict[str, Curve]:
        """The curves of those of `metrics` that the run has."""
        found = {}
        for metric in metrics:
            found[metric] = self.curve(record, metric)
        return {metric: curve for metric, curve in found.items() if curve}

    def artifact(self, run: StoredRun | str, path: str) -> Path | None:
        """A copy of a run's artifact (`run`: a record or a run's id); None where there is none that
        can be had.

        The copy lives as long as this reader.
        """
        run_id = run if isinstance(run, str) else run.id
        folder = tempfile.mkdtemp(dir=self._copies())
        try:
            found = Path(self._client.download_artifacts(run_id, path, folder))
        except (
            FAILURES
        ):  # a missing file, but also a bucket out of reach: a report goes on without it
            return None
        if found.exists():
            return found
        return None

    def attach(self, run_id: str, file: Path, folder: str | None = None) -> None:
        """Add a file to a run's artifacts, below `folder`; one of that name is replaced. Raises
        UserError.
        """
        try:
            self._client.log_artifact(run_id, str(file), folder)
        except FAILURES as error:
            raise UserError(
                f"{file.name} cannot be attached to run {run_id} in {self.shown}: {reason(error)}"
            ) from error

    def _copies(self) -> Path:
        """The folder of artifacts that were read."""
        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="tune_mm-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return self._scratch

    def _experiments(self, spaces: Collection[str] | None) -> dict[str, str]:
        """Names of experiments by id."""
        names: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self._client.search_experiments(max_results=PAGE, page_token=token)
            names |= {e.experiment_id: e.name for e in page if spaces is None or e.name in spaces}
            token = page.token
            if not token:
                return names

    def _runs(self, experiments: list[str]) -> Iterator[Run]:
        token: str | None = None
        while experiments:
            # Oldest first: runs that begin in the meantime then come last, and shift no page.
            order = ["attributes.start_time ASC"]
            page = self._client.search_runs(
                experiments, max_results=PAGE, order_by=order, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A failure of the store as a UserError."""
        try:
            yield
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise UserError(
                f"tracking store {self.shown} cannot be read: {reason(error)}"
            ) from error


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection: MLflow makes an object per tag, parameter and metric, and the
    collector walks them all again and again, for 60 % of the time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _record(run: Run, space: str) -> StoredRun | None:
    """A run as a record; None for a stage or a seed that it does not state so that it can be
    understood.
    """
    tags = run.data.tags
    params = run.data.params
    info = run.info
    stage = tags["stage"]
    seed = tags.get("seed", params.get("seed", "0"))
    if stage not in STAGES or not seed.strip().removeprefix("-").isdecimal():
        return None
    return StoredRun(
        id=info.run_id,
        name=info.run_name or "",
        space=space,
        search="" if stage == "train" else tags.get(SEARCH, tags.get("search", "")),
        parent=tags.get(PARENT),
        stage=stage,
        status=tags.get("status", STATUS.get(info.status, "running")),
        started=datetime.fromtimestamp((info.start_time or 0) / 1000, UTC),
        tags=dict(tags),
        params=dict(params),
        metrics={k: _number(v) for k, v in run.data.metrics.items()},
    )


def _number(value: float) -> float:
    """A metric's value; databases keep infinities as the largest doubles."""
    if abs(value) >= sys.float_info.max:
        return math.copysign(math.inf, value)
    return float(value)


def _check_database(uri: str) -> None:
    """Raise UserError unless there is a database of this version of MLflow at `uri`;
    SQLAlchemyError, OSError.
    """
    url = sqlalchemy.engine.make_url(uri)
    if url.get_backend_name() == "sqlite":
        file = Path(url.database or "")
        if not file.exists():
            raise UserError(
                f"tracking store {redacted(uri)} does not exist: {MAKE_RUNS}; {ELSEWHERE}"
            )
    engine = sqlalchemy.create_engine(url)
    try:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
        if not {"runs", "experiments", "alembic_version"} <= tables:
            if tables:
                what = "holds other tables than MLflow's"
            else:
                what = "is empty"
            raise UserError(f"tracking store {redacted(uri)} {what}: {MAKE_RUNS}; {ELSEWHERE}")
        with engine.connect() as connection:
            theirs = connection.execute(
                sqlalchemy.text("SELECT version_num FROM alembic_version")
            ).scalar()
    finally:
        engine.dispose()
    _check_version(uri, str(theirs))


def _check_version(uri: str, theirs: str) -> None:
    """Raise UserError when the tables are at another revision than those of the installed MLflow."""
    script = ScriptDirectory(str(MIGRATIONS))
    if theirs == script.get_current_head():
        return
    try:
        script.get_revision(theirs)
    except CommandError:
        way = "install that version, or a later one"
        raise UserError(
            f"tracking store {redacted(uri)} is of a later MLflow than {mlflow.__version__}: {way}"
        ) from None
    way = f"make a copy, then `mlflow db upgrade {redacted(uri)}`"
    raise UserError(
        f"tracking store {redacted(uri)} is of an earlier MLflow than {mlflow.__version__}: {way}"
    )
