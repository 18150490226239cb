"""Load, override and flatten configurations. Every mistake of a file and of its overrides is
reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tune_mm.config.explain import explain
from tune_mm.config.files import find_file
from tune_mm.config.overrides import changed, has, plain
from tune_mm.config.sections import PLUGINS, Config, Section, key_types
from tune_mm.config.yaml import few, is_utf8, read_value, read_yaml, write_yaml
from tune_mm.errors import ConfigError

SCALAR = (bool, int, float, str, type(None))


def load_config(path_or_name: str | Path, overrides: Sequence[str] = ()) -> Config:
    """The configuration of a file, or of a name in configs/, with `key=value` overrides. Raises
    ConfigError.
    """
    changes, origin, problems = _overrides(overrides)
    try:
        document = read_yaml(find_file("configs", path_or_name))
    except ConfigError as error:
        raise ConfigError([*error.problems, *problems]) from None
    return _validated(
        document.data, changes, origin, lambda key: f" ({document.where(key)})", problems
    )


def parse_config(raw: Mapping[str, Any], where: str = "") -> Config:
    """The configuration that nested values make. where: said in each message. Raises
    ConfigError.
    """
    return _validated(raw, {}, {}, lambda _: f" ({where})" if where else "")


def with_overrides(config: Config, values: Mapping[str, Any]) -> Config:
    """`config` with the values at dotted keys; {"method": "dgl"} switches the plug-in. Raises
    ConfigError.
    """
    return _validated(to_dict(config), values)


def check_field(config: Config, dotted: str, value: Any) -> str | None:
    """Why `config` would not accept this value there; None if it would."""
    try:
        with_overrides(config, {dotted: value})
    except ConfigError as error:
        return str(error)
    return None


def to_dict(config: Section) -> dict[str, Any]:
    """Nested plain values: mappings, lists and scalars."""
    return plain(config)


def dump_config(config: Config) -> str:
    """YAML that loads back equal."""
    return write_yaml(to_dict(config))


def flatten(config: Section) -> dict[str, Any]:
    """Scalars by dotted key, also those of a mapping to scalars; other lists and mappings of a
    field as JSON text.
    """
    found = {}
    for key, value in _leaves(config):
        found[key] = value if isinstance(value, SCALAR) else json.dumps(value)
    return found


def field_types(config: Config) -> dict[str, Any]:
    """The type annotation of every dotted key."""
    return dict(key_types(Config, to_dict(config)))


def _leaves(section: Section, prefix: str = "") -> Iterator[tuple[str, Any]]:
    values = to_dict(section)
    for name, value in section:
        if isinstance(value, Section):
            yield from _leaves(value, f"{prefix}{name}.")
        elif (
            isinstance(value, Mapping)
            and value
            and all(isinstance(v, SCALAR) for v in value.values())
        ):
            for key, inner in value.items():
                yield (f"{prefix}{name}.{key}", inner)
        else:
            yield prefix + name, values[name]


def _overrides(texts: Sequence[str]) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """Values by dotted key, what to say of where each came from, and what is wrong with the texts."""
    changes: dict[str, Any] = {}
    origin: dict[str, str] = {}
    problems: list[str] = []
    for text in texts:
        key, sign, value = text.partition("=")
        key = key.strip()
        if not sign or not all(key.split(".")) or not is_utf8(key):
            problems.append(f"override {_brief(text)}: must be key=value")
            continue
        origin[key] = f" (override {_brief(text)})"
        try:
            changes[key] = read_value(value)
        except ConfigError as error:
            problems += [f"{key}: {problem}{origin[key]}" for problem in error.problems]
    return changes, origin, problems


def _brief(text: str) -> str:
    """An override as it is shown: quoted, at most 100 characters."""
    shown = repr(text)
    if len(shown) <= 100:
        return shown
    return f"{shown[:97]}..."


def _validated(
    raw: Mapping[str, Any],
    changes: Mapping[str, Any],
    origin: Mapping[str, str] | None = None,
    where: Callable[[str], str] = lambda _: "",
    problems: Iterable[str] = (),
) -> Config:
    """`raw` with `changes` at dotted keys, validated.

    origin: where a change came from (" (override 'x=1')"); where: the place of a key of `raw`;
    problems: what was found wrong before. Raises ConfigError with all of them.
    """
    origin = origin or {}
    found = list(problems)
    values, failed = changed(raw, changes)
    origin = {**origin, **{f"{key}.name": text for key, text in origin.items() if key in PLUGINS}}
    for k in failed:
        found.append(f"{k}: no such key; {k.rpartition('.')[0]!r} is no section{origin.get(k, '')}")

    def name(key: str) -> tuple[str, str]:
        """For an error at `key`: the key to show, and its place (the change that made it, or the
        file).
        """
        for change in sorted(changes, key=len, reverse=True):
            if f"{key}.".startswith(f"{change}."):
                return key, origin.get(change, "")
            if change.startswith(f"{key}.") and (not has(raw, key) or change == f"{key}.name"):
                return change if not has(raw, key) else key, origin.get(change, "")
        return key, where(key)

    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        found += explain(error, values, dict(key_types(Config, values)), name)
    if found:
        raise ConfigError(few(found))
    return config
