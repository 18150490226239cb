"""What every data set provides, where its files are looked for, and what happens when they are not
there.

A data set is one file in this folder that exports `plugin`, a subclass of `DataPlugin`. It reads
the community's files unchanged and writes synthetic ones in the same format. Files are looked for
at <root>/<folder> and at <root> itself, where root is --data-root, else the environment variable
TUNE_MM_DATA, else ./data.

Synthetic files carry a marker, `SYNTHETIC.json`, with the options that made them: wherever they are
found, the data are known not to be real.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from tune_mm import plugins
from tune_mm.config import Section
from tune_mm.core.types import DataKind, Dataset, Transform
from tune_mm.data.arrays.checks import DataError, check
from tune_mm.data.store import shared
from tune_mm.data.synthetic.vectors import VERSION, SyntheticOptions
from tune_mm.errors import ConfigError, nearest
from tune_mm.filesystem import ENV_CACHE, cache_folder

__all__ = [
    "ENV_CACHE",
    "DataError",
    "DataPlugin",
    "Source",
    "SyntheticOptions",
    "cache_folder",
    "describe",
    "load",
    "make",
    "options_of",
    "plugin_of",
    "resolve",
]

ENV_ROOT = "TUNE_MM_DATA"
MARKER = "SYNTHETIC.json"
AXES = {1: "D", 2: "T x D", 3: "C x H x W"}


class DataPlugin(ABC):
    """One data set. All methods are class methods; `place` is the folder that holds its files."""

    # The fields of `data:`, all with defaults, so that `Config()` is valid.
    Config: ClassVar[type[Section]]
    # Where below the root its files are looked for (see `folder_of`).
    folder: ClassVar[str]
    # Other names that folder goes by.
    aliases: ClassVar[tuple[str, ...]] = ()
    # How many axes a sample of a modality may have (1 a vector, 2 a sequence, 3 an image).
    axes: ClassVar[tuple[int, ...]] = (2,)
    # Whether samples stay in a store of the plug-in's own; else `load` returns tensors in memory.
    stored: ClassVar[bool] = False

    @classmethod
    def folder_of(cls, config: Any) -> str:
        """`folder`, or what the configuration names instead."""
        return cls.folder

    @classmethod
    @abstractmethod
    def files(cls, config: Any) -> tuple[str, ...]:
        """Paths below `place` without which the data set cannot be read; a folder of files ends in
        a slash.
        """

    @classmethod
    def optional(cls, config: Any) -> tuple[str, ...]:
        """Paths below `place` that are read where they are there."""
        return ()

    @classmethod
    def present(cls, config: Any, place: Path) -> bool:
        """Are all the files there?"""
        return all(cls.there(place / name) for name in cls.files(config))

    @classmethod
    def there(cls, path: Path) -> bool:
        """Is one of `files` there? A data set of folders says what these must hold."""
        return path.is_file()

    @classmethod
    @abstractmethod
    def load(cls, config: Any, place: Path) -> Dataset:
        """The three splits as CPU tensors. Raises DataError naming the file."""

    @classmethod
    def transforms(cls, config: Any) -> Mapping[str, Transform]:
        """What is done to batches of each split: see `Split.transform`."""
        return {}

    @classmethod
    @abstractmethod
    def options(cls, config: Any) -> SyntheticOptions:
        """The small synthetic data set that stands in when the real one is not there."""

    @classmethod
    @abstractmethod
    def write(cls, config: Any, place: Path, options: SyntheticOptions) -> None:
        """Synthetic files in the real on-disk format, into the empty folder `place`."""


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a data set was found."""

    # The folder that holds its files.
    root: Path
    kind: DataKind
    # The one line to show when the data are synthetic; "" when they are real.
    message: str = ""


def plugin_of(config: Section) -> type[DataPlugin]:
    """The plug-in that a `data:` section belongs to. Raises UnknownPlugin."""
    plugin: type[DataPlugin] = plugins.load("data", getattr(config, "name", ""))
    return plugin


