"""Checks of who may reach the cluster, and of what leaves it: authentication, secrets, open ports,
telemetry.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from tune_mm.cluster.formats.files import ClusterFile, NodeGroup, as_map
from tune_mm.cluster.formats.kuberay import CLUSTER
from tune_mm.cluster.formats.problems import Problem
from tune_mm.errors import nearest

MODE = "RAY_AUTH_MODE"
TOKEN = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
MODES = ("token", "disabled", "k8s")
_SECRETS = (
    ("an AWS access key", r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    ("a private key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    (
        "a token of GitHub or Hugging Face",
        r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,})\b",
    ),
    ("a password in an address", r"://[^/\s:@$]+:[^/\s@$]+@"),
    (
        "a secret",
        r"(?i)\b\w*(?:password|secret|token|api_?key|access_?key)[\"']?\s*[=:]\s*[\"']?(?!YOUR_)[\w+/-]{12,}",
    ),
)
_ANYWHERE = r"(?:0\.0\.0\.0|::|\[::\]|\*)"


def auth_mode(file: ClusterFile) -> Iterator[Problem]:
    """RAY_AUTH_MODE is set on every node, to a mode there is."""
    why = "a node without a mode goes by whether it finds a token in its home: nodes end up mixed, and do not join"
    for node in file.nodes:
        mode = node.env.get(MODE)
        if mode is None:
            if _set_outside(node):
                where = " in the container (initialization_commands run outside it)"
            else:
                where = ""
            yield Problem(
                "auth-mode",
                "error",
                f"{MODE} is not set on {node.name}{where}",
                node.line,
                why,
                f"set {MODE}=token for head and workers alike",
            )
        elif mode.text not in MODES:
            yield Problem(
                "auth-mode",
                "error",
                f"{MODE} must be one of {', '.join(MODES)}, got '{mode.text}' on {node.name}"
                f"{nearest(mode.text, MODES)}",
                mode.line,
                why,
                f"set {MODE}=token",
            )
        elif mode.text == "disabled":
            yield Problem(
                "auth-mode",
                "warning",
                f"{MODE}=disabled on {node.name}",
                mode.line,
                "whoever reaches the cluster's ports runs code on it",
                f"set {MODE}=token",
            )


def _set_outside(node: NodeGroup) -> bool:
    return any(MODE in line.text for line in node.hosted)


def auth_differs(file: ClusterFile) -> Iterator[Problem]:
    """Head and workers authenticate in the same way."""
    head = file.head.env.get(MODE)
    for node in file.workers:
        mode = node.env.get(MODE)
        if head and mode and head.text != mode.text:
            yield Problem(
                "auth-differs",
                "error",
                f"{MODE} is '{head.text}' on the head and '{mode.text}' on {node.name}",
                mode.line,
                "workers of another mode are turned away while they cost",
                "set the same mode once for all nodes",
            )


def auth_token(file: ClusterFile) -> Iterator[Problem]:
    """Nodes that ask for a token have one."""
    if file.documents:
        mounted = as_map(file.documents[0].data.get("file_mounts"))
    else:
        mounted = {}
    if any(re.search(r"/\.ray(?:/auth_token)?/?$", remote) for remote in mounted):
        return
    for node in file.nodes:
        mode = node.env.get(MODE)
        if mode and mode.text == "token" and not any(name in node.env for name in TOKEN):
            yield Problem(
                "auth-token",
                "error",
                f"{MODE}=token, and {node.name} gets no token",
                mode.line,
                "`ray start` refuses to start without one",
                "`ray get-auth-token --generate`, bring the file to all nodes, set RAY_AUTH_TOKEN_PATH",
            )


def telemetry(file: ClusterFile) -> Iterator[Problem]:
    """The head sends no usage statistics."""
    setting = file.head.env.get("RAY_USAGE_STATS_ENABLED")
    off = any("--disable-usage-stats" in line.text for line in file.head.commands)
    if not off and (setting is None or setting.text.lower() not in {"0", "false"}):
        yield Problem(
            "telemetry",
            "warning",
            "RAY_USAGE_STATS_ENABLED=0 is not set on the head",
            setting.line if setting else file.head.line,
            "Ray reports the cluster's make-up to its makers",
            "set RAY_USAGE_STATS_ENABLED=0",
        )


def secrets(file: ClusterFile) -> Iterator[Problem]:
    """The file holds no keys, tokens or passwords; what was found is not repeated."""
    lines: dict[int, str] = {}
    for what, pattern in _SECRETS:
        for match in re.finditer(pattern, file.text):
            lines.setdefault(file.text[: match.start()].count("\n") + 1, what)
    for node in file.nodes:
        for name, value in node.env.items():
            named = re.search(r"(?:PASSWORD|SECRET|TOKEN|KEY)$", name)
            if named and value.text and not re.match(r"[$/~]|YOUR_", value.text):
                lines.setdefault(value.line, f"a value for {name}")
    for line, what in sorted(lines.items()):
        yield Problem(
            "secret",
            "error",
            f"{what} is written in the file",
            line,
            "the file is kept under version control and copied to the head",
            "name a file or a secret of the cluster instead, and revoke this one",
        )


def open_ports(file: ClusterFile) -> Iterator[Problem]:
    """No server listens on every address, and KubeRay's head has no service to the outside."""
    why = "the dashboard takes jobs and MLflow's server takes deletions from whoever reaches them"
    for command in file.commands():
        dashboard = (
            re.search(rf"--dashboard-host[=\s]+[\"']?{_ANYWHERE}", command.text)
            and file.kind != "kuberay"
        )
        server = re.search(
            rf"\bmlflow\s+(?:server|ui)\b.*--host[=\s]+[\"']?{_ANYWHERE}", command.text
        )
        if dashboard or server:
            name = "--dashboard-host" if dashboard else "mlflow --host"
            if command.line:
                default = ""
            else:
                default = " (Ray's own start command, which the file does not replace)"
            yield Problem(
                "open-port",
                "error",
                f"{name} binds to every address{default}",
                command.line,
                why,
                "127.0.0.1 and `ray dashboard`, or one private address",
            )
    if file.kind == "kuberay":
        head = as_map(
            as_map(as_map(file.documents[0].data.get("spec")).get("rayClusterSpec")).get(
                "headGroupSpec"
            )
        )
        service = head.get("serviceType", "ClusterIP")
        if service != "ClusterIP":
            line = file.documents[0].line_of(f"{CLUSTER}.headGroupSpec.serviceType") or 0
            yield Problem(
                "open-port",
                "error",
                f"serviceType {service} opens the head to the outside",
                line,
                why,
                "ClusterIP, and `kubectl port-forward` to look at it",
            )


CHECKS = (auth_mode, auth_differs, auth_token, telemetry, secrets, open_ports)
