"""Squeeze, excite and gate at every stage."""

import torch

from tune_mm.core.types import Padded

CASES: dict[str, dict[str, object]] = {
    "mmtm": {"stages": (1, 2), "ratio": 2.0},
    "mmtm-late": {"stages": (2,), "scale": 1.0},
    "mmtm-early": {"stages": (1,)},
}


def exchanged(model, maps, config, present):
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


def literal(model, config, features, alone, path):
    present = [m for m in features if alone in (None, m)]
    return exchanged(model, features, config, present)
