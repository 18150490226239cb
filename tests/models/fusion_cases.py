"""Cases of every fusion, small models with them, and each fusion's formula, found by name.

`tests/models/formulas/<fusion>.py` holds the cases of a fusion (`CASES`: settings by name) and its
formula written out literally: `hidden(fusion, h)` over pooled features h, or where a modality alone
takes a way of its own, `literal(model, config, features, alone, path)`.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch

from tests.models.formulas._features import alone_by, means
from tune_mm import plugins
from tune_mm.core.net import Net
from tune_mm.core.types import Batch, DataSpec, Padded, Task
from tune_mm.models.multimodal import build

SHAPES = {"audio": (1, 9, 7), "visual": (2, 3, 8, 8), "depth": (1, 8, 8)}
OUTPUTS = 4
NO_DROPOUT = {f"dropout_{d}": 0.0 for d in ("attention", "relu", "embed", "residual", "output")}


def formula(fusion):
    """The module that holds a fusion's cases and formula."""
    return import_module(f"tests.models.formulas.{fusion}")


def without_formula():
    """Fusions that lack one; those that predict pixels have tests of their own."""
    late = [n for n in plugins.available("fusions") if not plugins.load("fusions", n).dense]
    return [name for name in late if find_spec(f"tests.models.formulas.{name}") is None]


def _cases():
    out: dict[str, tuple[str, dict[str, Any]]] = {}
    for name in plugins.available("fusions"):
        if find_spec(f"tests.models.formulas.{name}") is not None:
            out |= {case: (name, settings) for case, settings in formula(name).CASES.items()}
    return out


def fusion_section(case):
    fusion, fields = CASES[case]
    cls = plugins.load("fusions", fusion).Config
    return cls(**fields, **{k: v for k, v in NO_DROPOUT.items() if k in cls.model_fields})


def make(case, count, seed=0):
    """A float64 model of tiny CNNs of width 6 in training mode."""
    torch.manual_seed(seed)
    encoder = plugins.load("encoders", "cnn").Config(channels=(4, 6), width=6)
    spec = DataSpec(dict(list(SHAPES.items())[:count]), Task("classification", OUTPUTS))
    return build(SimpleNamespace(encoder=encoder, fusion=fusion_section(case)), spec).double()


def batch(count, size=5, seed=1):
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        m: Padded(torch.randn(size, *shape, generator=generator, dtype=torch.float64))
        for m, shape in list(SHAPES.items())[:count]
    }
    return Batch(
        inputs, torch.randint(0, OUTPUTS, (size,), generator=generator), torch.arange(size)
    )


def net_of(model):
    return Net(model, Task("classification", OUTPUTS))


def used(model, count):
    """In evaluation mode, after training passes that have moved BatchNorm's running statistics."""
    with torch.no_grad():
        for seed in (5, 6):
            net_of(model.train()).unimodal(net_of(model).encode(batch(count, 8, seed).inputs))
            model(batch(count, 8, seed).inputs)
    return model.eval()


def encode(model, inputs):
    return {m: e(inputs[m]) for m, e in model.encoders.items()}


def literal(model, case, features, alone=None, path=None):
    """Hidden by the formula; `alone`: of one modality by `path`."""
    written = formula(CASES[case][0])
    if hasattr(written, "literal"):
        return written.literal(model, fusion_section(case), features, alone, path)
    h = means(features)
    if alone is not None:
        h = alone_by(path, alone, h)
    return written.hidden(model.fusion, h)


CASES = _cases()
