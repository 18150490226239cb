"""Checks of how many nodes there will be, what they offer, how long they cost, and what ends them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tune_mm.cluster.formats.files import (
    ClusterFile,
    ClusterLine,
    as_list,
    as_map,
    is_count,
    option,
)
from tune_mm.cluster.formats.problems import Problem
from tune_mm.cluster.formats.slurm import directives

IDLE_LIMIT = 60  # minutes


def worker_counts(file: ClusterFile) -> Iterator[Problem]:
    """There are workers, and their bounds agree."""
    if file.kind == "slurm":
        return
    total, line = _total(file)
    possible = [node for node in file.workers if node.most is None or int(node.most.text) > 0]
    if not possible or total == 0:
        yield Problem(
            "no-workers",
            "error",
            "the cluster may have no workers",
            line,
            "trials wait for ever while the head costs",
            "max_workers >= 1, of the cluster and of a node type",
        )
        return
    wanted = sum(int(node.least.text) for node in file.workers if node.least)
    if total is not None and total < wanted:
        yield Problem(
            "max-workers",
            "error" if file.provider != "local" else "warning",
            f"max_workers is {total}, and the workers asked for are {wanted}",
            line,
            "Ray refuses the file, or leaves machines unused",
            f"max_workers: {wanted}",
        )
    for node in file.workers:
        if node.least and node.most and int(node.least.text) > int(node.most.text):
            yield Problem(
                "max-workers",
                "error",
                f"{node.name}: at least {node.least.text} and at most {node.most.text}",
                node.most.line,
                "the bounds contradict one another",
                "let the maximum be the larger",
            )


def _total(file: ClusterFile) -> tuple[int | None, int]:
    """The launcher's bound for all workers (2 where a cloud's file has none), with its line."""
    if file.kind != "launcher":
        return None, file.head.line
    document = file.documents[0]
    value = document.data.get("max_workers", None if file.provider == "local" else 2)
    return (value if is_count(value) else None), document.line_of("max_workers") or file.head.line


def late_workers(file: ClusterFile) -> Iterator[Problem]:
    """Workers are there when the search starts."""
    if file.kind == "slurm" or not file.workers:
        return
    if all(node.least is None or int(node.least.text) == 0 for node in file.workers):
        first = file.workers[0]
        yield Problem(
            "late-workers",
            "warning",
            "no workers are asked for at the start",
            first.least.line if first.least else first.line,
            "the search counts its slots when it starts: it finds none, and stops",
            "min_workers (replicas) >= 1",
        )


def spare_worker(file: ClusterFile) -> Iterator[Problem]:
    """On machines of one's own no worker is lost to the head's place in autoscaler v2."""
    if file.provider != "local":
        return
    document = file.documents[0]
    count = len(as_list(as_map(document.data.get("provider")).get("worker_ips")))
    starts = []
    for c in file.head.commands:
        if re.search(r"\bray\s+start\b.*--head", c.text):
            starts.append(c)
    if any(not re.search(r"\bRAY_enable_autoscaler_v2=[\"']?0", c.text) for c in starts):
        yield Problem(
            "spare-worker",
            "error",
            f"{count} worker_ips give {max(count - 1, 0)} workers",
            document.line_of("provider.worker_ips") or 0,
            "autoscaler v2, which `ray up` turns on, counts the head as one of them",
            "RAY_enable_autoscaler_v2=0 before `ray start --head` in the same command (one spare address in"
            " worker_ips would do too, but cannot be told from a machine here)",
        )


def autoscaling_config(file: ClusterFile) -> Iterator[Problem]:
    """The head is told to start workers."""
    for command in file.head.commands:
        starts = file.kind == "launcher" and re.search(
            r"\bray\s+start\b.*--head", command.text, re.DOTALL
        )
        if starts and "--autoscaling-config" not in command.text:
            yield Problem(
                "autoscaling-config",
                "error",
                "the head starts without --autoscaling-config",
                command.line,
                "it never starts a worker",
                "--autoscaling-config=~/ray_bootstrap_config.yaml",
            )


def gpu_missing(file: ClusterFile) -> Iterator[Problem]:
    """Where trials ask for GPUs, some workers have them."""
    asking = []
    for s in file.searches():
        if option(s.text, "gpus-per-trial") not in (None, "0", "0.0"):
            asking.append(s)
    nodes = file.nodes if file.kind == "slurm" else file.workers
    off = []
    for node in nodes:
        for c in node.commands:
            if re.search(r"\bray\s+start\b.*--num-gpus[=\s]0\b", c.text):
                off.append(c)
    none = bool(nodes) and all(node.gpus is not None and node.gpus.text == "0" for node in nodes)
    if asking and (none or off):
        if off:
            line = off[0].line
        elif nodes[0].gpus:
            line = nodes[0].gpus.line
        else:
            line = 0
        yield Problem(
            "gpu-missing",
            "error",
            f"trials ask for {option(asking[0].text, 'gpus-per-trial')} GPUs, and no worker has any",
            line or asking[0].line,
            "no trial ever starts",
            "a GPU machine and `resources: {GPU: 1}` (nvidia.com/gpu, --gpus-per-node), or no --gpus-per-trial",
        )


def idle_timeout(file: ClusterFile) -> Iterator[Problem]:
    """What is no longer used goes."""
    if file.kind == "slurm":
        if not any(d.name == "time" and not d.late for d in directives(file.text)):
            yield Problem(
                "idle-timeout",
                "warning",
                "the job has no --time",
                1,
                "it holds its nodes up to the partition's limit if it hangs",
                "#SBATCH --time=12:00:00",
            )
        return
    document = file.documents[0]
    if file.kind == "kuberay":
        spec = as_map(document.data.get("spec"))
        if spec.get("shutdownAfterJobFinishes") is not True:
            yield Problem(
                "idle-timeout",
                "error",
                "shutdownAfterJobFinishes is not true",
                document.line_of("spec.shutdownAfterJobFinishes") or document.line_of("spec") or 0,
                "the pods, GPUs included, stay when the search is over",
                "shutdownAfterJobFinishes: true",
            )
        return
    minutes = document.data.get("idle_timeout_minutes")
    if file.provider == "local" or (
        isinstance(minutes, (int, float)) and 0 < minutes <= IDLE_LIMIT
    ):
        return
    got = "missing" if minutes is None else f"{minutes}"
    yield Problem(
        "idle-timeout",
        "warning",
        f"idle_timeout_minutes is {got}",
        document.line_of("idle_timeout_minutes") or 0,
        "workers that nobody uses cost until it ends",
        f"a number from 1 to {IDLE_LIMIT}",
    )


def ray_stop(file: ClusterFile) -> Iterator[Problem]:
    """On hosts that others use too no command runs a general `ray stop`."""
    if file.provider != "local" and file.kind != "slurm":
        return
    for node in file.nodes:
        for command in node.commands:
            if re.search(r"(?<!\w)ray\s+stop\b", command.text):
                if command.line:
                    default = ""
                else:
                    default = " (Ray's own start commands, which the file does not replace)"
                yield Problem(
                    "ray-stop",
                    "error",
                    f"`ray stop` on {node.name}{default}",
                    command.line,
                    "it ends every Ray of the user on that host, other searches included",
                    f"{node.name.split()[0].removesuffix('s')}_start_ray_commands without it"
                    if file.kind != "slurm"
                    else "leave it out: Slurm ends what the job started",
                )


def stop_option(file: ClusterFile) -> Iterator[Problem]:
    """No command switches the head off."""
    for command in file.commands():
        stops = re.search(r"\bray\s+(?:submit|exec)\b.*\s--stop\b", command.text)
        down = re.search(r"(?:^|[;&|]\s*|sudo\s+)(?:shutdown|poweroff|halt|reboot)\b", command.text)
        if stops or down:
            yield Problem(
                "stop",
                "error",
                f"{'--stop' if stops else down[0].strip() if down else ''} in a command",
                command.line,
                "it runs `sudo shutdown -h now` on the head: results that lie there go with it",
                "fetch the results, then `ray down`",
            )


def spot_head(file: ClusterFile) -> Iterator[Problem]:
    """The head is not on a machine that is taken back."""
    if file.kind != "launcher":
        return
    document = file.documents[0]
    name = str(document.data.get("head_node_type"))
    config = as_map(
        as_map(as_map(document.data.get("available_node_types")).get(name)).get("node_config")
    )
    if _spot(config):
        yield Problem(
            "spot-head",
            "error",
            "the head is on spot",
            document.line_of(f"available_node_types.{name}.node_config") or 0,
            "when it is taken back the search ends, and MLflow's store on its disk is lost",
            "spot for workers only",
        )


def _spot(config: dict[str, Any]) -> bool:
    market = as_map(config.get("InstanceMarketOptions")).get("MarketType")
    scheduling = config.get("scheduling")
    if isinstance(scheduling, list):
        entries = scheduling
    else:
        entries = [scheduling]
    return market == "spot" or any(
        as_map(e).get("preemptible") is True or as_map(e).get("provisioningModel") == "SPOT"
        for e in entries
    )


def one_per_node(file: ClusterFile) -> Iterator[Problem]:
    """Slurm starts one Ray on each node."""
    tasks = []
    for d in directives(file.text):
        if d.name in {"ntasks-per-node", "tasks-per-node"}:
            tasks.append(d)
    several = [ClusterLine(d.value, d.line) for d in tasks if d.value != "1"]
    if file.kind == "slurm" and several:
        yield Problem(
            "one-per-node",
            "error",
            f"{several[0].text} tasks per node",
            several[0].line,
            "each would start a Ray of its own, and they count the node's GPUs twice",
            "#SBATCH --ntasks-per-node=1, and --cpus-per-task for the CPUs",
        )


CHECKS = (
    worker_counts,
    late_workers,
    spare_worker,
    autoscaling_config,
    gpu_missing,
    idle_timeout,
    ray_stop,
    stop_option,
    spot_head,
    one_per_node,
)
