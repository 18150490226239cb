"""YAML by the 1.2 core rules, with lines: on, off, yes and no are text, 1e-3 is a number, a
repeated key is an error.

Nothing in a file can run code, refer to itself or grow: tags beyond the plain types, aliases, deep
nesting, integers of more than 64 bits and large files are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tune_mm.errors import ConfigError

LIMIT = 1_000_000  # bytes
DEPTH = 50
VALUES = 10_000
KEY = 200  # characters
PROBLEMS = 50  # that are told at once
_TAG = "tag:yaml.org,2002:"
_KINDS = {"str": "UTF-8 text", "null": "null", "bool": "bool", "int": "int", "float": "float"}
_PLAIN = (
    ("null", r"~|null|Null|NULL|", ("~", "n", "N", "")),
    ("bool", r"true|True|TRUE|false|False|FALSE", tuple("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", tuple("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        tuple("-+.0123456789"),
    ),
)


class _Loader(yaml.SafeLoader):
    """Composes nodes only; `_Reader` turns them into values."""

    depth = count = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.MarkedYAMLError(
                problem=f"alias '*{event.anchor[:40]}' is not allowed",
                problem_mark=event.start_mark,
            )
        self.depth = self.depth + 1
        self.count = self.count + 1
        if self.depth > DEPTH:
            too = f"nested more than {DEPTH} deep"
        else:
            too = ""
        too = too or (f"holds more than {VALUES} keys and values" if self.count > VALUES else "")
        if too:
            raise yaml.MarkedYAMLError(problem=too, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.1 or 1.2 would read as anything but text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {}
for _kind, _pattern, _first in _PLAIN:
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(f"(?:{_pattern})$"), list(_first))


@dataclass(frozen=True)
class Document:
    """A file's values, and the line (from 1) of each dotted key."""

    data: dict[str, Any]
    lines: Mapping[str, int]
    path: Path

    def line_of(self, key: str) -> int | None:
        """The line of `key` ("optim.lr", list items "a.0"); None where the file does not have it."""
        return self.lines.get(key)

    def where(self, key: str = "") -> str:
        """ "configs/x.yaml line 7": the line of `key`, else of the nearest section around it."""
        while key and key not in self.lines:
            key = key.rpartition(".")[0]
        line = self.lines.get(key)
        if line:
            return f"{shown(self.path)} line {line}"
        return shown(self.path)


def shown(path: Path) -> str:
    """`path` relative to the working directory where it lies below it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except (ValueError, OSError):
        return str(path)


class _Reader:
    """Turns nodes into values and notes lines and problems on the way."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.lines: dict[str, int] = {}
        self.problems: list[str] = []

    def value(self, node: yaml.Node, at: str) -> Any:
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self._mapping(node, at)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            found = []
            for i, item in enumerate(node.value):
                found.append(self._child(item, at, str(i), item))
            return found
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, at)
        return self._refuse(node, at, f"tag '{_short(node.tag)}' is not allowed")

    def _mapping(self, node: yaml.MappingNode, at: str) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if key_node.tag != _TAG + "str" or not isinstance(key, str):
                self._refuse(key_node, at, "a key must be text; quote it")
            elif len(key) > KEY:
                self._refuse(
                    key_node, at, f"a key must have at most {KEY} characters, got {len(key)}"
                )
            elif key in out:
                first = self.lines[f"{at}.{key}" if at else key]
                self._refuse(
                    key_node, f"{at}.{key}" if at else key, f"given twice; first on line {first}"
                )
            else:
                out[key] = self._child(value_node, at, key, key_node)
        return out

    def _child(self, node: yaml.Node, at: str, name: str, marked: yaml.Node) -> Any:
        path = f"{at}.{name}" if at else name
        self.lines[path] = marked.start_mark.line + 1
        return self.value(node, path)

    def _scalar(self, node: yaml.ScalarNode, at: str) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        try:
            if kind == "str":
                text.encode()  # an escape may stand for half a character, which no file or terminal takes
                return text
            if kind == "null" and text in {"", "~", "null", "Null", "NULL"}:
                return None
            if kind == "bool":
                return {"true": True, "false": False}[text.lower()]
            if kind == "int":
                number = int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
                if -(2**63) <= number < 2**63:
                    return number
                raise ValueError("more than 64 bits")
            if kind == "float":
                return float(re.sub(r"^([-+]?)\.(inf|nan)$", r"\1\2", text.lower()))
        except (KeyError, ValueError):
            return self._refuse(node, at, f"cannot be read as {_KINDS[kind]}, got {text[:40]!r}")
        return self._refuse(node, at, f"tag '{_short(node.tag)}' is not allowed")

    def _refuse(self, node: yaml.Node, at: str, problem: str) -> None:
        if self.where:
            line = f" line {node.start_mark.line + 1}"
        else:
            line = ""
        what = f"{at}: " if at else ""
        self.problems.append(what + problem + (f" ({self.where}{line})" if self.where else ""))


