"""Features side by side."""

import torch

CASES: dict[str, dict[str, object]] = {
    "concat": {},
}


def hidden(fusion, h):
    return torch.cat(list(h.values()), 1)
