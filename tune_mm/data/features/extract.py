"""Features of a data set's images and texts by frozen models, computed once, in steps that a kill
cannot undo.

    python -m tune_mm.data extract food101 --root DIR --image-model VIT --text-model BERT --views 4

The store (see `store`) is made in a hidden folder beside it, `.<key>.part`. After every batch
its values and then the number of finished rows, `progress.json`, are put on disk: after a kill the
same command resumes there, and does at most one batch twice. When all is there the
folder gets its name.

A file that is no image is bad; one that cannot be read now stops the extraction (see `contents`).

The key is a digest of the content of all images and texts, of both models' files and of the
settings. When a few files are replaced before all is there, what was made of the others is taken
over under the new key; a finished store is left as it is, and another one is made. View k of an
image is drawn from a stream of its own, so that neither the batch size nor a kill changes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tune_mm import plugins
from tune_mm.config import Section
from tune_mm.core.build import device_of
from tune_mm.data import base
from tune_mm.data.arrays.checks import DataError
from tune_mm.data.features import contents, pretrained, store
from tune_mm.data.features.store import FORMAT, FeaturePlugin, Sample
from tune_mm.data.store.part import PartialStore, SourceFiles, adopt, lock_of, place_of
from tune_mm.errors import ConfigError
from tune_mm.filesystem import try_locked

# Raise it when the same files and settings would give other values.
VERSION = 1
DECODERS = 8
# Least values of settings; a text has at least its two special tokens and one of its own.
_LEAST = {"views": 1, "seed": 0, "text_tokens": 3, "batch": 1}


@dataclass(frozen=True)
class Models:
    """Folders of the two models, and where they compute."""

    # Folder of the model of images.
    image: Path
    # Folder of the model of texts.
    text: Path
    # Where both compute.
    device: torch.device


@dataclass(frozen=True)
class Settings:
    """What decides the values, and how they are computed. Raises ConfigError."""

    # Of each of train's images, K, the plain one included.
    views: int = 1
    # Of the augmented views.
    seed: int = 0
    # Longest text, L, special tokens included.
    text_tokens: int = 50
    # Samples at a time.
    batch: int = 64
    # Leave out what cannot be read.
    skip_bad: bool = False

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value < least:
                option = name.replace("_", "-")
                raise ConfigError(f"--{option}: must be >= {least}, got {value}")


def device(name: str) -> torch.device:
    """The device of a name, or of `auto`. Raises ConfigError when it is not there."""
    try:
        return torch.zeros(0, device=device_of(name)).device
    except RuntimeError as error:
        reason = str(error).partition("\n")[0] or "not there"
        raise ConfigError(f"--device {name}: {reason}") from None


def plugin_of(config: Section) -> type[FeaturePlugin]:
    """The data set of a `data:` section. Raises ConfigError when it is not one with features."""
    plugin = base.plugin_of(config)
    if issubclass(plugin, FeaturePlugin):
        return plugin
    known = []
    for name in plugins.available("data"):
        if issubclass(plugins.load("data", name), FeaturePlugin):
            known.append(name)
    raise ConfigError(
        f"{plugin.folder_of(config)}: is read as it is, nothing is to be extracted; "
        f"data sets with features: {', '.join(known)}"
    )


def extract(
    name: str,
    splits: Mapping[str, Sequence[Sample]],
    folder: Path,
    models: Models,
    settings: Settings,
) -> tuple[Path, Mapping[str, str]]:
    """The store of all samples in `folder`, made or finished if need be, and what was left out,
    with the reason.

    splits: train first. Raises DataError when a model or, without `skip_bad`, an image cannot be
    read, when another process makes the same store, when the folder cannot be written and when
    memory does not suffice.
    """
    samples: list[Sample] = []
    for own in splits.values():
        samples += own
    train = len(next(iter(splits.values())))
    ids = [sample.id for sample in samples]
    try:
        digests, missing = contents.digests(name, samples)
        _refuse(missing, settings, len(samples), "")
        chosen = _chosen(models, settings)
        contents_by_id = list(zip(ids, digests, strict=True))
        final = folder / _key([FORMAT, chosen, train, contents_by_id])
        sources = SourceFiles(_key([FORMAT, chosen, train, ids]), ids, digests)
        folder.mkdir(parents=True, exist_ok=True)
        with try_locked(lock_of(final)) as held:
            if not held:
                raise DataError(
                    f"{final}: another process is extracting these features; wait for it"
                )
            if not final.is_dir():
                adopt(final, sources)
                extraction = _Extraction(name, samples, train, models, settings, missing)
                extraction.run(final, sources)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written: {error.strerror or error}; what is done is kept"
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        advice = f"a smaller --batch than {settings.batch} needs less"
        raise DataError(
            f"{name}: too little memory for extracting features ({advice}); {contents.GOES_ON}"
        ) from error
    return final, store.open_features(final).bad


def _key(values: Any) -> str:
    """16 hexadecimal digits of JSON values."""
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=8).hexdigest()


def _chosen(models: Models, settings: Settings) -> dict[str, Any]:
    """What decides the values beside the samples. Raises DataError."""
    try:
        libraries = {}
        for name in ("transformers", "pillow"):
            libraries[name] = version(name).partition(".")[0]
    except PackageNotFoundError:
        pretrained.transformers()  # which says how it is installed
        raise
    chosen = {
        "version": VERSION,
        "image": pretrained.digest(models.image, pretrained.ImageModel.option),
        "text": pretrained.digest(models.text, pretrained.TextModel.option),
        "text_tokens": settings.text_tokens,
        "views": settings.views,
    }
    if settings.views > 1:
        chosen["seed"] = settings.seed
        chosen["scale_min"] = pretrained.SCALE_MIN
    chosen["libraries"] = libraries
    return chosen


def _refuse(bad: Mapping[str, str], settings: Settings, count: int, kept: str) -> None:
    """Raises DataError naming the first of what cannot be read, unless it is to be left out."""
    if not bad or settings.skip_bad:
        return
    few = "; ".join(list(bad.values())[:3])
    if len(bad) > 3:
        few += f" and {len(bad) - 3} more"
    raise DataError(
        f"{len(bad)} of {count} samples cannot be read: {few}; --skip-bad leaves them out{kept}"
    )


class _Extraction:
    """One store in the making. missing: samples whose files are not there, with the reason."""

    def __init__(
        self,
        name: str,
        samples: Sequence[Sample],
        train: int,
        models: Models,
        settings: Settings,
        missing: Mapping[str, str],
    ) -> None:
        self.name = name
        self.samples = samples
        self.train = train
        self.settings = settings
        self.missing = missing
        both = f"{models.image.resolve().name} and {models.text.resolve().name}"
        self.about = f"{both}, {_views(settings.views)}"
        self.image = pretrained.ImageModel(models.image, models.device)
        self.text = pretrained.TextModel(models.text, settings.text_tokens, models.device)

    def run(self, final: Path, sources: SourceFiles) -> None:
        """Makes the store `final`, or what an earlier call left to do. Raises DataError and
        OSError.
        """
        count = len(self.samples)
        views = self.settings.views
        arrays: dict[str, tuple[Any, tuple[int, ...]]] = {
            store.VISUAL: (np.float16, (count, *self.image.shape)),
            store.TEXT: (np.float16, (count, *self.text.shape)),
            store.MASK: (np.bool_, (count, self.settings.text_tokens)),
            store.TEXTS: (np.uint64, (count,)),
        }
        if views > 1:
            arrays[store.VIEWS] = (np.float16, (views - 1, self.train, *self.image.shape))
        kept = "; all others are done and kept, also when these are mended"
        with PartialStore(place_of(final), arrays, sources, self.missing) as part:
            self._fill(part)
            _refuse(part.bad, self.settings, count, kept)
            part.finish(final, store.meta(sources.ids, self.train, views, part.bad, self.about))

    def _fill(self, part: PartialStore) -> None:
        """All stages from where an earlier call was: texts, plain views of all images, other views
        of train's.
        """
        others = self.settings.views - 1
        sizes = {"texts": len(self.samples), "images": len(self.samples)}
        for view in range(1, others + 1):
            sizes[f"view {view} of {others}"] = self.train
        console = Console(stderr=True)
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        bars = Progress(*columns, console=console, disable=not console.is_terminal)
        with ThreadPoolExecutor(DECODERS) as pool, bars:
            for stage, (title, size) in enumerate(sizes.items()):
                left = part.left(stage, size, self.settings.batch)
                done = size - sum(len(rows) for rows in left)
                bar = bars.add_task(f"{self.name}: {title}", total=size, completed=done)
                if stage == 0:
                    finished = self._texts(part, left)
                else:
                    finished = self._images(part, stage, left, pool)
                for rows in finished:
                    part.commit(stage, rows)
                    bars.advance(bar, len(rows))

    def _texts(self, part: PartialStore, left: list[list[int]]) -> Iterator[list[int]]:
        """Yields the rows of each batch when their values have been written."""
        for rows in left:
            samples = [self.samples[row] for row in rows]
            texts = [self._tokens(part, sample) for sample in samples]
            digests = [store.text_digest(sample) for sample in samples]
            values, mask = self.text.features(*self.text.tokens(texts))
            part.put(store.TEXT, rows, values)
            part.put(store.MASK, rows, mask)
            part.put(store.TEXTS, rows, np.array(digests, dtype=np.uint64))
            yield rows

    def _tokens(self, part: PartialStore, sample: Sample) -> str | NDArray[np.int64]:
        """The text, or its token numbers [n]; "" where they cannot be read, which is noted.

        JSON can hold half characters (a lone surrogate, "\\ud83d"), which no tokenizer takes: they
        become "?".
        """
        if isinstance(sample.text, str):
            return sample.text.encode("utf-8", "replace").decode()
        if sample.id in self.missing:
            return ""
        numbers = contents.token_numbers(sample.text)
        try:
            if isinstance(numbers, str):
                raise ValueError(numbers)
            self.text.tokens([numbers])
        except ValueError as error:
            part.bad.setdefault(sample.id, f"{sample.text}: are no readable token numbers: {error}")
            return ""
        return numbers

    def _images(
        self, part: PartialStore, view: int, left: list[list[int]], pool: ThreadPoolExecutor
    ) -> Iterator[list[int]]:
        """View `view` - 1 of the images; the next batch is decoded while the model has this one."""

        def decoded(number: int) -> list[Future[NDArray[np.float32] | str]]:
            rows = left[number] if number < len(left) else []
            found = []
            for row in rows:
                found.append(pool.submit(self._pixels, self.samples[row], view - 1))
            return found

        file = store.VISUAL
        offset = 0
        if view > 1:
            file = store.VIEWS
            offset = (view - 2) * self.train
        coming = decoded(0)
        for number, rows in enumerate(left):
            found = [future.result() for future in coming]
            coming = decoded(number + 1)
            part.put(file, [offset + row for row in rows], self._features(part, rows, found))
            yield rows

    def _features(
        self, part: PartialStore, rows: list[int], found: list[NDArray[np.float32] | str]
    ) -> NDArray[np.float16]:
        """[B, T, D] of the images of a batch; zeros, and a note, for those that cannot be read."""
        values = np.zeros((len(rows), *self.image.shape), np.float16)
        good: list[int] = []
        pixels: list[NDArray[np.float32]] = []
        for place, own in enumerate(found):
            if isinstance(own, str):
                part.bad.setdefault(self.samples[rows[place]].id, own)
            else:
                good.append(place)
                pixels.append(own)
        if good:
            values[good] = self.image.features(np.stack(pixels))
        return values

    def _pixels(self, sample: Sample, view: int) -> NDArray[np.float32] | str:
        """[3, H, W] of view `view` of an image, or why it cannot be read."""
        if sample.id in self.missing:
            return self.missing[sample.id]
        plain = contents.picture(sample.image)
        if isinstance(plain, str):
            return plain
        if view == 0:
            return self.image.plain(plain)
        return self.image.view(plain, stream(self.settings.seed, view, sample.id))


def _views(count: int) -> str:
    if count == 1:
        return "1 view"
    return f"{count} views"


def stream(seed: int, view: int, sample: str) -> torch.Generator:
    """The random stream of a view of an image."""
    text = json.dumps([seed, view, sample])
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
