"""Dotted keys into nested values: overrides, and what a search changes from trial to trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from tune_mm.config.sections import PLUGINS

_ABSENT = object()


def plain(section: BaseModel) -> dict[str, Any]:
    """Nested plain values of a section: mappings, lists and scalars."""
    return section.model_dump(mode="json")


def frozen(value: Any) -> Any:
    """A copy of nested values with lists as tuples, which is what strict sections take."""
    if isinstance(value, BaseModel):
        return frozen(plain(value))
    if isinstance(value, Mapping):
        return {k: frozen(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return tuple(frozen(v) for v in value)
    return value


def at(values: Any, key: str, default: Any = None) -> Any:
    """What nested values have at a dotted key; `default` where they have nothing."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return default
        values = values[part]
    return values


def has(values: Mapping[str, Any], key: str) -> bool:
    """Whether the nested values have something at a dotted key."""
    return at(values, key, _ABSENT) is not _ABSENT


def changed(raw: Mapping[str, Any], changes: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A copy of `raw` with each change at its dotted key, and the keys that a value above them kept
    out.

    The order of the changes does not matter: sections come before their fields, and naming a
    plug-in (which drops the fields of the one before) before its fields.
    """
    values = frozen(raw)
    for key in PLUGINS:
        if isinstance(name := at(values, key), str):
            _put(values, key, {"name": name})
    named = {}
    for k, v in changes.items():
        named[f"{k}.name" if k in PLUGINS and isinstance(v, str) else k] = frozen(v)
    failed = [key for key in sorted(named, key=_order) if not _put(values, key, named[key])]
    return values, failed


def _order(key: str) -> tuple[int, bool]:
    above, _, last = key.rpartition(".")
    names_plugin = last == "name" and above in PLUGINS
    return key.count(".") - names_plugin, not names_plugin


def _put(values: dict[str, Any], key: str, value: Any) -> bool:
    """Sets a dotted key in place. False where something that is no mapping stands above it."""
    above, _, last = key.rpartition(".")
    for part in above.split(".") if above else ():
        values = values.setdefault(part, {})
        if not isinstance(values, dict):
            return False
    if above in PLUGINS and last == "name" and values.get("name") != value:
        values.clear()
    values[last] = value
    return True
