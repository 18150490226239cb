"""Settings of every fusion, small models with them, and each fusion's formula written out
literally.

A new file in tune_mm/models/fusions needs an entry in CASES and a formula in `literal`.
"""

from __future__ import annotations

from itertools import combinations
from types import SimpleNamespace
from typing import Any

import torch

from tests.models.mixer_formula import mixer
from tune_mm import plugins
from tune_mm.core.net import Net
from tune_mm.core.types import Batch, DataSpec, Padded, Task
from tune_mm.models.fusions.concat import pooled
from tune_mm.models.multimodal import build

SHAPES = {"audio": (1, 9, 7), "visual": (2, 3, 8, 8), "depth": (1, 8, 8)}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("transformer", {"heads": 2, "layers": 2}),
    "concat": ("concat", {}),
    "sum": ("sum", {}),
    "film": ("film", {}),
    "film-visual": ("film", {"condition": "visual"}),
    "film-symmetric": ("film", {"symmetric": True}),
    "gated": ("gated", {"width": 5}),
    "gated-visual": ("gated", {"width": 5, "gate": "visual"}),
    "gated-symmetric": ("gated", {"width": 5, "symmetric": True}),
    "bilinear": ("bilinear", {"width": 5}),
    "shared_head": ("shared_head", {}),
    "mixer": ("mixer", {"factor": 1.5, "dropout": 0.0}),
    "mixer-concat": (
        "mixer",
        {"hidden": (2, 4, 5), "length": 2, "readout": "concat", "dropout": 0.0},
    ),
    "mixer-flatten": (
        "mixer",
        {"blocks": 1, "length": 3, "width": 4, "readout": "flatten", "dropout": 0.0},
    ),
    "mmtm": ("mmtm", {"stages": (1, 2), "ratio": 2.0}),
    "mmtm-late": ("mmtm", {"stages": (2,), "scale": 1.0}),
    "mmtm-early": ("mmtm", {"stages": (1,)}),
}
OUTPUTS = 4
NO_DROPOUT = {f"dropout_{d}": 0.0 for d in ("attention", "relu", "embed", "residual", "output")}


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


def blocks_times(fusion, h):
    """Features side by side: concat and sum, whose head holds each modality's layer."""
    return torch.cat(list(h.values()), 1)


def film(fusion, h):
    """Sample by sample, gamma = (F c)_1..W, beta = (F c)_W+1..2W, hidden = gamma o + beta."""
    parts = []
    for target, names in fusion.sources.items():
        width, layer = h[target].shape[1], fusion.maps[target]
        rows = []
        for i in range(len(h[target])):
            both = layer.weight @ torch.cat([h[m][i] for m in names]) + layer.bias
            rows.append(both[:width] * h[target][i] + both[width:])
        parts.append(torch.stack(rows))
    return torch.cat(parts, 1)


def gated(fusion, h):
    """1 / (1 + exp(-(U g + b))) times V o + c, U over the gating modalities one block of columns at
    a time.
    """
    parts = []
    for target, names in fusion.sources.items():
        gate, layer, start = fusion.gates[target], fusion.projections[target], 0
        score = gate.bias
        for m in names:
            score = score + torch.einsum(
                "oi,bi->bo", gate.weight[:, start : start + h[m].shape[1]], h[m]
            )
            start += h[m].shape[1]
        parts.append(
            (torch.einsum("oi,bi->bo", layer.weight, h[target]) + layer.bias)
            / (1 + torch.exp(-score))
        )
    return torch.cat(parts, 1)


def bilinear(fusion, h, alone=None):
    """sum over pairs i < j of sum_kl W_ij[o, k, l] h_i[k] h_j[l], plus the bias; `alone`: in its
    pairs, with itself.
    """
    out = fusion.product.bias
    matrices = fusion.product.weight.chunk(len(list(combinations(h, 2))), 1)
    for weight, (a, b) in zip(matrices, combinations(h, 2), strict=True):
        if alone in (None, a, b):
            x, y = (h[a], h[b]) if alone is None else (h[alone], h[alone])
            out = out + torch.einsum("okl,bk,bl->bo", weight.view(-1, x.shape[1], y.shape[1]), x, y)
    return out


def shared_head(fusion, h):
    return sum(h.values()) / len(h)


FORMULAE = {
    "concat": blocks_times,
    "sum": blocks_times,
    "film": film,
    "gated": gated,
    "shared_head": shared_head,
}


def mmtm(model, maps, config, present):
    """Squeeze, excite and gate at every stage, with zeros for what is absent, stage by stage over
    both encoders.
    """
    encoders, size = model.encoders, next(iter(maps.values())).value.shape[0]
    for number in range(config.stages[0], 3):
        if number > config.stages[0]:
            maps = {
                m: encoders[m].stage(number, maps[m]) if m in present else maps[m] for m in maps
            }
        if number not in config.stages:
            continue
        layer = model.fusion.exchanges[str(number)]
        squeezed = []
        for m in maps:
            mean = maps[m].value.permute(0, 2, 1, 3, 4).flatten(2).mean(2)
            squeezed.append(
                mean
                if m in present
                else torch.zeros(size, encoders[m].channels[number - 1]).double()
            )
        excited = (torch.cat(squeezed, 1) @ layer.squeeze.weight.T + layer.squeeze.bias).clamp(
            min=0
        )
        assert excited.shape[1] == int(
            2 * sum(encoders[m].channels[number - 1] for m in maps) / config.ratio
        )
        for m in present:
            gate = config.scale / (
                1 + torch.exp(-(excited @ layer.gates[m].weight.T + layer.gates[m].bias))
            )
            maps = {**maps, m: Padded(torch.einsum("btchw,bc->btchw", maps[m].value, gate))}
    pooled_ = [
        encoders[m].pool(maps[m]).value if m in present else torch.zeros(size, 6).double()
        for m in maps
    ]
    return torch.cat(pooled_, 1)


def literal(model, case, features, alone=None, path=None):
    """Hidden by the formula; `alone`: of one modality by `path`."""
    name = CASES[case][0]
    if name == "mmtm":
        return mmtm(
            model, features, fusion_section(case), [m for m in features if alone in (None, m)]
        )
    if name == "transformer":  # whose formula test_multimodal.py holds
        return (
            model.fusion.hidden(features)
            if alone is None
            else model.fusion.unimodal(features, path)[alone]
        )
    h = {m: pooled(f, "mean") for m, f in features.items()}
    if name == "mixer":
        rows = {m: v[:, None].repeat(1, model.fusion.length, 1) for m, v in h.items()}
        return mixer(model.fusion, rows, alone, path)
    if name == "bilinear":
        return bilinear(model.fusion, h, alone)
    if alone is not None and name == "shared_head" and path != "zero":
        return h[alone]
    if alone is not None:
        h = {
            m: v if m == alone else h[alone] if path == "self" else torch.zeros_like(v)
            for m, v in h.items()
        }
    return FORMULAE[name](model.fusion, h)
