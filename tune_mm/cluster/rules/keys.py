"""Rules about keys and values: Ray's own schema, what a RayJob and a batch script need."""

from __future__ import annotations

import functools
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]

from tune_mm.cluster.formats.files import ClusterFile, as_list, as_map
from tune_mm.cluster.formats.kuberay import CLUSTER
from tune_mm.cluster.formats.problems import Problem
from tune_mm.cluster.formats.slurm import directives
from tune_mm.errors import UserError, nearest


def launcher_schema(file: ClusterFile) -> Iterator[Problem]:
    """The file is what Ray's cluster launcher takes: ray/autoscaler/ray-schema.json of the
    installed Ray.
    """
    if file.kind != "launcher":
        return
    document = file.documents[0]
    data = dict(document.data)
    if file.provider == "local":
        data.pop("min_workers", None)  # which Ray moves elsewhere before it validates
    for error in _validator().iter_errors(data):
        path = ".".join(str(part) for part in error.absolute_path)
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            unknown = [key for key in error.instance if key not in known]
            for key in unknown:
                yield _unknown_key(
                    key, known, document.line_of(f"{path}.{key}".lstrip(".")) or 0, path
                )
        else:
            yield Problem(
                "wrong-value",
                "error",
                f"{path or 'the file'}: {error.message[:200]}",
                document.line_of(path) or 0,
                "Ray refuses the file",
                "see https://docs.ray.io/en/latest/cluster/vms/references/ray-cluster-configuration.html",
            )


def _unknown_key(key: str, known: Any, line: int, where: str) -> Problem:
    what = f"no key '{key}'" + (f" in {where}" if where else "") + nearest(key, known)
    return Problem(
        "unknown-key",
        "error",
        what,
        line,
        "it is refused, or does nothing",
        f"one of: {', '.join(sorted(known))}",
    )


@functools.cache
def _validator() -> Any:
    """Of Ray's schema. Raises UserError where Ray is not installed."""
    ray = importlib.util.find_spec("ray")  # its files are needed, not its code
    if ray and ray.origin:
        path = Path(ray.origin).parent / "autoscaler" / "ray-schema.json"
    else:
        path = None
    if path is None or not path.is_file():
        raise UserError("Ray's schema of cluster files is not there: pip install 'ray[default]'")
    return jsonschema.Draft7Validator(json.loads(path.read_text()))


def launcher_needs(file: ClusterFile) -> Iterator[Problem]:
    """What each provider needs beyond the schema."""
    if file.kind != "launcher":
        return
    document = file.documents[0]
    provider = as_map(document.data.get("provider"))
    needed = {
        "local": () if "coordinator_address" in provider else ("head_ip", "worker_ips"),
        "aws": ("region",),
        "gcp": ("region", "availability_zone", "project_id"),
    }
    for key in needed.get(file.provider, ()):
        if provider.get(key) in (None, "", []):
            yield Problem(
                "missing-key",
                "error",
                f"provider.{key} is missing{nearest(key, provider)}",
                document.line_of("provider") or 0,
                f"provider {file.provider} needs it",
                f"provider: {{{key}: ...}}",
            )
    types = as_map(document.data.get("available_node_types"))
    head = str(document.data.get("head_node_type", ""))
    if file.provider == "local" and types:
        yield Problem(
            "wrong-value",
            "error",
            "available_node_types does not go with provider local",
            document.line_of("available_node_types") or 0,
            "Ray refuses the file",
            "leave it out",
        )
    elif file.provider != "local" and head not in types:
        yield Problem(
            "missing-key",
            "error",
            f"head_node_type must be one of {', '.join(types) or 'available_node_types'}, got '{head}'"
            f"{nearest(head, types)}",
            document.line_of("head_node_type") or 0,
            "Ray refuses the file",
            "name the node type of the head",
        )


def rayjob_fields(file: ClusterFile) -> Iterator[Problem]:
    """The RayJob has the fields without which KubeRay starts nothing.

    Which others it knows changes with its version: the API server refuses what it does not know.
    """
    if file.kind != "kuberay":
        return
    job = file.documents[0]
    spec = as_map(job.data.get("spec"))
    cluster = as_map(spec.get("rayClusterSpec"))
    needs = {
        "metadata.name": bool(as_map(job.data.get("metadata")).get("name")),
        "spec.entrypoint": bool(spec.get("entrypoint"))
        or spec.get("submissionMode") == "InteractiveMode",
        "spec.rayClusterSpec.headGroupSpec": bool(cluster.get("headGroupSpec")),
    }
    for node, at in zip(file.nodes, ["headGroupSpec", *_groups(cluster)], strict=True):
        needs[f"{CLUSTER}.{at}.template.spec.containers.0.image"] = node.image is not None
    for key, there in needs.items():
        if not there:
            yield Problem(
                "missing-key",
                "error",
                f"{key} is missing",
                job.line_of(key.rpartition(".")[0]) or 0,
                "KubeRay starts nothing without it",
                "give it",
            )
    if job.data.get("apiVersion") != "ray.io/v1":
        yield Problem(
            "wrong-value",
            "error",
            f"apiVersion must be ray.io/v1, got '{job.data.get('apiVersion')}'",
            job.line_of("apiVersion") or 0,
            "KubeRay 1.0 and later serve ray.io/v1",
            "apiVersion: ray.io/v1",
        )


def _groups(cluster: dict[str, Any]) -> list[str]:
    found = []
    for i in range(len(as_list(cluster.get("workerGroupSpecs")))):
        found.append(f"workerGroupSpecs.{i}")
    return found


def sbatch_options(file: ClusterFile) -> Iterator[Problem]:
    """Directives stand where Slurm reads them, and the script starts a head.

    Which options there are changes with Slurm's version: sbatch refuses what it does not know.
    """
    if file.kind != "slurm":
        return
    for directive in directives(file.text):
        if directive.late:
            yield Problem(
                "late-directive",
                "error",
                f"#SBATCH --{directive.name} comes after a command",
                directive.line,
                "Slurm reads directives up to the first command: this one does nothing",
                "move it up",
            )
    if not re.search(r"\bray\s+(?:start\b.*--head|symmetric-run)\b", file.text):
        yield Problem(
            "missing-key",
            "error",
            "no `ray start --head`",
            1,
            "there is no cluster for the search to join",
            "srun ... ray start --head --block &",
        )


def placeholders(file: ClusterFile) -> Iterator[Problem]:
    """What the user has yet to fill in, outside the comments."""
    seen: dict[str, int] = {}
    for number, line in enumerate(file.text.splitlines(), 1):
        if not line.lstrip().startswith("#") or line.startswith("#SBATCH"):
            for name in re.findall(r"YOUR_[A-Z0-9_]*[A-Z0-9]", line):
                seen.setdefault(name, number)
    if seen:
        names = ", ".join(f"{name} (line {line})" for name, line in seen.items())
        why = "they stand for what only you know; the commands in the comments name them too"
        yield Problem(
            "placeholder",
            "note",
            f"to be filled in: {names}",
            0,
            why,
            "replace each throughout the file",
        )


CHECKS = (launcher_schema, launcher_needs, rayjob_fields, sbatch_options, placeholders)
