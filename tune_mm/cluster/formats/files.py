"""A cluster file as text, and as the nodes that it describes.

Three kinds: "launcher" (`ray up`: AWS, Google Cloud, machines of one's own), "kuberay" (RayJob),
"slurm" (a script for sbatch).
"""

from __future__ import annotations

import itertools
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tune_mm.config import read_yaml
from tune_mm.config.yaml import LIMIT, Document, shown
from tune_mm.errors import ConfigError

Kind = Literal["launcher", "kuberay", "slurm"]
_PROGRAMS = (
    "ray|python[0-9.]*|pip|kubectl|sbatch|scancel|srun|aws|gcloud|docker|helm|mlflow|install|rsync|export|sudo|"
    r"\S+/bin/(?:pip|python)|[A-Z_]+=\S+"
)
_COMMAND = re.compile(rf"#\s+((?:{_PROGRAMS})\s.*)")


@dataclass(frozen=True)
class ClusterLine:
    """A piece of the file."""

    text: str
    # From 1; 0 where the file does not have it (a default of Ray's).
    line: int


@dataclass(frozen=True)
class NodeGroup:
    """The head, or one group of workers. None: the file does not say."""

    name: str
    line: int
    # Shell text that runs where Ray runs (in the container, if there is one), in order.
    commands: tuple[ClusterLine, ...] = ()
    # Shell text that runs outside the container.
    hosted: tuple[ClusterLine, ...] = ()
    # What is set for Ray, by name; the last one counts.
    env: dict[str, ClusterLine] = field(default_factory=dict)
    # What the node is made from.
    image: ClusterLine | None = None
    # Folders that outlive the node.
    mounts: tuple[str, ...] = ()
    gpus: ClusterLine | None = None
    # At least so many of these nodes.
    least: ClusterLine | None = None
    # At most so many of these nodes.
    most: ClusterLine | None = None


@dataclass(frozen=True)
class ClusterFile:
    """A file that was read."""

    path: Path
    kind: Kind
    text: str
    # Of YAML.
    documents: tuple[Document, ...]
    head: NodeGroup
    workers: tuple[NodeGroup, ...]
    # Commands in the comments.
    documented: tuple[ClusterLine, ...]
    # Of the launcher.
    provider: str = ""
    # The command that a RayJob runs.
    entrypoint: ClusterLine | None = None

    @property
    def nodes(self) -> tuple[NodeGroup, ...]:
        """The head, then the workers."""
        return (self.head, *self.workers)

    def commands(self) -> Iterator[ClusterLine]:
        """Every command of the file once: of the comments, the entrypoint, the nodes."""
        seen: set[tuple[str, int]] = set()
        own = [line for node in self.nodes for line in (*node.hosted, *node.commands)]
        for line in (*self.documented, *([self.entrypoint] if self.entrypoint else []), *own):
            if (line.text, line.line) not in seen:
                seen.add((line.text, line.line))
                yield line

    def searches(self) -> tuple[ClusterLine, ...]:
        """The commands that begin a search (those with --resume or --extend take their settings
        from its record).
        """
        found = []
        for c in self.commands():
            if re.search(r"tune_mm[./]search\b", c.text):
                found.append(c)
        return tuple(
            c for c in found if not re.search(r"--(?:resume|extend|list|dry-run)\b", c.text)
        )


def text_of(path: Path) -> str:
    """The file's text. Raises ConfigError when there is none that could be a cluster file."""
    where = shown(path)
    try:
        if not path.is_file():
            raise ConfigError(f"{where}: " + ("not a file" if path.exists() else "no such file"))
        with path.open("rb") as file:
            raw = file.read(LIMIT + 1)
        if len(raw) > LIMIT:
            raise ConfigError(f"{where}: must be at most {LIMIT} bytes")
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{where}: must be UTF-8 text, got byte 0x{raw[error.start]:02x} (line {line})"
        ) from None
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror or error}") from None


def documents_of(path: Path, text: str) -> tuple[Document, ...]:
    """The YAML documents of the file, with the lines that they have in it. Raises ConfigError."""
    starts = [0, *(m.start() for m in re.finditer(r"^---(?=\s|$)", text, re.MULTILINE)), len(text)]
    parts = []
    for a, b in itertools.pairwise(starts):
        parts.append((text[:a].count("\n"), text[a:b].removeprefix("---")))
    filled = [
        (first, part) for first, part in parts if re.search(r"^\s*[^#\s]", part, re.MULTILINE)
    ]
    if len(filled) < 2:
        return (read_yaml(path),)
    found: list[Document] = []
    problems: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (first, part) in enumerate(filled):
            # One file per document, with empty lines before, so that its lines are those of the
            # whole.
            piece = Path(folder) / f"{number}.yaml"
            piece.write_text("\n" * first + part)
            try:
                document = read_yaml(piece)
                found.append(Document(document.data, document.lines, path))
            except ConfigError as error:
                problems += [p.replace(shown(piece), shown(path)) for p in error.problems]
    if problems:
        raise ConfigError(problems)
    return tuple(found)


def documented(text: str) -> tuple[ClusterLine, ...]:
    """The commands that the comments tell the user to type; lines that end in a backslash are
    joined.
    """
    found: list[ClusterLine] = []
    lines = text.splitlines()
    number = 0
    while number < len(lines):
        match = _COMMAND.match(lines[number])
        number += 1
        if match is None:
            continue
        first = number
        command = match[1]
        while command.endswith("\\") and number < len(lines):
            command = command[:-1] + lines[number].lstrip("# ")
            number += 1
        found.append(ClusterLine(command, first))
    return tuple(found)


def option(command: str, name: str) -> str | None:
    """The value of `--name value` or `--name=value` in a command; None where it is not given."""
    match = re.search(rf"(?<!\S)--{name}[=\s]+(\"[^\"]*\"|'[^']*'|[^\s\"']+)", command)
    if match:
        return match[1].strip("\"'")
    return None


def assigned(commands: tuple[ClusterLine, ...]) -> dict[str, ClusterLine]:
    """Environment that shell text sets: NAME=value of exports, of prefixes, and of lines that it
    writes to files.
    """
    found: dict[str, ClusterLine] = {}
    for command in commands:
        for match in re.finditer(
            r"(?<![\w$-])([A-Z][A-Za-z0-9_]*)=(\"[^\"]*\"|'[^']*'|[^\s\"';|&]*)", command.text
        ):
            found[match[1]] = ClusterLine(match[2].strip("\"'"), command.line)
    return found


def as_map(value: Any) -> dict[str, Any]:
    """`value` if it is a mapping, else an empty one: what the schema says of it is said elsewhere."""
    if isinstance(value, dict):
        return value
    return {}


def as_list(value: Any) -> list[Any]:
    """`value` if it is a list, else an empty one."""
    if isinstance(value, list):
        return value
    return []


def is_count(value: Any) -> bool:
    """Whether `value` is an integer (true and false are none)."""
    return isinstance(value, int) and not isinstance(value, bool)