def resolve(config: Section, root: Path | None = None, *, require_real: bool = False) -> Source:
    """Finds the data set of a `data:` section; writes a small synthetic one into the cache when
    there is none.

    Raises DataError when a root that was named does not exist, when some of the files are missing,
    or when `require_real` and no real data are there.
    """
    plugin = plugin_of(config)
    base, origin = _root(root)
    name = plugin.folder_of(config)
    place = _find(plugin, config, base)
    if place is not None and not (place / MARKER).is_file():
        return Source(place, "real")
    searched = f"{base / name} or {base} ({origin})"
    if require_real:
        expected = ", ".join(plugin.files(config))
        found = f"no {expected} in {searched}"
        if place is not None:
            found = f"the data in {place} are synthetic ({MARKER})"
        hint = f"put the files {expected} into {base / name}"
        raise DataError(f"{name}: real data are required, but {found}; {hint}")
    if place is not None:
        found = f"the data in {place} are SYNTHETIC ({MARKER})"
    else:
        place = _cached(plugin, config)
        found = f"no {_few(plugin.files(config))} in {searched}; using SYNTHETIC data from {place}"
    return Source(place, "synthetic", f"{name}: {found}: numbers say nothing about the real {name}")


def _few(files: tuple[str, ...]) -> str:
    """The first files, and how many more there are."""
    if len(files) <= 2:
        return ", ".join(files)
    return f"{files[0]} (and {len(files) - 1} more files)"


def _root(root: Path | None) -> tuple[Path, str]:
    """The data root and how it was named. Raises DataError when it was named and is no folder."""
    named = os.environ.get(ENV_ROOT)
    if root is None and not named:
        return Path("data").absolute(), f"./data; neither --data-root nor {ENV_ROOT} is given"
    origin = ENV_ROOT
    if root is not None:
        origin = "--data-root"
    base = Path(root or named or "").expanduser().absolute()
    if not base.is_dir():
        raise DataError(f"{origin}: must be an existing folder, got {base}")
    return base, origin


def _find(plugin: type[DataPlugin], config: Section, base: Path) -> Path | None:
    """The folder that holds the data set; None if there is no trace of it. Raises DataError if a
    part is missing.
    """
    name = plugin.folder_of(config)
    places = [base / folder for folder in (name, *plugin.aliases)]
    places.append(base)
    files = plugin.files(config)
    _refuse_broken_links(places, files)
    for place in places:
        if plugin.present(config, place):
            return place
    for place in places:
        there = [file for file in files if plugin.there(place / file)]
        others = [] if place == base else _entries(place)
        if there or others:
            missing = ", ".join(file for file in files if file not in there)
            found = ", ".join(there or _entries(place)[:5])
            raise DataError(f"{name}: incomplete in {place}: no {missing}; found {found}")
    return None


def _refuse_broken_links(places: list[Path], files: tuple[str, ...]) -> None:
    """Raises DataError for a link that leads nowhere: the data are there for whoever made it, and
    nothing may stand in for them.
    """
    paths = list(places)
    for place in places:
        paths += [place / file for file in files]
    for path in paths:
        if path.is_symlink() and not path.exists():
            target = os.readlink(path)
            raise DataError(f"{path}: is a symbolic link that leads nowhere, to {target}")


def _entries(place: Path) -> list[str]:
    """Names in a folder, hidden ones (.gitkeep, .DS_Store) left out."""
    if not place.is_dir():
        return []
    return sorted(path.name for path in place.iterdir() if not path.name.startswith("."))


def _cached(plugin: type[DataPlugin], config: Section) -> Path:
    """The stand-in of `config` in the cache, written if it is not there yet."""
    options = plugin.options(config)
    text = json.dumps(describe(config, options), sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:12]
    place = cache_folder() / "synthetic" / f"{plugin.folder_of(config)}-{key}"
    if place.is_dir():
        if not plugin.present(config, place):
            raise DataError(
                f"{place}: files of this cached data set are gone; remove the folder and run again"
            )
        return place
    _put(place, lambda folder: _write(plugin, config, folder, options), exist_ok=True)
    return place


