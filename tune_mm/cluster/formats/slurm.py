"""A script for Slurm's sbatch as nodes: its directives, what it exports, and its `ray start` lines."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tune_mm.cluster.formats.files import ClusterFile, ClusterLine, NodeGroup, assigned, documented

_DIRECTIVE = re.compile(r"#SBATCH\s+--?([A-Za-z][\w-]*)(?:[=\s]\s*(\S+))?")
_SHORT = {
    "N": "nodes",
    "n": "ntasks",
    "c": "cpus-per-task",
    "t": "time",
    "J": "job-name",
    "o": "output",
    "e": "error",
    "G": "gpus",
    "A": "account",
    "p": "partition",
    "q": "qos",
    "w": "nodelist",
    "x": "exclude",
    "C": "constraint",
    "D": "chdir",
    "d": "dependency",
    "a": "array",
}
_GPU_OPTIONS = ("gpus-per-node", "gpus-per-task", "gpus", "gres")


@dataclass(frozen=True)
class Directive:
    """`#SBATCH --name=value`. late: after the first command, where Slurm no longer reads it."""

    name: str
    value: str
    line: int
    late: bool


def directives(text: str) -> tuple[Directive, ...]:
    """The directives of a script, short names spelled out."""
    found: list[Directive] = []
    begun = False
    for number, line in enumerate(text.splitlines(), 1):
        match = _DIRECTIVE.match(line)
        if match:
            found.append(Directive(_SHORT.get(match[1], match[1]), match[2] or "", number, begun))
        elif line.strip() and not line.startswith("#"):
            begun = True
    return tuple(found)


def commands(text: str) -> tuple[ClusterLine, ...]:
    """The script's commands: no comments, lines that end in a backslash joined."""
    found: list[ClusterLine] = []
    joined = ""
    first = 0
    for number, line in enumerate(text.splitlines(), 1):
        if not joined and line.lstrip().startswith("#"):
            continue
        first = first or number
        joined += line
        if joined.endswith("\\"):
            joined = joined[:-1]
            continue
        if joined.strip():
            found.append(ClusterLine(re.sub(r"\s#\s.*", "", joined).strip(), first))
        joined = ""
        first = 0
    return tuple(found)


def expanded(commands: tuple[ClusterLine, ...]) -> tuple[ClusterLine, ...]:
    """The commands with the script's own plain variables (NAME=value on a line) put in, values in
    quotes included.
    """
    known: dict[str, str] = {}
    found = []
    for command in commands:
        text = command.text
        for name, value in known.items():
            text = re.sub(rf"\$(?:{name}\b|\{{{name}\}})", value.replace("\\", r"\\"), text)
        match = re.fullmatch(r"(?:export\s+)?([A-Za-z_]\w*)=([^\s$`();]+|\"[^\"$`]*\")", text)
        if match:
            known[match[1]] = match[2].strip('"')
        found.append(ClusterLine(text, command.line))
    return tuple(found)


def build(path: Path, text: str) -> ClusterFile:
    """The nodes of the script: the head runs `ray start --head`, the workers the other `ray start`
    lines.
    """
    lines = expanded(commands(text))
    exported = tuple(line for line in lines if re.match(r"export\b", line.text))
    given = {}
    for d in directives(text):
        if not d.late:
            given[d.name] = ClusterLine(d.value, d.line)
    starts = [line for line in lines if re.search(r"\bray\s+start\b", line.text)]
    heads = tuple(line for line in starts if "--head" in line.text)
    others = tuple(line for line in starts if "--head" not in line.text)
    base = _environment(exported, given.get("export"))
    gpus = next((given[o] for o in _GPU_OPTIONS if o in given), ClusterLine("0", 0))
    setup = tuple(line for line in lines if line not in starts)
    nodes = given.get("nodes")
    if nodes and nodes.text.isdecimal():
        workers = ClusterLine(str(int(nodes.text) - 1), nodes.line)
    else:
        workers = None
    first = heads[0].line if heads else 1
    head = NodeGroup(
        "head", first, (*setup, *heads), (), {**base, **assigned(heads)}, None, (), _count(gpus)
    )
    second = others[0].line if others else first
    group = NodeGroup(
        "workers",
        second,
        (*setup, *others),
        (),
        {**base, **assigned(others)},
        None,
        (),
        _count(gpus),
        workers,
        workers,
    )
    return ClusterFile(
        path, "slurm", text, (), head, (group,) if others else (), documented(text), "slurm"
    )


def _environment(
    exported: tuple[ClusterLine, ...], passed: ClusterLine | None
) -> dict[str, ClusterLine]:
    """What srun hands on: all that is exported, unless `--export` names what may pass."""
    env = assigned(exported)
    if passed is None or passed.text.startswith("ALL"):
        return env
    names = set()
    for part in passed.text.split(","):
        names.add(part.partition("=")[0])
    found = {}
    for name, value in env.items():
        if name in names:
            found[name] = value
    return found


def _count(option: ClusterLine) -> ClusterLine:
    """`2`, `a100:2`, `gpu:a100:2` as a number."""
    last = option.text.split(":")[-1]
    return ClusterLine(last if last.isdecimal() else "1", option.line)
