"""`queue.json`: which store and experiment a queue is for.

format; uri (without a password); experiment; artifacts: folder of a new experiment's artifacts, or
null; known: whether the store has answered since the queue was begun (one that has and is a missing
file has been moved away, and must not be made anew).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tune_mm.errors import UserError
from tune_mm.filesystem import write_json

FILE = "queue.json"
FORMAT = 1
KEYS = {"format", "uri", "experiment", "artifacts", "known"}


def read(folder: Path) -> dict[str, Any]:
    """What the queue in `folder` is for. Raises UserError when the folder is no queue, or one of
    another version.
    """
    try:
        found = json.loads((folder / FILE).read_text())
        missing = KEYS - set(found)
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder} is no queue of tracking records: {error}") from None
    if missing:
        raise UserError(
            f"{folder} is no queue of tracking records: {FILE} lacks {', '.join(sorted(missing))}"
        )
    if found["format"] != FORMAT:
        raise UserError(f"{folder} has format {found['format']}, this version reads {FORMAT}")
    return dict(found)


def write(folder: Path, about: Mapping[str, Any]) -> None:
    """Write it whole, or not at all. Raises OSError."""
    write_json(folder / FILE, dict(about))
