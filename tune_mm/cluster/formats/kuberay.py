"""A RayJob of KubeRay (ray.io/v1), with what lies beside it in the file, as nodes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from tune_mm.cluster.formats.files import (
    ClusterFile,
    ClusterLine,
    NodeGroup,
    as_list,
    as_map,
    documented,
    is_count,
)
from tune_mm.config.yaml import Document, shown
from tune_mm.errors import ConfigError, nearest

CLUSTER = "spec.rayClusterSpec"


def build(path: Path, text: str, documents: tuple[Document, ...]) -> ClusterFile:
    """The nodes of the file's RayJob. Raises ConfigError where there is not exactly one."""
    jobs = []
    for d in documents:
        if d.data.get("kind") == "RayJob":
            jobs.append(d)
    if len(jobs) != 1:
        kinds = [str(d.data.get("kind")) for d in documents]
        hint = next((h for h in (nearest(k, ["RayJob"]) for k in kinds) if h), "")
        raise ConfigError(f"{shown(path)}: must hold one RayJob, got {', '.join(kinds)}{hint}")
    job = jobs[0]
    spec = as_map(job.data.get("spec"))
    cluster = as_map(spec.get("rayClusterSpec"))
    head = _node(
        job, documents, "head", as_map(cluster.get("headGroupSpec")), f"{CLUSTER}.headGroupSpec"
    )
    groups = as_list(cluster.get("workerGroupSpecs"))
    at = f"{CLUSTER}.workerGroupSpecs"
    workers = []
    for i, group in enumerate(groups):
        workers.append(
            _node(
                job,
                documents,
                f"workers '{as_map(group).get('groupName', i)}'",
                as_map(group),
                f"{at}.{i}",
            )
        )
    line = ClusterLine(str(spec.get("entrypoint", "")), job.line_of("spec.entrypoint") or 0)
    # The job's own document first: checks ask it for keys and lines.
    ordered = (job, *(d for d in documents if d is not job))
    return ClusterFile(
        path, "kuberay", text, ordered, head, tuple(workers), documented(text), "kuberay", line
    )


def _node(
    job: Document, documents: tuple[Document, ...], name: str, group: dict[str, Any], at: str
) -> NodeGroup:
    pod = as_map(as_map(group.get("template")).get("spec"))
    container = as_map(next(iter(as_list(pod.get("containers"))), {}))
    inside = f"{at}.template.spec.containers.0"

    def line(key: str) -> int:
        return job.line_of(key) or job.line_of(at) or 0

    def number(key: str) -> ClusterLine | None:
        value = group.get(key)
        if is_count(value):
            return ClusterLine(str(value), line(f"{at}.{key}"))
        return None

    env = {**_auth(job), **_env(container, inside, line)}
    if "image" in container:
        image = ClusterLine(str(container["image"]), line(f"{inside}.image"))
    else:
        image = None
    limits = as_map(as_map(container.get("resources")).get("limits"))
    gpus = ClusterLine(str(limits.get("nvidia.com/gpu", "0")), line(f"{inside}.resources"))
    shell = []
    for k in ("command", "args"):
        shell.append(
            ClusterLine(" ".join(map(str, as_list(container.get(k)))), line(f"{inside}.{k}"))
        )
    start = as_map(group.get("rayStartParams"))
    params = " ".join(f"--{k}={v}" for k, v in start.items())
    commands = (
        ClusterLine(f"ray start {params}".strip(), line(f"{at}.rayStartParams")),
        *(s for s in shell if s.text),
    )
    scaled = (
        as_map(as_map(job.data.get("spec")).get("rayClusterSpec")).get("enableInTreeAutoscaling")
        is True
    )
    least = number("minReplicas") if scaled else None
    return NodeGroup(
        name,
        line(at),
        commands,
        (),
        env,
        image,
        _mounts(documents, pod, container),
        gpus,
        least or number("replicas"),
        number("maxReplicas"),
    )


def _auth(job: Document) -> dict[str, ClusterLine]:
    """What KubeRay sets in each container for `authOptions`."""
    cluster = as_map(as_map(job.data.get("spec")).get("rayClusterSpec"))
    if "authOptions" not in cluster:
        return {}
    line = job.line_of(f"{CLUSTER}.authOptions") or 0
    mode = str(as_map(cluster["authOptions"]).get("mode", "token"))
    if mode == "token":
        token = {"RAY_AUTH_TOKEN": ClusterLine("$(secret)", line)}
    else:
        token = {}
    return {"RAY_AUTH_MODE": ClusterLine(mode, line), **token}


def _env(container: dict[str, Any], at: str, line: Any) -> dict[str, ClusterLine]:
    found: dict[str, ClusterLine] = {}
    for i, item in enumerate(as_list(container.get("env"))):
        entry = as_map(item)
        if "value" in entry:
            value = str(entry["value"])
        else:
            value = "$(secret)"
        found[str(entry.get("name"))] = ClusterLine(value, line(f"{at}.env.{i}"))
    return found


def _mounts(
    documents: tuple[Document, ...], pod: dict[str, Any], container: dict[str, Any]
) -> tuple[str, ...]:
    """Where the container sees a volume that pods of other nodes may write too (a claim from
    elsewhere is trusted).
    """
    alone = set()
    for d in documents:
        if exclusive(d):
            alone.add(str(as_map(d.data.get("metadata")).get("name")))
    shared = set()
    for item in as_list(pod.get("volumes")):
        volume = as_map(item)
        claim = as_map(volume.get("persistentVolumeClaim")).get("claimName")
        if "nfs" in volume or "csi" in volume or (claim is not None and str(claim) not in alone):
            shared.add(str(volume.get("name")))
    mounts = []
    for m in as_list(container.get("volumeMounts")):
        mounts.append(as_map(m))
    return tuple(str(m.get("mountPath")) for m in mounts if str(m.get("name")) in shared)


def exclusive(document: Document) -> bool:
    """Whether this is a volume claim that pods of one node only can write."""
    if document.data.get("kind") != "PersistentVolumeClaim":
        return False
    modes = as_list(as_map(document.data.get("spec")).get("accessModes"))
    return "ReadWriteMany" not in modes


def version_of(image: str) -> str | None:
    """The Ray version in the name of an image of rayproject; None for other images."""
    match = re.match(r"(?:\S*/)?rayproject/ray(?:-ml)?:([0-9]+\.[0-9]+\.[0-9]+)", image)
    if match:
        return match[1]
    return None
