"""A record of the queue: one line of JSON with its CRC-32, which says whose it is and what is to be
written.

    {"crc":"5d1f0a3c","record":{"run":{"search":"first","key":"search/0",...},"points":[[3,1767225600000,{...}]]}}

Runs are named by search and key: an id is the store's, and a store that was away has given none.
NaN and infinities are written as Python's json does (NaN, Infinity).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from mlflow.entities import Metric

from tune_mm.track.run import Artifact, Buffer, MetricPoint, RunHandle

_HEAD = b'{"crc":"'
_MIDDLE = b'","record":'
_END = b"}\n"
_START = len(_HEAD) + 8 + len(_MIDDLE)  # a CRC-32 has 8 hexadecimal digits
Runs = dict[tuple[str, str], RunHandle]


class Damaged(ValueError):
    """A line that is not what was written."""


def encode(run: RunHandle, buffer: Buffer, folder: Path | None) -> bytes:
    """The line of what `buffer` holds for `run`. folder: the queue's, where the files of its
    artifacts are.
    """
    parent = run.parent
    content: dict[str, Any] = {
        "run": {
            "search": run.search,
            "key": run.key,
            "name": run.name,
            "parent": None if parent is None else [parent.search, parent.key, parent.name],
        },
        "start": buffer.start,
        "params": buffer.params,
        "tags": buffer.tags,
        "points": [
            [p.step, p.timestamp, dict(p.values)]
            for p in (*_points(buffer.metrics), *buffer.points)
        ],
        "artifacts": [_artifact(a, folder) for a in buffer.artifacts],
        "status": buffer.status,
        "ended": buffer.ended,
    }
    text = json.dumps(
        {k: v for k, v in content.items() if v not in (None, {}, [])}, separators=(",", ":")
    ).encode()
    return b"%s%08x%s%s%s" % (_HEAD, zlib.crc32(text), _MIDDLE, text, _END)


def decode(
    line: bytes, runs: Runs, folder: Path, *, anywhere: bool = False
) -> tuple[RunHandle, Buffer]:
    """What a line says; its run is that of `runs`, to which one that is new is added. Raises
    Damaged.

    anywhere: files may lie outside `folder` (lines that this process has kept in memory).
    """
    text = line[_START : -len(_END)]
    if not line.endswith(_END) or line[:_START] != b"%s%08x%s" % (_HEAD, zlib.crc32(text), _MIDDLE):
        raise Damaged("the line is not whole")
    try:
        content = json.loads(text)
        buffer = Buffer(
            start=content.get("start"),
            params=content.get("params", {}),
            tags=content.get("tags", {}),
            points=[
                MetricPoint(values, step, timestamp)
                for step, timestamp, values in content.get("points", ())
            ],
            artifacts=[_found(a, folder, anywhere) for a in content.get("artifacts", ())],
            status=content.get("status"),
            ended=content.get("ended"),
        )
        return _run(content["run"], runs), buffer
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(str(error)) from None


def _run(told: dict[str, Any], runs: Runs) -> RunHandle:
    parent = told["parent"]
    if parent is not None:
        search, key, name = parent
        parent = runs.setdefault((search, key), RunHandle(name, search, key))
    new = RunHandle(told["name"], told["search"], told["key"], parent)
    return runs.setdefault((new.search, new.key), new)


def _artifact(artifact: Artifact, folder: Path | None) -> dict[str, Any]:
    if artifact.file is None:
        return {"name": artifact.name, "text": artifact.text}
    inside = folder is not None and artifact.file.is_relative_to(folder)
    if inside and folder is not None:
        path = artifact.file.relative_to(folder).as_posix()
    else:
        path = str(artifact.file)
    return {"name": artifact.name, "file": path, "size": artifact.file.stat().st_size}


def _found(told: dict[str, Any], folder: Path, anywhere: bool) -> Artifact:
    """The artifact, with a file that is there as it was copied. Raises Damaged."""
    if "file" not in told:
        return Artifact(told["name"], text=told["text"])
    path = PurePosixPath(told["file"])
    if not anywhere and (path.is_absolute() or ".." in path.parts):
        raise Damaged(f"artifact '{told['name']}' lies outside the queue: {path}")
    file = folder / path
    size = file.stat().st_size if file.is_file() else None
    if size != told["size"]:
        if size is None:
            what = "is missing"
        else:
            what = f"has {size} bytes instead of {told['size']}"
        raise Damaged(f"artifact '{told['name']}': its copy {file} {what}")
    return Artifact(told["name"], file=file)


def _points(metrics: Iterable[Metric]) -> list[MetricPoint]:
    """Points again of metrics that passed the check of their steps."""
    moments = groupby(metrics, key=lambda m: (m.step, m.timestamp))
    return [
        MetricPoint({m.key: m.value for m in group}, step, timestamp)
        for (step, timestamp), group in moments
    ]
