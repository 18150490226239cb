"""The store: folders of memory-mapped arrays, computed once from a data set's files and shared by
all processes.

A store lies in <cache>/store/<name>-<kind>-<key>. The key is a digest of what decides the values:
the kind, the settings and the content of every file, by sample id. Data that were moved or copied
are found again, a file that changed makes another store. `<name>-<kind>.files.json` beside it
remembers the digest of files by path, size and time of change, so that files are read again only
when one of these changed.

A store is built by one process under a lock that ends with it, in a hidden folder that is renamed
when all is on disk: whatever has its final name is whole. What killed builds left is removed by the
next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from tune_mm.data.arrays.checks import DataError
from tune_mm.data.store import failures, npy
from tune_mm.data.store.threads import each
from tune_mm.filesystem import cache_folder, fsync, locked, try_locked, write_json

# Raise it when stores of an earlier layout must not be read any more.
FORMAT = 1
META = "meta.json"
# A file that changed so recently may change again within the same tick of the file system's clock.
SETTLED_NS = 2_000_000_000

Files = tuple[Path, ...]


@dataclass(frozen=True)
class StoreRecipe:
    """What a store is made from."""

    # The data set.
    name: str
    # What is stored ("spectrograms").
    kind: str
    # JSON values that, beside the files, decide the values.
    settings: Mapping[str, Any]
    # The files of each sample by id, in order.
    sources: Mapping[str, Files]
    # Say nothing of it, for one store of many.
    quiet: bool = False

    @property
    def stem(self) -> str:
        """Start of every file name of this data set and kind."""
        return re.sub(r"[^\w.-]", "_", f"{self.name}-{self.kind}")


@dataclass(frozen=True)
class OpenedStore:
    """A whole store."""

    folder: Path
    # Place of each sample by id.
    rows: Mapping[str, int]
    # Samples that could not be read, with the reason.
    bad: Mapping[str, str]


# Fills the folder with rows in the order of the ids and returns the samples that could not be read,
# with the reason.
Build = Callable[[Path, list[str]], Mapping[str, str]]


def open_store(recipe: StoreRecipe, build: Build) -> OpenedStore:
    """The store of `recipe`, built first if it is not there.

    Raises DataError when there is nothing to store, when the cache cannot be written, when a store
    is damaged and when the system fails to read a file.
    """
    if not recipe.sources:
        raise DataError(f"{recipe.name}: no files to make {recipe.kind} of")
    root = cache_folder() / "store"
    try:
        root.mkdir(parents=True, exist_ok=True)
        key = _key(recipe, _digests(recipe, root))
        folder = root / f"{recipe.stem}-{key}"
        if not folder.is_dir():
            _ensure(folder, recipe, build)
    except OSError as error:
        hint = "TUNE_MM_CACHE names another cache folder"
        raise DataError(f"{root}: cannot be written: {error.strerror or error}; {hint}") from error
    return _read(folder)


def _key(recipe: StoreRecipe, digests: Mapping[str, str]) -> str:
    """16 hexadecimal digits."""
    decisive = [FORMAT, recipe.kind, recipe.settings, sorted(digests.items())]
    text = json.dumps(decisive, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _digests(recipe: StoreRecipe, root: Path) -> dict[str, str]:
    """Digest of the content of each sample's files by id; files are read only where the lookup has
    no entry.
    """
    path = root / f"{recipe.stem}.files.json"
    known = _lookup(path)
    ids = sorted(recipe.sources)

    def digest(number: int) -> tuple[str, str]:
        files = recipe.sources[ids[number]]
        seen = _fingerprint(files)
        return seen, known.get(seen) or _digest(files)

    found = each(digest, len(ids), f"{recipe.name}: reading files")
    fresh: dict[str, str] = {}
    digests: dict[str, str] = {}
    for name, (seen, value) in zip(ids, found, strict=True):
        digests[name] = value
        if seen and seen not in known:
            fresh[seen] = value
    if fresh:
        # In a cache that others filled and that cannot be written, files are read again each time.
        with suppress(OSError), locked(path.with_name(f"{path.name}.lock")):
            write_json(path, {**_lookup(path), **fresh}, indent=None)
    return digests


def _lookup(path: Path) -> dict[str, str]:
    """Digests of content by fingerprint. An unreadable lookup is as good as none: it is written
    anew.
    """
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return found


def _fingerprint(files: Files) -> str:
    """Digest of path, size and time of change of the files; "" where one is not there or has only
    just changed.
    """
    newest = time.time_ns() - SETTLED_NS
    seen = []
    for path in files:
        try:
            found = path.stat()
        except OSError:
            return ""
        if found.st_mtime_ns > newest:
            return ""
        seen.append((os.path.abspath(path), found.st_size, found.st_mtime_ns))
    return hashlib.blake2b(json.dumps(seen).encode(), digest_size=16).hexdigest()


def _digest(files: Files) -> str:
    """Digest of the content of the files, in order. Raises MachineError."""
    total = hashlib.blake2b(digest_size=16)
    for path in files:
        try:
            with path.open("rb") as file:
                own = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16))
            total.update(own.digest())
        except OSError as error:
            failures.refuse(path, error)
            # Shorter than a digest: no content can look like it.
            total.update(b"unreadable")
    return total.hexdigest()


def _ensure(folder: Path, recipe: StoreRecipe, build: Build) -> None:
    """Builds the store unless another process does so, which is waited for."""
    lock = _lock_of(folder)
    with try_locked(lock) as held:
        if held:
            _build_missing(folder, recipe, build)
            return
    _say(f"waiting for another process that stores {recipe.kind} in {folder}", recipe)
    with locked(lock):
        _build_missing(folder, recipe, build)


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _build_missing(folder: Path, recipe: StoreRecipe, build: Build) -> None:
    """Builds the store unless it is there by now. The lock is held."""
    if folder.is_dir():
        return
    _sweep(folder)
    _build(folder, recipe, build)


def _sweep(own: Path) -> None:
    """Removes what killed builds left: hidden folders whose lock nobody holds. The lock of `own` is
    held by us.
    """
    for part in own.parent.glob(".*.part"):
        name = part.name.removeprefix(".").removesuffix(".part")
        folder = own.with_name(name)
        if folder == own:
            shutil.rmtree(part)
            continue
        with try_locked(_lock_of(folder)) as held:
            if held:
                shutil.rmtree(part, ignore_errors=True)


def _build(folder: Path, recipe: StoreRecipe, build: Build) -> None:
    began = time.monotonic()
    ids = sorted(recipe.sources)
    part = folder.with_name(f".{folder.name}.part")
    try:
        part.mkdir()
        bad = dict(build(part, ids))
        meta = {
            "format": FORMAT,
            "kind": recipe.kind,
            "settings": recipe.settings,
            "ids": ids,
            "bad": bad,
        }
        write_json(part / META, meta, indent=None)
        fsync(part)
        part.rename(folder)
        fsync(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    what = f"{len(ids)} {recipe.kind}"
    if bad:
        what += f" ({len(bad)} of them cannot be read)"
    seconds = time.monotonic() - began
    _say(f"{what} stored in {seconds:.0f} s: {folder}", recipe)


def _read(folder: Path) -> OpenedStore:
    """Raises DataError when the store is damaged."""
    try:
        meta = json.loads((folder / META).read_bytes())
        rows = {name: row for row, name in enumerate(meta["ids"])}
        return OpenedStore(folder, rows, meta["bad"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise unread(folder, META, error) from error


def damaged(folder: Path, file: str) -> DataError:
    """The error for a store whose `file` is not what was written."""
    return DataError(f"{folder}: this store is damaged ({file}); remove the folder and run again")


def unread(folder: Path, file: str, error: Exception) -> DataError:
    """The error for a store whose `file` raised `error` when it was read: the store may be healthy
    when the system says why (too many open files), unless it says that the file is not there.
    """
    if isinstance(error, OSError) and error.errno and not isinstance(error, FileNotFoundError):
        return failures.failed(folder / file, error)
    return damaged(folder, file)


def read_array(folder: Path, file: str, mode: Literal["r", "c"] = "r") -> NDArray[Any]:
    """A file of the store as a memory map, whose pages all processes share. Raises DataError.

    mode: "r" read-only; "c" copy-on-write, for torch, which takes no read-only arrays: nobody must
    write.
    """
    try:
        return np.asarray(np.load(folder / file, mmap_mode=mode, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise unread(folder, file, error) from error


class StoreWriter:
    """A .npy file of known dtype and shape that threads fill in any order; what is never written
    stays 0. Raises OSError, also when the disk has too little room for the whole file.
    """

    def __init__(self, path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
        self._dtype = np.dtype(dtype)
        npy.require_room(path.parent, npy.size_of(dtype, shape))
        self._file = npy.create(path, dtype, shape)
        self._start = self._file.tell()

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        with self._file:
            os.fsync(self._file.fileno())

    def put(self, place: int, values: NDArray[Any]) -> None:
        """`values` at item `place` of the flattened array. Raises OSError."""
        offset = self._start + place * self._dtype.itemsize
        npy.write_at(self._file, offset, np.ascontiguousarray(values, self._dtype))


def _say(line: str, recipe: StoreRecipe) -> None:
    if not recipe.quiet:
        print(f"{recipe.name}: {line}", file=sys.stderr, flush=True)
