"""`search.json`: what a search began with, read back and compared when it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tune_mm.errors import UserError, nearest
from tune_mm.tune.space.space import read as read_space

FORMAT = 1
RECORD = "search.json"
# What a search keeps for good: options by their flag.
_KEPT = {
    "trials": "--trials",
    "epochs": "--epochs",
    "seed": "--seed",
    "overrides": "--set",
    "storage": "--storage",
}


def find(searches: Path, name: str | None, space: str | None) -> dict[str, Any]:
    """search.json of the search `name`, or of the latest one of `space`. Raises UserError."""
    known = {record["name"]: record for record in _all(searches)}
    if name is not None:
        found = _named(name, known, searches)
    elif space is not None:
        found = _latest(space, known.values(), searches)
    else:
        raise UserError(
            "--resume and --extend need --space NAME (its latest search) or --name NAME"
        )
    if found.get("format") != FORMAT:
        raise UserError(
            f"{found['name']}: {RECORD} has format {found.get('format')}, "
            f"this version reads {FORMAT}"
        )
    return found


def _named(name: str, known: Mapping[str, dict[str, Any]], searches: Path) -> dict[str, Any]:
    if name in known:
        return known[name]
    listed = f"; there are: {', '.join(known)}" if known else ""
    raise UserError(f"--name: no search '{name}' in {searches}{nearest(name, known)}{listed}")


def _latest(space: str, records: Iterable[dict[str, Any]], searches: Path) -> dict[str, Any]:
    stem = read_space(space).path.stem
    ours = [record for record in records if record["space"]["name"] == stem]
    if not ours:
        raise UserError(f"--resume: no search of the space '{stem}' in {searches}")
    return max(ours, key=lambda record: str(record["created"]))


def _all(searches: Path) -> Iterator[dict[str, Any]]:
    for file in sorted(searches.glob(f"*/{RECORD}")):
        try:
            yield json.loads(file.read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise UserError(f"{file}: cannot be read: {error}") from None


def changed(options: Mapping[str, Any], record: Mapping[str, Any]) -> Iterator[str]:
    """Flags that ask for something else than the search began with."""
    for key, flag in _KEPT.items():
        given = options[key]
        if given not in (None, {}) and given != record[key]:
            hint = "; --extend N adds trials" if key == "trials" else ""
            yield f"{flag}: the search has {record[key]}, got {given}{hint}"


def differences(
    what: str, where: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[str]:
    """One line per key that was added, removed or changed."""
    before = dict(_flat(old))
    after = dict(_flat(new))
    for key in sorted({*before, *after}):
        was = before.get(key)
        now = after.get(key)
        if was != now:
            yield f"{key}: {what} has changed since ({where}): was {was}, is {now}"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values by dotted key; tuples as the lists that JSON makes of them."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, tuple):
        yield prefix, list(value)
    else:
        yield prefix, value
