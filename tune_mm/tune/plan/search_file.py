"""`search.json`: what a search began with, read back and compared when it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from tune_mm.config import Section
from tune_mm.errors import UserError, nearest
from tune_mm.tune.plan.saved import FolderName, SavedBaseline, SavedSpace, load, load_all
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


class SearchFile(Section):
    """What search.json holds."""

    format: int
    name: FolderName
    # <name>-<8 hex digits>: tells the search from an earlier one of the same name.
    uid: FolderName
    # ISO 8601.
    created: str
    space: SavedSpace
    baseline: SavedBaseline | None
    # The whole config that the space made.
    config: dict[str, Any]
    trials: int = Field(ge=0)
    baseline_trials: int = Field(ge=0)
    seed: int = Field(ge=0, lt=2**31)
    # As given by --epochs.
    epochs: int | None = Field(ge=1)
    # As given by --set.
    overrides: dict[str, Any]
    data_root: str | None
    require_real: bool
    tracking_uri: str | None
    storage: str | None
    # The suite that the search is one of.
    suite: str | None
    # Whether everything of the search is written.
    closed: bool = False


def find(searches: Path, name: str | None, space: str | None) -> dict[str, Any]:
    """search.json of the search `name`, or of the latest one of `space`. Raises UserError."""
    if name is not None:
        return _named(name, searches)
    if space is not None:
        return _latest(space, searches)
    raise UserError("--resume and --extend need --space NAME (its latest search) or --name NAME")


def _named(name: str, searches: Path) -> dict[str, Any]:
    known = []
    for path in sorted(searches.glob(f"*/{RECORD}")):
        known.append(path.parent.name)
    if name not in known:
        listed = f"; there are: {', '.join(known)}" if known else ""
        raise UserError(f"--name: no search '{name}' in {searches}{nearest(name, known)}{listed}")
    return load(searches / name / RECORD, SearchFile, FORMAT)


def _latest(space: str, searches: Path) -> dict[str, Any]:
    stem = read_space(space).path.stem
    records = load_all(searches, RECORD, SearchFile, FORMAT)
    ours = [record for record in records if record["space"]["name"] == stem]
    if not ours:
        raise UserError(f"--resume: no search of the space '{stem}' in {searches}")
    return max(ours, key=lambda record: str(record["created"]))


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
