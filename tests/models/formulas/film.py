"""FiLM, sample by sample."""

import torch

CASES: dict[str, dict[str, object]] = {
    "film": {},
    "film-visual": {"condition": "visual"},
    "film-symmetric": {"symmetric": True},
}


def hidden(fusion, h):
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
