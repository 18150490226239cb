"""Which combinations of a method, a fusion and data are tried, and which of them the product trains.

The product is asked once, when tests are collected: by what the method states, and by a model
without memory (`support.refusal`). test_refusals.py holds every refusal to what the method states.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import pytest

from tests import support
from tests.methods import dense
from tune_mm import plugins
from tune_mm.config import Config, load_config, with_overrides
from tune_mm.core.types import DataSpec, Task

METHODS = plugins.available("methods")
FUSIONS = plugins.available("fusions")
MODALITIES = (("text", "audio"), ("text", "audio", "visual"))
TASKS = ("classification", "regression")
# Data of clips: spectrograms and frames, and the network that takes them.
CLIPS = DataSpec({"audio": (1, 20, 16), "visual": (2, 3, 16, 16)}, Task("classification", 6))
CLIP_VALUES: dict[str, Any] = {
    "data": {
        "name": "cremad",
        "audio": {"name": "mel", "seconds": 0.5, "bins": 20, "crop_seconds": 0.3},
        "visual": {"frames": 2, "size": 16},
    },
    "model": {"encoder": {"name": "cnn", "channels": [4, 6], "width": 8}, "fusion": "concat"},
    "train.epochs": 2,
    "train.batch_size": 16,
    "train.device": "cpu",
    "train.probe_size": 16,
}


class Combination(NamedTuple):
    """A method on a model and data that it may or may not train."""

    method: str
    fusion: str
    # "sequences", "clips" or "pixels".
    data: str
    modalities: tuple[str, ...]
    task: str

    @property
    def config(self) -> Config:
        """The run's configuration."""
        if self.data == "clips":
            return clips_config(self.method, self.fusion)
        if self.data == "sequences":
            return support.config(self.method, fusion=self.fusion)
        base = support.with_fusion(dense.base_config(), self.fusion)
        return support.with_method(base, self.method, self.modalities)

    @property
    def spec(self) -> DataSpec:
        """What a model must know of the data."""
        if self.data == "clips":
            return CLIPS
        if self.data == "sequences":
            return support.spec(self.modalities, self.task)
        return dense.spec(len(self.modalities))

    @property
    def stated(self) -> bool:
        """Whether the method states that it trains this: modalities, task and fusion."""
        stated = plugins.load("methods", self.method).support
        count = len(self.modalities)
        enough = count >= stated.least
        few_enough = stated.most is None or count <= stated.most
        fits = stated.fusions is None or self.fusion in stated.fusions
        return enough and few_enough and self.task in stated.tasks and fits


@cache
def clips_base() -> Config:
    """configs/cremad.yaml made small."""
    return with_overrides(load_config("cremad"), CLIP_VALUES)


def clips_config(method: str, fusion: str = "concat", **settings: Any) -> Config:
    """`clips_base` for a method and a fusion. A method of one modality takes the frames."""
    base = support.with_fusion(clips_base(), fusion)
    return support.with_method(base, method, ("visual", "audio"), **settings)


@cache
def trained(case: Combination) -> bool:
    """Whether the product trains it."""
    return case.stated and support.refusal(case.config, case.spec) is None


def default_fusion(method: str) -> str:
    """The one that `support.config` takes."""
    fusions = plugins.load("methods", method).support.fusions
    return "transformer" if fusions is None else fusions[0]


def sequences(
    method: str,
    fusion: str | None = None,
    modalities: tuple[str, ...] = MODALITIES[1],
    task: str = "classification",
) -> Combination:
    """A method on `support.dataset`. fusion None: that of `support.config`."""
    fusion = default_fusion(method) if fusion is None else fusion
    return Combination(method, fusion, "sequences", modalities, task)


def clips(method: str, fusion: str = "concat") -> Combination:
    """A method on small clips of sound and frames."""
    return Combination(method, fusion, "clips", tuple(CLIPS.shapes), "classification")


def pixels(method: str, fusion: str = "unet", count: int = 3) -> Combination:
    """A method on `dense.dataset`."""
    return Combination(method, fusion, "pixels", tuple(dense.CHANNELS)[:count], "segmentation")


def methods_on_sequences() -> list[str]:
    """Those that train the three sequences by `support.config`."""
    return [name for name in METHODS if trained(sequences(name))]


def params(cases: Sequence[Combination], *fields: str) -> list[Any]:
    """The trained ones among `cases` for `parametrize`, with an id of the given fields."""
    out = []
    for case in cases:
        if trained(case):
            values = [getattr(case, field) for field in fields]
            words = [v if isinstance(v, str) else str(len(v)) for v in values]
            out.append(pytest.param(*values, id="-".join(words)))
    return out


def everything() -> list[Combination]:
    """Every combination of a method, a fusion and data that is tried, whether trained or refused."""
    out = []
    for method, fusion in product(METHODS, FUSIONS):
        for modalities, task in product(MODALITIES, TASKS):
            out.append(sequences(method, fusion, modalities, task))
        if fusion != "transformer":  # a transformer takes sequences
            out.append(clips(method, fusion))
        out.append(pixels(method, fusion))
    return out