def options_of(
    config: Section, shapes: Mapping[str, tuple[int, ...]], changes: Mapping[str, Any]
) -> SyntheticOptions:
    """The options of the stand-in of `config`, with other shapes and with those of `changes` that
    are options and not None. Raises ConfigError.
    """
    options = plugin_of(config).options(config)
    for modality in shapes:
        if modality not in options.shapes:
            hint = nearest(modality, options.shapes)
            available = ", ".join(options.shapes)
            raise ConfigError(f"--shape: no modality '{modality}'{hint}; available: {available}")
    try:
        return options.changed(**{**changes, "shapes": {**options.shapes, **shapes}})
    except ValueError as error:
        raise ConfigError(str(error)) from None


def make(config: Section, root: Path, options: SyntheticOptions) -> Path:
    """Writes a synthetic data set to <root>/<folder> and returns that folder. DataError if it has
    files already.
    """
    plugin = plugin_of(config)
    for m, shape in options.shapes.items():
        if len(shape) not in plugin.axes:
            allowed = " or ".join(AXES[count] for count in sorted(plugin.axes, reverse=True))
            where = f"{plugin.folder_of(config)}: shape of '{m}'"
            raise DataError(f"{where} must be {allowed}, got {shape}")
    place = root.expanduser().absolute() / plugin.folder_of(config)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise DataError(
            f"{place}: exists already and is not overwritten; remove it or choose another --root"
        )
    _put(place, lambda folder: _write(plugin, config, folder, options), exist_ok=False)
    return place


def describe(config: Section, options: SyntheticOptions) -> dict[str, Any]:
    """What decides the bytes of a synthetic data set."""
    chosen = dataclasses.asdict(options)
    chosen["shapes"] = {modality: list(shape) for modality, shape in options.shapes.items()}
    return {"version": VERSION, "config": config.model_dump(mode="json"), "options": chosen}


def _write(
    plugin: type[DataPlugin], config: Section, folder: Path, options: SyntheticOptions
) -> None:
    plugin.write(config, folder, options)
    (folder / MARKER).write_text(json.dumps(describe(config, options), indent=1) + "\n")


def _put(place: Path, write: Callable[[Path], None], *, exist_ok: bool) -> None:
    """Lets `write` fill a temporary folder and moves it to `place` in one step: others see all of
    it or nothing.

    Of several processes at once one wins; with `exist_ok` the others use its files. Raises
    DataError.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    except OSError as error:
        hint = ""
        if exist_ok:
            hint = f"; {ENV_CACHE} names another cache folder"
        raise DataError(f"{place}: cannot be written: {error.strerror or error}{hint}") from error
    try:
        write(folder)
        folder.chmod(0o755)
        os.replace(folder, place)
    except OSError as error:
        if not (exist_ok and place.is_dir()):
            raise DataError(f"{place}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


_loaded: dict[str, Dataset] = {}
_lock = threading.Lock()


def load(config: Section, source: Source) -> Dataset:
    """The data set at `source`, read once per machine. Raises DataError naming the file and what is
    wrong with it.
    """
    plugin = plugin_of(config)
    settings = config.model_dump(mode="json")
    key = json.dumps([settings, str(source.root), source.kind], sort_keys=True)
    with _lock:
        if key not in _loaded:
            dataset = _read_once(plugin, config, source.root)
            changes = plugin.transforms(config)
            splits = {}
            for name, split in dataset.splits.items():
                splits[name] = dataclasses.replace(split, transform=changes.get(name))
            _loaded[key] = dataclasses.replace(dataset, kind=source.kind, splits=splits)
        return _loaded[key]


def _read_once(plugin: type[DataPlugin], config: Section, place: Path) -> Dataset:
    """Out of the store, or, where the plug-in has one of its own or files are missing, as it is."""
    read = partial(_read, plugin, config, place)
    if plugin.stored or not plugin.present(config, place):
        return read()
    names = (*plugin.files(config), *plugin.optional(config))
    files = [place / name for name in names]
    return shared.once(plugin.folder_of(config), config.model_dump(mode="json"), files, read)


def _read(plugin: type[DataPlugin], config: Section, place: Path) -> Dataset:
    dataset = plugin.load(config, place)
    check(dataset, place)
    return dataset
