"""Small data sets in memory and small configs, for tests of the core and the methods."""

from __future__ import annotations

from collections.abc import Collection

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

SHAPES = {"text": (4, 6), "audio": (7, 5), "visual": (3, 8)}


def dataset(
    modalities=("text", "audio", "visual"), task="classification", count=96, seed=0, vectors=False
) -> Dataset:
    """Classes (or a score) written into every modality with noise; text is clearest. Sequences
    carry masks.
    """
    generator = torch.Generator().manual_seed(seed)
    kinds = Task("classification", 3) if task == "classification" else Task("regression", 1)
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

    shapes = {m: (SHAPES[m][1],) if vectors else SHAPES[m] for m in modalities}
    return Dataset(
        "tiny",
        DataSpec(shapes, kinds),
        {"train": split(count), "val": split(32), "test": split(32)},
    )


def config(method="joint", overrides=(), **settings) -> Config:
    """configs/iemocap.yaml made small: width 10, 1-2 layers, no dropout, 2 epochs of batches of 16.

    A method that does not support its fusion gets the first that it does."""
    values = {
        "model.encoder.width": 10, "model.encoder.heads": 2, "model.encoder.layers": 1,
        "model.fusion.heads": 2, "model.fusion.layers": 1, "train.epochs": 2, "train.batch_size": 16,
        "train.device": "cpu", "train.probe_size": 16,
        **{k: 0.0 for k in field_types(load_config("iemocap")) if ".dropout" in k},
        **dict(overrides),
    }  # fmt: skip
    section = {"name": method, **plugins.load("methods", method).required, **settings}
    if method == "cggm":
        section = {"classifier_heads": 2, "classifier_dropout": 0.0, **section}
    cfg = with_overrides(with_overrides(load_config("iemocap"), values), {"method": section})
    allowed = plugins.load("methods", method).support.fusions
    return (
        cfg
        if allowed is None or cfg.model.fusion.name in allowed
        else with_overrides(cfg, {"model.fusion": allowed[0]})
    )


class Refused(Exception):
    """The method says that it cannot train these data or this model, and is right to say so.

    tests/methods/conftest.py takes a test that ends so for passed: the refusal was what there is to
    test.
    """


def require_trainable(cfg: Config, data: Dataset) -> None:
    """Raises Refused where the method refuses; fails where it refuses wrongly, or should have."""
    support = plugins.load("methods", cfg.method.name).support
    expected = None
    try:
        support.require(cfg.method.name, data.spec, cfg.model.fusion.name)
    except ValueError as error:
        expected = str(error)
    try:
        check(cfg, data.spec)
    except ValueError as error:
        message = str(error)
    else:
        assert expected is None, f"{cfg.method.name} trains what it says it does not: {expected}"
        return
    if expected is not None:
        assert message == expected
    else:  # by its own check, which names the setting that is wrong
        setting = message.partition(":")[0]
        known = field_types(cfg)
        assert {setting, f"method.{setting}", f"{setting}.name"} & known.keys(), message
    raise Refused(message)


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
