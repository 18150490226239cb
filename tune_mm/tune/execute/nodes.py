"""A cluster's nodes, looked at before anything starts: does each of them reach what a trial needs?

Ray finds out in mid-training that checkpoints lie where only one node sees them, and a trial on a
node without data fails by itself. Both are errors here, with the node's name.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tune_mm.config import Config
from tune_mm.data import base as data
from tune_mm.errors import UserError

Answer = TypeVar("Answer")
# Seconds that a node may take: starting a worker and importing torch takes tens on a busy one.
PATIENCE = 300.0
SHARED = "a folder that all nodes mount (NFS), or a URI such as s3://BUCKET/DIR or gs://BUCKET/DIR"


@dataclass(frozen=True)
class Node:
    """A node that is alive, and what Ray counts on it."""

    id: str
    # Host and address.
    name: str
    # Whether this process runs on it.
    here: bool
    cpus: float = 0
    gpus: float = 0


def alive() -> list[Node]:
    """The nodes of the cluster that Ray is connected to, this one first."""
    own = ray.get_runtime_context().get_node_id()
    listed: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    found = [_node(told, own) for told in listed if told["Alive"]]
    return sorted(found, key=lambda node: (not node.here, node.name))


def _node(told: Mapping[str, Any], own: str) -> Node:
    resources = told["Resources"]
    return Node(
        id=told["NodeID"],
        name=_name(told),
        here=told["NodeID"] == own,
        cpus=resources.get("CPU", 0),
        gpus=resources.get("GPU", 0),
    )


def _name(node: Mapping[str, Any]) -> str:
    address = str(node["NodeManagerAddress"])
    host = node["NodeManagerHostname"]
    if host == address:
        return address
    return f"{host} ({address})"


def ask(
    nodes: list[Node], question: Callable[..., Answer], *given: Any, gpus: float = 0
) -> dict[Node, Answer]:
    """`question(*given)` asked on each of `nodes`; the answers by node.

    It costs no CPU of the cluster. gpus: the share of one that it books, without which it may see
    none. Raises UserError, naming the node, where one does not answer.
    """
    remote = ray.remote(num_cpus=0, num_gpus=gpus, max_retries=0)(question)
    asked = {}
    for node in nodes:
        on_node = NodeAffinitySchedulingStrategy(node.id, soft=False)
        asked[node] = remote.options(scheduling_strategy=on_node).remote(*given)
    answers: dict[Node, Answer] = {}
    for node, reference in asked.items():
        try:
            answers[node] = ray.get(reference, timeout=PATIENCE)
        except ray.exceptions.RayTaskError as error:
            raise UserError(f"node {node.name}: {error.cause}") from None
        except (ray.exceptions.RayError, ray.exceptions.GetTimeoutError) as error:
            raise UserError(f"node {node.name} does not answer: {type(error).__name__}") from None
    return answers


def check_storage(storage: str) -> None:
    """Checkpoints must lie where every node sees them.

    storage: a folder, or a URI (which is taken at its word). Raises UserError that names the nodes
    which do not see the folder.
    """
    others = [node for node in alive() if not node.here]
    if "://" in storage or not others:
        return
    mark = Path(storage) / f".seen-{uuid.uuid4().hex}"
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise UserError(
            f"--storage: cannot write to {storage}: {error.strerror or error}"
        ) from None
    try:
        seen = ask(others, _exists, str(mark))
    finally:
        mark.unlink()
    blind = []
    for node, found in seen.items():
        if not found:
            blind.append(node.name)
    if blind:
        nodes = ", ".join(blind)
        raise UserError(
            f"--storage: {storage} is not seen by {len(blind)} of {len(others) + 1} nodes "
            f"({nodes}): checkpoints must outlive a node; give {SHARED}"
        )


def _exists(path: str) -> bool:
    return Path(path).exists()


def check_data(config: Config, kind: str, root: str | None) -> None:
    """Every node must find the data set, and of the same kind (real or synthetic) as this one.

    Raises UserError that names the nodes which do not.
    """
    others = [node for node in alive() if not node.here]
    if not others:
        return
    answers = ask(others, _problem, config, kind, root)
    problems = []
    for node, problem in answers.items():
        if problem:
            problems.append(f"{node.name}: {problem}")
    if problems:
        raise UserError(
            f"data are missing on {len(problems)} of {len(others) + 1} nodes. {'; '.join(problems)}"
        )


def _problem(config: Config, kind: str, root: str | None) -> str:
    """Why this node cannot load the data ("": it can)."""
    folder = None if root is None else Path(root)
    try:
        found = data.resolve(config.data, folder, require_real=kind == "real")
    except UserError as error:
        return str(error)
    if found.kind != kind:
        return f"finds {found.kind} data, the driver {kind} ones"
    return ""
