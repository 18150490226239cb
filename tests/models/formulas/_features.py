"""What the formulas of late fusions share."""

import torch

from tune_mm.core.features import pooled


def means(features):
    """Pooled features, which late fusions read."""
    return {m: pooled(f, "mean") for m, f in features.items()}


def alone_by(path, alone, h):
    """Features with one modality alone: the others are 0, or it takes their place (`self`)."""
    instead = {m: h[alone] if path == "self" else torch.zeros_like(v) for m, v in h.items()}
    return {**instead, alone: h[alone]}
