"""MLflow's limits: names, lengths and batch sizes. What exceeds one is shortened here, visibly,
never refused.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, TypeVar

from mlflow.entities import Metric, Param, RunTag

NAME = 250  # characters of a param's, metric's or tag's name
PARAM = 6000  # characters of a param's value
TAG = 5000  # characters of a tag's value (8000 since MLflow 2.x; older servers stop at 5000)
# One log_batch call takes 1000 records, 100 of them params, 100 tags, and 1 MB of JSON. Half the
# params and tags keep even the longest values below the last of these.
METRICS_PER_CALL = 800
PARAMS_PER_CALL = 50
TAGS_PER_CALL = 50
MARK = "..."

T = TypeVar("T")
Batch = tuple[Sequence[Metric], Sequence[Param], Sequence[RunTag]]


def name(raw: str) -> str:
    """`raw` with characters that MLflow refuses replaced by `_`; a path-like name is normalised
    ("a//b" -> "a/b").
    """
    clean = posixpath.normpath(re.sub(r"[^/\w.\- ]", "_", raw)).lstrip("/")
    if clean in {"", "."} or clean.startswith(".."):
        return "_"
    return clean[:NAME].rstrip("/")


def identifier(raw: str) -> str:
    """`raw` as a tag value that needs no quoting in a search filter."""
    return re.sub(r"[^\w.\-]", "_", raw)[:NAME]


def text(value: Any, limit: int) -> str:
    """A param or tag value as text; containers as JSON; what is longer than `limit` ends in "..."."""
    if isinstance(value, (dict, list, tuple)):
        raw = json.dumps(value, default=str)
    else:
        raw = str(value)
    if len(raw) <= limit:
        return raw
    return raw[: limit - len(MARK)] + MARK


def params(values: Mapping[str, Any]) -> dict[str, str]:
    """Params with MLflow's names and lengths."""
    return {name(k): text(v, PARAM) for k, v in values.items()}


def tags(values: Mapping[str, Any]) -> dict[str, str]:
    """Tags with MLflow's names and lengths; a tag that is None is left out."""
    found = {}
    for k, v in values.items():
        if v is not None:
            found[name(k)] = text(v, TAG)
    return found


def metrics(values: Mapping[str, Any]) -> dict[str, float]:
    """Metrics with MLflow's names. NaN stays; an infinity stays too, and MLflow keeps it as the
    largest double.
    """
    return {name(k): float(v) for k, v in values.items()}


def batches(
    values: Sequence[Metric], some_params: Mapping[str, str], some_tags: Mapping[str, str]
) -> Iterator[Batch]:
    """As few log_batch calls as the limits allow, each a (metrics, params, tags)."""
    yield from zip_longest(
        _whole_steps(values),
        _chunks([Param(k, v) for k, v in some_params.items()], PARAMS_PER_CALL),
        _chunks([RunTag(k, v) for k, v in some_tags.items()], TAGS_PER_CALL),
        fillvalue=(),
    )


def _whole_steps(values: Sequence[Metric]) -> Iterator[Sequence[Metric]]:
    """Chunks that end where a step ends: a kill between two calls then leaves no step half written."""
    start = 0
    while start < len(values):
        end = start + METRICS_PER_CALL
        while start < end < len(values) and _moment(values[end]) == _moment(values[end - 1]):
            end -= 1
        if end <= start:
            # One step that is larger than a call.
            end = start + METRICS_PER_CALL
        yield values[start:end]
        start = end


def _moment(metric: Metric) -> tuple[int, int]:
    return metric.timestamp, metric.step


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))
