"""Checks of where things lie: checkpoints on shared storage, paths that mean the same on every
node.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tune_mm.cluster.formats.files import ClusterFile, ClusterLine, as_list, as_map, option
from tune_mm.cluster.formats.kuberay import exclusive
from tune_mm.cluster.formats.problems import Problem

_LOCAL = re.compile(
    r"(?:/tmp|/var/tmp|/dev/shm|/run|/local|/localscratch)(?:/|$)|\$\{?(?:TMPDIR|SLURM_TMPDIR)\b"
)
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://")
_WHY = "Ray keeps checkpoints where each trial runs: a trial that moves, or a node that goes, loses them"


def storage_named(file: ClusterFile) -> Iterator[Problem]:
    """Each command that begins a search says where checkpoints go; without one, something shared is
    mounted.
    """
    searches = file.searches()
    for search in searches:
        if option(search.text, "storage") is None:
            yield Problem(
                "no-storage",
                "error",
                "the search gets no --storage",
                search.line,
                _WHY,
                "--storage with a folder that all nodes mount, or s3://, gs:// ...",
            )
            return
    mounted = all(node.mounts for node in file.nodes)
    if not searches and not mounted and not re.search(r"\b(?:s3|gs|abfs|hdfs)://", file.text):
        yield Problem(
            "no-storage",
            "error",
            "no shared storage is mounted or named",
            file.head.line,
            _WHY,
            "mount a shared file system on all nodes, or name a bucket for --storage",
        )


def storage_shared(file: ClusterFile) -> Iterator[Problem]:
    """The folder of --storage is one that all nodes share."""
    for search in file.searches():
        place = option(search.text, "storage") or ""
        folder = place.removeprefix("file://")
        if not folder or _REMOTE.match(folder) or _relative(folder):
            continue
        for node in file.nodes:
            shared = not _LOCAL.match(folder) and (
                file.kind == "slurm" or _below(folder, node.mounts)
            )
            if not shared:
                yield Problem(
                    "local-storage",
                    "error",
                    f"--storage {place} is no shared file system on {node.name}",
                    search.line,
                    _WHY,
                    _mend(file, folder),
                )
                return


def _below(folder: str, mounts: tuple[str, ...]) -> bool:
    return any(folder == m or folder.startswith(m.rstrip("/") + "/") for m in mounts)


def _mend(file: ClusterFile, folder: str) -> str:
    if file.kind == "slurm":
        return "a folder of the cluster's shared file system"
    if file.kind == "kuberay":
        return f"mount a ReadWriteMany volume around {folder} in head and workers"
    mount = f"`mount` (or `mountpoint -q`) a shared file system around {folder} on all nodes"
    return f"{mount} (and bind it into containers)"


def volume_mode(file: ClusterFile) -> Iterator[Problem]:
    """Claims of volumes may be written from many nodes."""
    for document in file.documents:
        if exclusive(document):
            name = as_map(document.data.get("metadata")).get("name")
            yield Problem(
                "volume-mode",
                "error",
                f"the volume claim '{name}' is not ReadWriteMany",
                document.line_of("spec.accessModes") or document.line_of("spec") or 0,
                "pods on a second node wait for it for ever, and their GPUs cost",
                "accessModes: [ReadWriteMany], and a storage class that gives it",
            )


def relative_paths(file: ClusterFile) -> Iterator[Problem]:
    """Paths are absolute, or below the home directory."""
    for place, line in _paths(file):
        if _relative(place.text):
            yield Problem(
                "relative-path",
                "error",
                f"{line} '{place.text}' is relative",
                place.line,
                "it is looked up from wherever a command happens to run: here, on the head, on each worker",
                "begin it with / (or ~, where the home directory is meant)",
            )


def _relative(place: str) -> bool:
    return bool(place) and not _REMOTE.match(place) and not re.match(r"[/~$]|YOUR_", place)


def _paths(file: ClusterFile) -> Iterator[tuple[ClusterLine, str]]:
    """Paths of the file, each with what it is."""
    for search in file.searches():
        for name in ("storage", "data-root"):
            yield ClusterLine(option(search.text, name) or "", search.line), f"--{name}"
    if file.kind != "launcher":
        return
    document = file.documents[0]
    for remote, local in as_map(document.data.get("file_mounts")).items():
        line = document.line_of(f"file_mounts.{remote}") or 0
        yield ClusterLine(remote, line), "the target of file_mounts"
        yield ClusterLine(str(local), line), "the source of file_mounts"
    for i, name in enumerate(as_list(document.data.get("cluster_synced_files"))):
        yield (
            ClusterLine(str(name), document.line_of(f"cluster_synced_files.{i}") or 0),
            "cluster_synced_files",
        )
    for key in ("ssh_private_key", "ssh_public_key"):
        name = as_map(document.data.get("auth")).get(key, "")
        yield ClusterLine(str(name), document.line_of(f"auth.{key}") or 0), key


CHECKS = (storage_named, storage_shared, volume_mode, relative_paths)
