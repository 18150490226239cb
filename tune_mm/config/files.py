"""Where the YAML files are: a path, ./configs/NAME.yaml, or the package's own copy."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from tune_mm.errors import ConfigError, nearest

Folder = Literal["configs", "search_spaces"]
_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(folder: Folder) -> Path:
    """The package's own files: inside the package when installed from a wheel, beside it in a
    checkout.
    """
    installed = _PACKAGE / f"_{folder}"
    if installed.is_dir():
        return installed
    return _PACKAGE.parent / folder


def file_names(folder: Folder) -> tuple[str, ...]:
    """Names that `find_file` knows, sorted: of ./<folder> and of the package. Subfolders keep
    theirs: "paper/table4".
    """
    found = set()
    for root in (Path(folder), shipped(folder)):
        for path in root.glob("**/*.yaml"):
            found.add(path.relative_to(root).with_suffix("").as_posix())
    return tuple(sorted(found))


def find_file(folder: Folder, name_or_path: str | Path) -> Path:
    """The file that a path or a name stands for. Raises ConfigError with the nearest name for an
    unknown one.
    """
    given = str(name_or_path)
    path = Path(given)
    written_as_path = path.suffix in {".yaml", ".yml"}
    candidates = [path] if written_as_path else []
    if path.is_relative_to(folder):
        inner = path.relative_to(folder)
    else:
        inner = path
    if not path.is_absolute():
        if written_as_path:
            inside = inner
        elif inner.name:
            inside = inner.with_name(f"{inner.name}.yaml")
        else:
            inside = inner
        candidates += [Path(folder) / inside, shipped(folder) / inside]
    for candidate in candidates:
        if _is_file(candidate):
            return candidate
    known = file_names(folder)
    what = "no such file" if written_as_path else "no such name"
    hint = nearest(inner.with_suffix("").as_posix() if written_as_path else given, known)
    raise ConfigError(f"{folder}: {what} '{given}'{hint}; available: {', '.join(known) or 'none'}")


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file system takes (too long, a null byte)
        return False
