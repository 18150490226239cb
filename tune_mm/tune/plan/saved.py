"""The files that make a search or a suite resumable, read with care: anybody may have edited them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ValidationError

from tune_mm.config import Section
from tune_mm.config.explain import explain
from tune_mm.errors import UserError
from tune_mm.tune.space.space import section_keys

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

log = logging.getLogger("tune_mm.tune")


def require_name(name: str) -> str:
    """A name that a folder can have. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError("must be letters, digits, '.', '_' and '-' (at most 100)")
    return name


FolderName = Annotated[str, AfterValidator(require_name)]


class SavedBaseline(Section):
    """A baseline's space as its file was."""

    name: str
    # What the file held.
    values: dict[str, Any]


class SavedSpace(Section):
    """A space, or a suite, as its file was."""

    name: str
    # Of its file.
    path: str
    # What the file held.
    values: dict[str, Any]


def load(path: Path, model: type[Section], version: int) -> dict[str, Any]:
    """The JSON file at `path`, checked against `model` and of format `version`.

    Raises FileNotFoundError, and UserError with all that is wrong.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must be a JSON object, got {type(values).__name__}")
    found = values.get("format")
    if found != version:
        raise UserError(f"{path}: has format {found!r}, this version reads {version}")
    try:
        model.model_validate(values)
    except ValidationError as error:
        keys = dict(section_keys(model))
        problems = explain(error, values, keys, lambda key: (key, f" ({path})"))
        raise UserError("\n".join(problems)) from None
    named = values.get("name")
    if named != path.parent.name:
        raise UserError(
            f"{path}: name: must be its folder's, '{path.parent.name}', got {named!r}; "
            "rename the folder back"
        )
    return values


def load_all(
    folder: Path, file_name: str, model: type[Section], version: int
) -> Iterator[dict[str, Any]]:
    """All such files one level below `folder`; one that cannot be read is skipped with a note."""
    for path in sorted(folder.glob(f"*/{file_name}")):
        try:
            yield load(path, model, version)
        except FileNotFoundError:
            continue  # removed meanwhile
        except UserError as error:
            log.warning("skipped: %s", str(error).splitlines()[0])
