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
    found = []
    for m in modalities:
        weight = weights.get(m, 1.0)
        found.append(torch.as_tensor(weight, dtype=like.dtype, device=like.device))
    stacked = torch.stack(found)
    return stacked / stacked.sum()


def given(hp: Tensors) -> Tensors:
    """The weights among a trial's hyperparameters, by modality."""
    out: Tensors = {}
    for name, value in hp.items():
        if name.startswith("weights."):
            out[name.removeprefix("weights.")] = value
    return out


def weighted(logits: Tensors, weights: Tensor) -> Tensor:
    """[B, C]: sum over m of weight times logits [B, C]. weights [M], or [M, B] of each sample."""
    stacked = torch.stack(list(logits.values()))
    missing = (1,) * (stacked.ndim - weights.ndim)
    factors = weights.reshape(*weights.shape, *missing).to(stacked.dtype)
    return (factors * stacked).sum(0)


def own_vector(net: Net, modality: str, x: Padded) -> Tensor:
    """[B, W]: features of a modality's input alone, as a fusion that pools them sees them."""
    features = net.encode_one(modality, x)
    out: Tensor = net.apply("fusion", lambda fusion: pooled(features, fusion.pool))
    return out
