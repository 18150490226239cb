"""Writes what a buffer holds into the store, one run at a time; every call may be repeated after a failure.

A call that succeeded leaves the buffer at once, so a failure keeps exactly what is not in the store yet. Nothing here
knows of threads or time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import PurePosixPath

from mlflow.entities import Metric
from mlflow.entities import Run as MlflowRun
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from tune_mm.track import limits
from tune_mm.track.run import MLFLOW_STATUS, Artifact, Buffer, Point, RunHandle
from tune_mm.track.store import reason

log = logging.getLogger("tune_mm.track")

SEARCH, KEY, PARENT, REASON = "tune_mm.search", "tune_mm.key", "mlflow.parentRunId", "reason"
# What the store says of a record that it will refuse however often it is sent (a run or experiment deleted by hand).
PERMANENT = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "BAD_REQUEST", "MALFORMED_REQUEST"}


def permanent(error: Exception) -> bool:
    """Whether trying again is of no use."""
    return isinstance(error, MlflowException) and error.error_code in PERMANENT


class ArtifactError(Exception):
    """An artifact could not be written; everything else of its run was, and other runs are not held up."""


class Sink:
    """The calls to one experiment of one store. What it refuses for good is counted; the rest is raised."""

    def __init__(self, client: MlflowClient, experiment_id: str) -> None:
        self.client, self.experiment_id = client, experiment_id
        self.refused = 0  # records that the store will never take
        self._found: dict[str, dict[str, MlflowRun]] = {}  # per search: the runs it had when this process came to it

    def write(self, run: RunHandle, buffer: Buffer) -> None:
        """Write `buffer` and empty it."""
        if run.refused:
            self._drop(buffer)
            return
        if buffer.start or run.run_id is None:
            self._guard(run, buffer, self._start)
        if run.run_id is not None:
            self._guard(run, buffer, self._records)
            failure = self._artifacts(run.run_id, buffer)
            self._guard(run, buffer, self._end)
            if failure is not None:
                raise ArtifactError(f"artifact '{buffer.artifacts[0].name}': {reason(failure)}") from failure

    def _guard(self, run: RunHandle, buffer: Buffer, action: Callable[[RunHandle, Buffer], None]) -> None:
        """`action`, with all that is left of the buffer given up when the store refuses it for good."""
        try:
            action(run, buffer)
        except MlflowException as error:
            if not permanent(error):
                raise
            run.refused = True
            log.warning("tracking: run '%s' is no longer written, the store refuses it: %s", run.name, reason(error))
            self._drop(buffer)

    def _drop(self, buffer: Buffer) -> None:
        self.refused += len(buffer)
        buffer.clear()

    # ---- start

    def _start(self, run: RunHandle, buffer: Buffer) -> None:
        """Create the run, or reopen the one that the store has for this search and key."""
        if run.run_id is None:
            found = self._runs_of(run.search).get(run.key) if run.key else None
            if found is None:
                self._create(run, buffer)
                return
            run.known_params = dict(found.data.params)
            run.steps = dict.fromkeys(found.data.metrics, None)
            if REASON in found.data.tags:
                self.client.delete_tag(found.info.run_id, REASON)
            run.run_id = found.info.run_id
        self.client.update_run(run.run_id, status="RUNNING")
        buffer.start = False

    def _create(self, run: RunHandle, buffer: Buffer) -> None:
        identity = {SEARCH: limits.identifier(run.search), **({KEY: run.key} if run.key else {})}
        parent = {PARENT: run.parent.run_id} if run.parent is not None and run.parent.run_id else {}
        tags = {**buffer.tags, **identity, **parent}
        try:
            created = self.client.create_run(self.experiment_id, tags=tags, run_name=run.name)
        except Exception:
            # The call may have arrived although its answer did not: look before creating it once more.
            self._found.pop(run.search, None)
            raise
        run.run_id = created.info.run_id
        buffer.tags.clear()
        buffer.start = False

    def _runs_of(self, search: str) -> dict[str, MlflowRun]:
        """The runs that the store has for a search, by key; asked for once (a run's first start)."""
        if search not in self._found:
            runs: dict[str, MlflowRun] = {}
            token = None
            while True:
                condition = f"tags.`{SEARCH}` = '{limits.identifier(search)}'"
                order = ["attributes.start_time ASC"]
                page = self.client.search_runs([self.experiment_id], condition, order_by=order, page_token=token)
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
                buffer.metrics += [Metric(k, v, point.timestamp, point.step) for k, v in point.values.items()]
            buffer.points.pop(0)
        self._split_changed(run, buffer)
        for metrics, params, tags in limits.batches(list(buffer.metrics), dict(buffer.params), dict(buffer.tags)):
            self.client.log_batch(run.run_id, metrics, params, tags)
            del buffer.metrics[: len(metrics)]
            for param in params:
                run.known_params[param.key] = buffer.params.pop(param.key)
            for tag in tags:
                del buffer.tags[tag.key]

    def _is_new(self, run: RunHandle, point: Point) -> bool:
        """Whether the store lacks this step. Asks a run that was resumed once per kind of record."""
        key = point.representative
        steps = run.steps.setdefault(key, set())
        if steps is None:
            steps = {m.step for m in self.client.get_metric_history(str(run.run_id), key)}
            run.steps[key] = steps
        if point.step in steps:
            return False
        steps.add(point.step)
        return True

    def _split_changed(self, run: RunHandle, buffer: Buffer) -> None:
        """MLflow's params never change: what a resumed or mutated run sets anew becomes a tag `changed.<param>`."""
        for key, value in list(buffer.params.items()):
            known = run.known_params.get(key)
            if known is None:
                continue
            del buffer.params[key]
            if known != value:
                buffer.tags[limits.name(f"changed.{key}")] = limits.text(value, limits.TAG)

    def _artifacts(self, run_id: str, buffer: Buffer) -> Exception | None:
        """Write the artifacts; the first failure ends it and is returned."""
        while buffer.artifacts:
            artifact = buffer.artifacts[0]
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
        artifact.file.unlink(missing_ok=True)

    def _end(self, run: RunHandle, buffer: Buffer) -> None:
        if buffer.status is not None:
            assert run.run_id is not None
            self.client.set_terminated(run.run_id, MLFLOW_STATUS[buffer.status])
            buffer.status = None
