"""Checks of what runs on the nodes: the project, pinned, and the same versions everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tune_mm.cluster.formats.files import ClusterFile, ClusterLine, NodeGroup, as_map
from tune_mm.cluster.formats.kuberay import CLUSTER, version_of
from tune_mm.cluster.formats.problems import Problem

_PACKAGE = re.compile(r"\btune[_-]mm\b(?!_)[^\s\"',]*(?:\s*@\s*[^\s\"',]+)?")
_PINNED = re.compile(
    r"tune[_-]mm(?:-[0-9][\w.+]*-\S+\.whl|\S*==\s*[0-9]\S*|\s*@\s*\S+@(?!(?:main|master|HEAD|develop)\b)[\w./-]+|"
    r"\S*\s*@\s*\S+tune[_-]mm-[0-9]\S*\.whl)"
)


def installed(file: ClusterFile) -> Iterator[Problem]:
    """Every node gets the project: `ray submit` brings one script alone."""
    for node in file.nodes:
        if not _sources(file, node):
            yield Problem(
                "no-project",
                "error",
                f"nothing installs tune_mm on {node.name}",
                node.line,
                "`ray submit` uploads one script, which imports the installed package: it would fail",
                "pip install -c constraints.txt tune_mm-0.1.0-py3-none-any.whl on all nodes",
            )


def pinned(file: ClusterFile) -> Iterator[Problem]:
    """The project and the images are of one version, not of whatever is newest when a node starts."""
    told: set[int] = set()
    for node in file.nodes:
        loose = []
        for s in _sources(file, node):
            if not _is_pinned(s):
                loose.append(s)
        if node.image and not _is_pinned(node.image):
            loose.append(node.image)
        for source in loose:
            if source.line not in told:
                told.add(source.line)
                yield Problem(
                    "not-pinned",
                    "warning",
                    f"no version is pinned: {_named(source)}",
                    source.line,
                    "a worker that starts tomorrow may get other code than the head has today",
                    "name a wheel, a commit (@SHA) or an image's version",
                )


def _named(source: ClusterLine) -> str:
    """The package that a command installs, or the image."""
    if " " in source.text:
        match = _PACKAGE.search(source.text)
    else:
        match = None
    if match:
        return match[0]
    return source.text


def _is_pinned(source: ClusterLine) -> bool:
    if " " in source.text:
        return bool(_PINNED.search(source.text))
    if source.text.startswith("ami-") or "YOUR_AMI" in source.text or "@sha256:" in source.text:
        return True
    tag = source.text.rpartition("/")[2].partition(":")[2]
    return bool(tag) and not re.match(r"(?:latest|nightly)\b", tag)


def _sources(file: ClusterFile, node: NodeGroup) -> list[ClusterLine]:
    """Where the node has the project from: commands that install it, or its image."""
    commands = [*node.commands, *(file.documented if file.kind == "slurm" else ())]
    if file.kind == "kuberay":
        spec = as_map(file.documents[0].data.get("spec"))
        line = file.documents[0].line_of("spec.runtimeEnvYAML") or 0
        commands += (
            [ClusterLine(f"pip install {spec['runtimeEnvYAML']}", line)]
            if "runtimeEnvYAML" in spec
            else []
        )
    found = []
    for c in commands:
        if re.search(r"\b(?:pip|uv)\b.*\binstall\b", c.text, re.DOTALL) and _PACKAGE.search(c.text):
            found.append(c)
    if node.image and _PACKAGE.search(node.image.text.rpartition("/")[2]):
        found.append(node.image)
    return found


def versions_differ(file: ClusterFile) -> Iterator[Problem]:
    """Head and workers have the same Python, Ray and torch: Ray refuses some mixtures, and
    unpickles others wrongly.
    """
    why = "Ray turns workers of another Python or Ray version away, and checkpoints of another torch may not load"
    head = _facts(file.head)
    for node in file.workers:
        facts = _facts(node)
        for name in sorted(set(head) & set(facts)):
            if head[name].text != facts[name].text:
                yield Problem(
                    "versions-differ",
                    "error",
                    f"{name} is {head[name].text} on the head and {facts[name].text} on {node.name}",
                    facts[name].line,
                    why,
                    "the same image and the same pins for all nodes",
                )
    if file.kind == "kuberay":
        yield from _ray_version(file, why)


def _ray_version(file: ClusterFile, why: str) -> Iterator[Problem]:
    job = file.documents[0]
    stated = str(as_map(as_map(job.data.get("spec")).get("rayClusterSpec")).get("rayVersion", ""))
    for node in file.nodes:
        found = version_of(node.image.text) if node.image else None
        if stated and found and found != stated:
            yield Problem(
                "versions-differ",
                "error",
                f"rayVersion is {stated}, and {node.name} has {found}",
                job.line_of(f"{CLUSTER}.rayVersion") or 0,
                why,
                f"rayVersion: {found}",
            )


def _facts(node: NodeGroup) -> dict[str, ClusterLine]:
    """Versions that the node's image and commands name."""
    found: dict[str, ClusterLine] = {}
    if node.image:
        # A CPU and a GPU image of one version go together.
        found["image"] = ClusterLine(
            re.sub(r"-(?:cpu|gpu|cu\d+)$", "", node.image.text), node.image.line
        )
    patterns = {
        "Python": r"\bpython(3\.\d+)\b",
        "torch": r"\btorch==([\w.+]+)",
        "Ray": r"\bray(?:\[[^\]]*\])?==([\w.]+)",
    }
    for command in node.commands:
        for name, pattern in patterns.items():
            match = re.search(pattern, command.text)
            if match:
                found[name] = ClusterLine(match[1], command.line)
    return found


CHECKS = (installed, pinned, versions_differ)
