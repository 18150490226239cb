"""Gates by the logistic function written out."""

import torch

CASES: dict[str, dict[str, object]] = {
    "gated": {"width": 5},
    "gated-visual": {"width": 5, "gate": "visual"},
    "gated-symmetric": {"width": 5, "symmetric": True},
}


def hidden(fusion, h):
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
