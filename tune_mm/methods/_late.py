"""Combining the modalities' own logits: weights by modality, and a modality's own vector.

Shape legend: B batch, C outputs, M modalities, W feature width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from tune_mm.core.features import pooled
from tune_mm.core.net import Net
from tune_mm.core.types import Padded, Tensors

# Relative weights by modality; one that is left out weighs 1. `weights.<modality>` may be searched.
Weights = dict[str, Annotated[float, Field(gt=0)]]


def shares(
    weights: Mapping[str, float | Tensor], modalities: Iterable[str], like: Tensor
) -> Tensor:
    """[M]: the weights in the order of the modalities, with a sum of 1, of the type and device of
    `like`.
    """
    found = torch.stack([torch.as_tensor(weights.get(m, 1.0), dtype=like.dtype, device=like.device)
                         for m in modalities])  # fmt: skip
    return found / found.sum()


def given(hp: Tensors) -> Tensors:
    """The weights among a trial's hyperparameters, by modality."""
    found = {}
    for name, value in hp.items():
        if name.startswith("weights."):
            found[name.removeprefix("weights.")] = value
    return found


def weighted(logits: Tensors, weights: Tensor) -> Tensor:
    """[B, C]: sum over m of weight times logits [B, C]. weights [M], or [M, B] of each sample."""
    stacked = torch.stack(list(logits.values()))
    return (
        weights.reshape(*weights.shape, *[1] * (3 - weights.ndim)).to(stacked.dtype) * stacked
    ).sum(0)


def own_vector(net: Net, modality: str, x: Padded) -> Tensor:
    """[B, W]: features of a modality's input alone, as a fusion that pools them sees them."""
    features = net.encode_one(modality, x)
    out: Tensor = net.apply("fusion", lambda fusion: pooled(features, fusion.pool))
    return out