def _short(tag: str) -> str:
    """A tag as it is written, at most 60 characters."""
    text = tag.replace(_TAG, "!!")
    if len(text) <= 60:
        return text
    return f"{text[:57]}..."


def is_utf8(name: str) -> bool:
    """Whether UTF-8 can hold a name: other bytes of a file system or a command line come as half
    characters.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def few(problems: Sequence[str]) -> list[str]:
    """The first problems, and how many more there are: a file that is all wrong must not fill the
    screen.
    """
    more = len(problems) - PROBLEMS
    return [*problems[:PROBLEMS], *([f"and {more} more mistakes"] if more > 0 else [])]


def _compose(text: str) -> yaml.Node | None:
    """The root node. Raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        node: yaml.Node | None = loader.get_single_node()
        return node
    finally:
        loader.dispose()


def _text(path: Path) -> str:
    """The file's text. Raises ConfigError."""
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
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"{where}: cannot be read: {reason}") from None


def _syntax(error: yaml.YAMLError) -> str:
    """PyYAML's complaint on one line, with the line of the file where it knows it."""
    mark = getattr(error, "problem_mark", None)
    parts = [getattr(error, "context", None), getattr(error, "problem", None)]
    what = ", ".join(p for p in parts if p) or str(error).splitlines()[0]
    if mark:
        return f"{what} (line {mark.line + 1})"
    return what


def read_yaml(path: str | Path) -> Document:
    """The mapping that a YAML file holds. Raises ConfigError (unreadable file, wrong syntax,
    repeated keys ...).
    """
    path = Path(path)
    where = shown(path)
    text = _text(path)
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: not valid YAML: {_syntax(error)}") from None
    reader = _Reader(where)
    data = reader.value(node, "") if node is not None else None
    if reader.problems:
        raise ConfigError(few(reader.problems))
    if not isinstance(data, dict):
        if data is None:
            what = "is empty"
        else:
            what = f"got {type(data).__name__}"
        raise ConfigError(f"{where}: must be a mapping (key: value lines), {what}")
    return Document(data, reader.lines, path)


def read_value(text: str) -> Any:
    """The value of an override, by the rules of the files: "1e-3" -> 0.001, "[1, 2]" -> [1, 2].
    Raises ConfigError.
    """
    try:
        node = _compose(text)
    except yaml.YAMLError as error:
        what = _syntax(error).removesuffix(" (line 1)")
        raise ConfigError(f"not valid YAML: {what}; quote the value to have it as text") from None
    reader = _Reader("")
    value = reader.value(node, "") if node is not None else None
    if reader.problems:
        raise ConfigError(few(reader.problems))
    return value


def write_yaml(data: Mapping[str, Any]) -> str:
    """YAML text that `read_yaml` reads back equal."""
    text: str = yaml.dump(
        dict(data), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120
    )
    return text
