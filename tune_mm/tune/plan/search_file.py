"""`search.json`: what a search began with, read back and compared when it goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tune_mm.errors import UserError, nearest
from tune_mm.tune.space import space as S

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
    known = {r["name"]: r for r in _all(searches)}
    if name is not None:
        if name not in known:
            listed = f"; there are: {', '.join(known)}" if known else ""
            raise UserError(
                f"--name: no search '{name}' in {searches}{nearest(name, known)}{listed}"
            )
        found = known[name]
    elif space is not None:
        stem = S.read(space).path.stem
        ours = [r for r in known.values() if r["space"]["name"] == stem]
        if not ours:
            raise UserError(f"--resume: no search of the space '{stem}' in {searches}")
        found = max(ours, key=lambda r: str(r["created"]))
    else:
        raise UserError(
            "--resume and --extend need --space NAME (its latest search) or --name NAME"
        )
    if found.get("format") != FORMAT:
        raise UserError(
            f"{found['name']}: {RECORD} has format {found.get('format')}, this version reads {FORMAT}"
        )
    return found


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
    before, after = dict(_flat(old)), dict(_flat(new))
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            yield f"{key}: {what} has changed since ({where}): was {before.get(key)}, is {after.get(key)}"


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, list(value) if isinstance(value, tuple) else value
