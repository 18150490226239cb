"""Small data sets in memory and small configs, for tests of the core and the methods."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache
from typing import Any

import torch

from tune_mm import plugins
from tune_mm.config import Config, field_types, load_config, with_overrides
from tune_mm.core import teachers
from tune_mm.core.build import check
from tune_mm.core.method import Method, Start
from tune_mm.core.net import Net
from tune_mm.core.settings import float_fields
from tune_mm.core.types import Dataset, DataSpec, Padded, Split, Task
from tune_mm.models.multimodal import build

# Settings of small fusions, where their defaults are larger or do not fit.
SMALL: dict[str, dict[str, Any]] = {
    "transformer": {"heads": 2, "layers": 1},
    "mmtm": {"stages": (1, 2)},
}
SHAPES = {"text": (4, 6), "audio": (7, 5), "visual": (3, 8)}


def spec(modalities=tuple(SHAPES), task="classification", vectors=False) -> DataSpec:
    """What a model must know of `dataset`."""
    shapes = {m: SHAPES[m][1:] if vectors else SHAPES[m] for m in modalities}
    outputs = 3 if task == "classification" else 1
    return DataSpec(shapes, Task(task, outputs))


def dataset(
    modalities=("text", "audio", "visual"), task="classification", count=96, seed=0, vectors=False
) -> Dataset:
    """Classes (or a score) written into every modality with noise; text is clearest. Sequences
    carry masks.
    """
    generator = torch.Generator().manual_seed(seed)
    means = {m: torch.randn(3, SHAPES[m][1], generator=generator) * 2 for m in modalities}

    def split(n):
        label = torch.randint(0, 3, (n,), generator=generator)
        inputs = {}
        for i, m in enumerate(modalities):
            steps, width = SHAPES[m]
            shape = (n, width) if vectors else (n, steps, width)
            centre = means[m][label] if vectors else means[m][label][:, None]
            value = centre + torch.randn(shape, generator=generator) * (1 + i)
            lengths = torch.randint(1, steps + 1, (n, 1), generator=generator)
            mask = None if vectors else torch.arange(steps)[None] < lengths
            inputs[m] = Padded(value if mask is None else value * mask[..., None], mask)
        target = (
            label
            if task == "classification"
            else label.float() - 1 + 0.1 * torch.randn(n, generator=generator)
        )
        return Split(inputs, target, tuple(str(k) for k in range(n)))

    splits = {"train": split(count), "val": split(32), "test": split(32)}
    return Dataset("tiny", spec(modalities, task, vectors), splits)


@cache
def base_config() -> Config:
    """configs/iemocap.yaml made small: width 10, 1-2 layers, no dropout, 2 epochs of batches of 16."""
    config = load_config("iemocap")
    values: dict[str, Any] = {
        "model.encoder.width": 10,
        "model.encoder.heads": 2,
        "model.encoder.layers": 1,
        "model.fusion.heads": 2,
        "model.fusion.layers": 1,
        "train.epochs": 2,
        "train.batch_size": 16,
        "train.device": "cpu",
        "train.probe_size": 16,
    }
    for key in field_types(config):
        if ".dropout" in key:
            values[key] = 0.0
    return with_overrides(config, values)


def config(method="joint", overrides=(), fusion=None, **settings) -> Config:
    """`base_config` for a method with `settings`, and for a fusion.

    fusion None: the transformer where the method supports it, else the first that it does.
    """
    found = with_overrides(base_config(), dict(overrides))
    plugin = plugins.load("methods", method)
    if fusion is None:
        allowed = plugin.support.fusions
        current = found.model.fusion.name
        fusion = current if allowed is None or current in allowed else allowed[0]
    return with_method(with_fusion(found, fusion), method, tuple(SHAPES), **settings)


def with_fusion(config: Config, name: str) -> Config:
    """`config` with a small fusion of that name; as it is, where it has that fusion already."""
    if config.model.fusion.name == name:
        return config
    return with_overrides(config, {"model.fusion": {"name": name, **SMALL.get(name, {})}})


def with_method(config: Config, name: str, modalities: Sequence[str], **settings) -> Config:
    """`config` for a method with `settings`, and with those that it asks for in tests."""
    own = plugins.load("methods", name).settings_for_tests(modalities, config.model.fusion.name)
    return with_overrides(config, {"method": {"name": name, **own, **settings}})


def refusal(config: Config, spec: DataSpec) -> str | None:
    """Why the product refuses to train `config` on data of `spec`; None where it trains it."""
    try:
        check(config, spec)
    except ValueError as error:
        return str(error)
    return None


def bound(cfg: Config, data: Dataset, seed=0, dtype=torch.float64):
    """The method of `cfg` and a Net for it, initialised under `seed`, with inputs of `data` cast to
    `dtype`.
    """
    method = plugins.load("methods", cfg.method.name)(cfg.method)
    spec = method.spec(data.spec)
    torch.manual_seed(seed)
    model = build(cfg.model, spec, method.aux).to(dtype)
    return method, Net(model, spec.task)


def batch(data: Dataset, count=16, dtype=torch.float64):
    """The first `count` training samples."""
    out = data.splits["train"].batch(torch.arange(count))
    inputs = {m: Padded(x.value.to(dtype), x.mask) for m, x in out.inputs.items()}
    target = out.target if data.spec.task.kind == "classification" else out.target.to(dtype)
    return type(out)(inputs, target, out.index)


def start(cfg: Config | None = None, data: Dataset | None = None, samples=96):
    """What a method is given before the first step. Models of one modality are there if the config
    and the data are given: untrained, always the same.
    """

    def unimodal(changes):
        assert cfg is not None and data is not None
        return {
            m: bound(teachers.alone(cfg, m, changes), data, seed=100)[1]
            for m in data.spec.modalities
        }

    return Start(samples, unimodal)


def turns(method: Method, modalities: Collection[str]) -> int:
    """Epochs of a run in which every part of the model has had its turn: more than one for a method
    of stages, which declares that metrics dip.
    """
    epochs = 2 * len(modalities)
    return epochs if method.dips(epochs) else 1


def hp(section, dtype=torch.float64):
    """Float fields of a config section as 0-dim tensors."""
    return {k: torch.tensor(v, dtype=dtype) for k, v in float_fields(section).items()}


def named(name: str):
    """A message for assert_close that says which tensor differs."""
    return lambda message: f"{name}: {message}"
