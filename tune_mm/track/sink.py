"""Writes what a buffer holds into the store, one run at a time; every call may be repeated after a
failure.

A call that succeeded leaves the buffer at once, so a failure keeps exactly what is not in the store
yet. Nothing here knows of threads or time.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path, PurePosixPath

from mlflow.entities import Metric
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tune_mm.track import limits
from tune_mm.track.availability import is_server, permanent, present
from tune_mm.track.run import (
    MLFLOW_STATUS,
    REASON,
    Artifact,
    Buffer,
    MetricPoint,
    RunHandle,
    changed,
)
from tune_mm.track.store import Store, reason

SEARCH = "tune_mm.search"
KEY = "tune_mm.key"
PARENT = "mlflow.parentRunId"


class Refused(Exception):
    """The store does not take a run's records, however often they are sent."""


class ArtifactError(Exception):
    """An artifact could not be written; everything else of its run was, and other runs are not held
    up.
    """


class Sink:
    """The calls to one experiment of one store.

    known: the store has answered before, so that a sqlite file that is missing is not made anew.
    """

    def __init__(self, store: Store, experiment: str, *, known: bool = False) -> None:
        self.store = store
        self.experiment = experiment
        self.known = known
        self.experiment_id = ""  # until the store has answered
        self.calls = 0
        self.written: list[Path] = []  # files of artifacts that the store has
        self._found: dict[
            str, dict[str, MlflowRun]
        ] = {}  # per search: the runs it had when this process came to it

    @cached_property
    def client(self) -> MlflowClient:
        """A client; MLflow goes to the database as soon as there is one."""
        return self.store.client()

    def connect(self) -> None:
        """Find or create the experiment, once. Raises one of store.FAILURES: quickly when the store
        is away.
        """
        if self.known:
            present(self.store.uri)
        if not self.experiment_id:
            self.store.prepare(create=not self.known)
            self.experiment_id = self.store.experiment(self.experiment)
            self.known = True

    def write(self, run: RunHandle, buffer: Buffer, *, artifacts: bool = True) -> None:
        """Write `buffer` and empty it, but for artifacts where they are not to be written now.

        Raises Refused, ArtifactError, or what the store raises when it fails.
        """
        try:
            self._find(run)
            if buffer.start is not None:
                self._start(run, buffer)
            if run.run_id is None:
                raise Refused("the store has no such run, and the queue not its beginning")
            self._records(run, buffer)
            if artifacts:
                failure = self._artifacts(run.run_id, buffer)
            else:
                failure = None
            self._end(run, buffer)
        except MlflowException as error:
            if permanent(error):
                raise Refused(reason(error)) from error
            raise
        if failure is not None:
            raise ArtifactError(
                f"artifact '{buffer.artifacts[0].name}': {reason(failure)}"
            ) from failure

    # ---- start

    def _find(self, run: RunHandle) -> None:
        """Take the run that the store has for this search and key."""
        if run.run_id is not None:
            found = None
        else:
            found = self._runs_of(run.search).get(run.key)
        if found is not None:
            run.known_params = dict(found.data.params)
            run.steps = dict.fromkeys(found.data.metrics, None)
            run.reason = REASON in found.data.tags
            run.run_id = found.info.run_id

    def _start(self, run: RunHandle, buffer: Buffer) -> None:
        """Create the run, or reopen it."""
        self.calls += 1
        if run.run_id is None:
            run.attempted = True
            self._create(run, buffer)
        else:
            if run.reason:
                self._forget_reason(run)
            self.client.update_run(run.run_id, status="RUNNING")
        if run.attempted and is_server(self.store.uri):
            self._only(run, buffer.start)
        run.attempted = False
        buffer.start = None

    def _forget_reason(self, run: RunHandle) -> None:
        try:
            self.client.delete_tag(str(run.run_id), REASON)
        except MlflowException as error:
            if (
                error.error_code != "RESOURCE_DOES_NOT_EXIST"
            ):  # the call before may have arrived without its answer
                raise
        run.reason = False

    def _create(self, run: RunHandle, buffer: Buffer) -> None:
        if run.parent is not None:
            self._find(run.parent)
        identity = {SEARCH: limits.identifier(run.search), KEY: run.key}
        if run.parent is not None and run.parent.run_id:
            parent = {PARENT: run.parent.run_id}
        else:
            parent = {}
        tags = {**buffer.tags, **identity, **parent}
        try:
            created = self.client.create_run(
                self.experiment_id, start_time=buffer.start, tags=tags, run_name=run.name
            )
        except Exception:
            # The call may have arrived although its answer did not: look before creating it once
            # more.
            self._found.pop(run.search, None)
            raise
        run.run_id = created.info.run_id
        run.reason = REASON in tags
        buffer.tags.clear()

    def _only(self, run: RunHandle, start: int | None) -> None:
        """Delete what MLflow's HTTP client made beside the run when it sent the same call twice."""
        condition = f"tags.`{SEARCH}` = '{limits.identifier(run.search)}' and tags.`{KEY}` = {_quoted(run.key)}"
        for found in self.client.search_runs([self.experiment_id], condition):
            blank = (
                found.info.start_time == start and not found.data.metrics and not found.data.params
            )
            if found.info.run_id != run.run_id and blank:
                self.client.delete_run(found.info.run_id)

    def _runs_of(self, search: str) -> dict[str, MlflowRun]:
        """The runs that the store has for a search, by key; asked for once (a run's first start)."""
        if search not in self._found:
            runs: dict[str, MlflowRun] = {}
            token = None
            while True:
                condition = f"tags.`{SEARCH}` = '{limits.identifier(search)}'"
                order = ["attributes.start_time ASC"]
                page = self.client.search_runs(
                    [self.experiment_id], condition, order_by=order, page_token=token
                )
                for found in page:
                    runs.setdefault(found.data.tags.get(KEY, ""), found)
                token = page.token
                if not token:
                    break
            self._found[search] = runs
        return self._found[search]

    # ---- records

    def _records(self, run: RunHandle, buffer: Buffer) -> None:
        """Params, tags and metrics, in as few calls as the limits allow."""
        assert run.run_id is not None
        while buffer.points:
            point = buffer.points[0]
            if self._is_new(run, point):
                buffer.metrics += [
                    Metric(k, v, point.timestamp, point.step) for k, v in point.values.items()
                ]
            buffer.points.pop(0)
        self._split_changed(run, buffer)
        for metrics, params, tags in limits.batches(
            list(buffer.metrics), dict(buffer.params), dict(buffer.tags)
        ):
            self.calls += 1
            self.client.log_batch(run.run_id, metrics, params, tags)
            del buffer.metrics[: len(metrics)]
            for param in params:
                run.known_params[param.key] = buffer.params.pop(param.key)
            for tag in tags:
                del buffer.tags[tag.key]
                run.reason = run.reason or tag.key == REASON

    def _is_new(self, run: RunHandle, point: MetricPoint) -> bool:
        """Whether the store lacks this step. Asks a run that was resumed once per kind of record."""
        key = point.representative
        steps = run.steps.setdefault(key, set())
        if steps is None:
            steps = set()
            for m in self.client.get_metric_history(str(run.run_id), key):
                steps.add(m.step)
            run.steps[key] = steps
        if point.step in steps:
            return False
        steps.add(point.step)
        return True

    def _split_changed(self, run: RunHandle, buffer: Buffer) -> None:
        """MLflow's params never change: what a resumed or mutated run sets anew becomes a tag
        `changed.<param>`.
        """
        for key, value in list(buffer.params.items()):
            known = run.known_params.get(key)
            if known is None:
                continue
            del buffer.params[key]
            if known != value:
                buffer.tags.update(changed(key, value))

    def _artifacts(self, run_id: str, buffer: Buffer) -> Exception | None:
        """Write the artifacts; the first failure ends it and is returned."""
        while buffer.artifacts:
            artifact = buffer.artifacts[0]
            self.calls += 1
            try:
                self._artifact(run_id, artifact)
            except Exception as error:  # noqa: BLE001  artifact repositories (S3, a full disk) raise what they like
                return error
            buffer.artifacts.pop(0)
        return None

    def _artifact(self, run_id: str, artifact: Artifact) -> None:
        if artifact.file is None:
            self.client.log_text(run_id, artifact.text or "", artifact.name)
            return
        folder = str(PurePosixPath(artifact.name).parent)
        self.client.log_artifact(run_id, str(artifact.file), None if folder == "." else folder)
        self.written.append(artifact.file)

    def _end(self, run: RunHandle, buffer: Buffer) -> None:
        if buffer.status is not None:
            assert run.run_id is not None
            self.client.set_terminated(run.run_id, MLFLOW_STATUS[buffer.status], buffer.ended)
            buffer.status = buffer.ended = None


def _quoted(value: str) -> str:
    """A text in a search filter."""
    if "'" in value:
        return f'"{value}"'
    return f"'{value}'"
