"""A cluster file read, and held to all rules."""

from __future__ import annotations

from pathlib import Path

from tune_mm.cluster.formats import kuberay, launcher, slurm
from tune_mm.cluster.formats.files import ClusterFile, documents_of, text_of
from tune_mm.cluster.formats.problems import Check, Problem
from tune_mm.cluster.rules import access, keys, storage, versions, workers
from tune_mm.config.yaml import shown
from tune_mm.errors import ConfigError

CHECKS: tuple[Check, ...] = (
    *keys.CHECKS,
    *workers.CHECKS,
    *access.CHECKS,
    *storage.CHECKS,
    *versions.CHECKS,
)
ORDER = ("error", "warning", "note")


def read(path: str | Path) -> ClusterFile:
    """The cluster file at `path`. Raises ConfigError when it is none, or cannot be read."""
    path = Path(path)
    text = text_of(path)
    if text.startswith("#!") or "\n#SBATCH" in text:
        if "#SBATCH" not in text:
            raise ConfigError(
                f"{shown(path)}: a script without #SBATCH directives is no cluster file"
            )
        return slurm.build(path, text)
    documents = documents_of(path, text)
    if any(str(d.data.get("apiVersion", "")).startswith("ray.io/") for d in documents):
        return kuberay.build(path, text, documents)
    if len(documents) == 1 and "provider" in documents[0].data:
        return launcher.build(path, text, documents[0])
    kinds = "provider (`ray up`), apiVersion: ray.io/v1 with kind: RayJob (KubeRay), or #SBATCH lines (Slurm)"
    raise ConfigError(
        f"{shown(path)}: no cluster file; it must have {kinds}; got keys "
        f"{', '.join(key for d in documents for key in d.data)}"
    )


def problems(file: ClusterFile) -> list[Problem]:
    """All that the checks find, errors first, then by line."""
    found = [problem for check in CHECKS for problem in check(file)]
    return sorted(found, key=lambda p: (ORDER.index(p.severity), p.line, p.check))
