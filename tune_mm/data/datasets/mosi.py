"""CMU-MOSI: sentiment of video utterances from text, audio and visual features;
`<root>/mosi/<file>`.

Formats, told apart by their keys. Both are pickles `{train, valid, test} -> {...}`, read with an
unpickler that admits numpy arrays and plain containers only:

* MulT (`mosi_data.pkl`, `mosi_data_noalign.pkl`): text, audio, vision [N, T, D]; labels [N, 1, 1];
  id [N, ...]
* MMSA (`aligned_50.pkl`, `unaligned_50.pkl`): text (768-d BERT features), audio, vision [N, T, D];
  regression_labels [N]; id; raw_text, annotations and classification_labels are ignored. `text:
  text_bert` reads that key instead, where it holds features; token numbers [N, 3, T] are refused.

Labels are scores in [-3, 3]. task `classification` makes two classes of them: threshold `positive`
is > 0 against <= 0 (CGGM), `nonnegative` is >= 0 against < 0; for labels in {-1, +1} they agree.
task `regression` takes the score.

NaN and infinity in audio (COVAREP has -inf) become 0; elsewhere they are errors. padding `zeros`
takes steps that are all zeros for padding (position 0 is always real); `none` makes no mask. The
vision of the files is called `visual` here, and text comes first because a transformer fusion reads
its first position.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from tune_mm.config import Section
from tune_mm.core.types import Dataset, DataSpec, Task
from tune_mm.data.arrays import checks, unpickle
from tune_mm.data.arrays.checks import DataError, Float, Mask
from tune_mm.data.base import DataPlugin
from tune_mm.data.datasets._arrays import ArraySplit, shapes_of, splits_of
from tune_mm.data.synthetic.vectors import SyntheticOptions, generate

_SPLITS = {"train": "train", "val": "valid", "test": "test"}
_KEYS = {"text": "text", "audio": "audio", "visual": "vision"}


class MosiConfig(Section):
    """See the module."""

    name: Literal["mosi"] = "mosi"
    # Name of the pickle.
    file: str = Field("mosi_data.pkl", pattern=r"^[\w.-]+\.pkl$")
    # Two classes made of the scores, or the scores.
    task: Literal["classification", "regression"] = "classification"
    # Class 1 is a score > 0, or >= 0.
    threshold: Literal["positive", "nonnegative"] = "positive"
    # Key of the text's features.
    text: Literal["text", "text_bert"] = "text"
    # Take steps that are all zeros for padding, or none.
    padding: Literal["zeros", "none"] = "zeros"


class Mosi(DataPlugin):
    """CMU-MOSI in the MulT or MMSA layout."""

    Config = MosiConfig
    folder: ClassVar[str] = "mosi"

    @classmethod
    def files(cls, config: MosiConfig) -> tuple[str, ...]:
        return (config.file,)

    @classmethod
    def load(cls, config: MosiConfig, place: Path) -> Dataset:
        path = place / config.file
        raw = unpickle.load(path)
        if not isinstance(raw, Mapping):
            raise DataError(f"{path}: must hold a dict of splits, got {type(raw).__name__}")
        parts: dict[str, ArraySplit] = {}
        notes: list[str] = []
        for split, key in _SPLITS.items():
            where = f"{path}: {key}"
            group = checks.entry(raw, key, str(path))
            if not isinstance(group, Mapping):
                raise DataError(f"{where}: must be a dict of arrays, got {type(group).__name__}")
            parts[split], replaced = _part(config, group, where)
            if replaced:
                notes.append(f"{key}: {replaced} NaN or infinite audio values set to 0")
        spec = DataSpec(shapes_of(parts, str(path)), _task(config))
        return Dataset("mosi", spec, splits_of(parts), notes=tuple(notes))

    @classmethod
    def options(cls, config: MosiConfig) -> SyntheticOptions:
        shapes = {"text": (12, 64), "audio": (12, 24), "visual": (12, 32)}
        return SyntheticOptions(shapes, "text", classes=2)

    @classmethod
    def write(cls, config: MosiConfig, place: Path, options: SyntheticOptions) -> None:
        data = generate(options, scores=True)
        raw = {}
        for split, part in options.bounds().items():
            own: dict[str, Any] = {}
            for modality, x in data.modalities.items():
                own[_KEYS[modality]] = x.values[part]
            scores = np.asarray(data.target[part], np.float32)
            own["labels"] = scores.reshape(-1, 1, 1)
            names = []
            for number in range(part.start, part.stop):
                names.append([f"synthetic{number:06d}"])
            own["id"] = np.array(names)
            raw[_SPLITS[split]] = own
        (place / config.file).write_bytes(pickle.dumps(raw, protocol=4))


def _part(config: MosiConfig, group: Mapping[str, Any], where: str) -> tuple[ArraySplit, int]:
    """A split, and how many of audio's values were replaced. Raises DataError."""
    replaced = 0
    values: dict[str, Float] = {}
    masks: dict[str, Mask | None] = {}
    for modality, key in {**_KEYS, "text": config.text}.items():
        raw = checks.entry(group, key, where)
        _refuse_tokens(raw, f"{where}: {key}")
        own = checks.features(raw, f"{where}: {key}", dims=(3,))
        if modality == "audio":
            bad = ~np.isfinite(own)
            replaced = int(bad.sum())
            own[bad] = 0
        checks.require_finite(own, f"{where}: {key}")
        values[modality] = own
        masks[modality] = None
        if config.padding == "zeros":
            masks[modality] = checks.nonzero_steps(own)
    target = _target(config, group, where)
    ids: tuple[str, ...] = ()
    if "id" in group:
        ids = checks.names(group["id"], f"{where}: id")
    counts = {modality: len(own) for modality, own in values.items()}
    checks.same_length({**counts, "labels": len(target)}, where)
    return ArraySplit(target, ids, values, masks), replaced


def _refuse_tokens(raw: Any, where: str) -> None:
    """MMSA's text_bert is [N, 3, T]: token numbers, attention mask and segments, which no encoder
    here embeds.
    """
    array = np.asarray(raw)
    if array.ndim != 3 or array.shape[1] != 3:
        return
    flags = np.isin(array[:, 1:], (0, 1)).all()
    if flags and array[:, 0].max() > 1:
        raise DataError(
            f"{where}: holds token numbers {list(array.shape)}, not features; use text: text"
        )


def _target(config: MosiConfig, group: Mapping[str, Any], where: str) -> Any:
    key = "labels"
    if key not in group and "regression_labels" in group:
        key = "regression_labels"
    score = checks.scores(checks.entry(group, key, where), f"{where}: {key}")
    if config.task == "regression":
        return score
    if config.threshold == "positive":
        return (score > 0).astype(np.int64)
    return (score >= 0).astype(np.int64)


def _task(config: MosiConfig) -> Task:
    if config.task == "regression":
        return Task("regression", 1)
    if config.threshold == "positive":
        return Task("classification", 2, ("nonpositive", "positive"))
    return Task("classification", 2, ("negative", "nonnegative"))


plugin = Mosi
