"""Lists of clips and the folders they lie in: rows of text files; wav files, folders and images by
name.

Each folder is listed once, without a look at its files one by one: 200,000 clips take seconds.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tune_mm.config.yaml import is_utf8
from tune_mm.data.arrays.checks import DataError
from tune_mm.errors import nearest

IMAGES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class ListedRow:
    """One row of a list. where: its file and line, for messages."""

    where: str
    fields: tuple[str, ...]


def rows(path: Path, columns: Sequence[str], delimiter: str = ",") -> list[ListedRow]:
    """The rows of a UTF-8 text file (a BOM is taken off, blank lines are skipped), fields without
    spaces around them.

    columns: what each row must hold, for the message. Between commas fields may be quoted. Raises
    DataError with file and line.
    """
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    lines = io.StringIO(text(path), newline="")
    reader = csv.reader(
        lines, delimiter=delimiter, quoting=quoting, skipinitialspace=True, strict=True
    )
    found: list[ListedRow] = []
    try:
        for raw in reader:
            fields = tuple(field.strip() for field in raw)
            if not any(fields):
                continue
            where = f"{path} line {reader.line_num}"
            if len(fields) != len(columns) or not all(fields):
                got = delimiter.join(raw)
                raise DataError(f"{where}: must be {delimiter.join(columns)}, got {got!r}")
            found.append(ListedRow(where, fields))
    except csv.Error as error:
        raise DataError(f"{path} line {reader.line_num}: is not a readable row: {error}") from error
    return found


def text(path: Path) -> str:
    """The text of a UTF-8 file without its BOM. Raises DataError naming the file."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be UTF-8 text, got another byte at {error.start}") from error


def known(label: str, names: Sequence[str], where: str) -> str:
    """`label` itself. Raises DataError with the nearest of `names` when it is none of them."""
    if label not in names:
        several = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise DataError(f"{where}: no class '{label}'{nearest(label, names)}; available: {several}")
    return label


def same(name: str) -> str:
    """The name as the id of a clip."""
    return name


def wavs(places: Iterable[Path], to_id: Callable[[str], str] = same) -> dict[str, Path]:
    """The .wav files in the folders `places` by clip id; of two with one id, that of the first
    folder and name.
    """
    return ending(places, ".wav", to_id)


def ending(places: Iterable[Path], end: str, to_id: Callable[[str], str] = same) -> dict[str, Path]:
    """The files whose names end in `end` (lower case), by their name without it; hidden ones are
    left out.
    """
    found = (
        (e.name[: -len(end)], e)
        for e in _entries(places)
        if e.name.lower().endswith(end) and not e.name.startswith(".")
    )
    return _by_id(found, to_id)


def folders(places: Iterable[Path], to_id: Callable[[str], str] = same) -> dict[str, Path]:
    """The folders in the folders `places` by clip id, for which a `.mp4` at the end of the name is
    taken off.
    """
    found = (
        (e.name.removesuffix(".mp4"), e)
        for e in _entries(places)
        if not e.name.startswith(".") and e.is_dir()
    )
    return _by_id(found, to_id)


def _entries(places: Iterable[Path]) -> Iterable[os.DirEntry[str]]:
    """What the folders hold, by name within each; one that is not there holds nothing. Raises
    DataError (see `_usual`).

    Links to files and folders are followed: many lay out a subset of a data set that way.
    """
    for place in places:
        try:
            with os.scandir(place) as entries:
                found = sorted(entries, key=lambda e: e.name)
            for entry in found:
                _usual(entry)
            yield from found
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise DataError(f"{place}: cannot be listed: {error.strerror or error}") from error


def _usual(entry: os.DirEntry[str]) -> None:
    """Raises DataError for a link that leads nowhere, for a device or a pipe, and for a name that
    is no UTF-8.

    The kind of an entry comes with the listing; only links cost a look at what they lead to.
    """
    if not is_utf8(entry.name):
        raise DataError(f"{os.path.dirname(entry.path)}: names must be UTF-8, got {entry.name!r}")
    with contextlib.suppress(OSError):  # of a link in a circle
        if entry.is_file() or entry.is_dir():
            return
    if entry.is_symlink() and not os.path.exists(entry.path):
        raise DataError(
            f"{entry.path}: is a symbolic link that leads nowhere, to {os.readlink(entry.path)}"
        )
    raise DataError(f"{entry.path}: must be a file or a folder, got a device, a pipe or a socket")


def _by_id(
    found: Iterable[tuple[str, os.DirEntry[str]]], to_id: Callable[[str], str]
) -> dict[str, Path]:
    out: dict[str, Path] = {}
    for name, entry in found:
        out.setdefault(to_id(name), Path(entry.path))
    return out


def images(folder: Path) -> tuple[Path, ...]:
    """The image files of a folder in natural order (frame_2 before frame_10); hidden files are no
    images.
    """
    names = []
    for e in _entries([folder]):
        if e.name.lower().endswith(IMAGES) and not e.name.startswith("."):
            names.append(e.name)
    return tuple(folder / name for name in sorted(names, key=natural))


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts the numbers in a name by their value."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


def require_classes(names: Sequence[str], path: Path) -> None:
    """Raises DataError naming the list when it holds fewer than two classes."""
    if len(names) < 2:
        found = ", ".join(names) or "none"
        raise DataError(f"{path}: must hold at least 2 classes, got {found}")
