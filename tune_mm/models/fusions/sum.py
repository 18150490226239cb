"""Sum: logits = sum_m (W_m h_m + b_m), each modality with its own linear layer (DGL Table 2, OGM's
sum fusion).

The layers are stored as one head: weight [W_1 .. W_M] over the concatenated features and bias b =
sum_m b_m, which is the same function. Each block is initialised as a layer of its own. A modality
alone keeps the whole bias (the others are zeroed, DGL Sec. 3.2); DGL's public code adds that
modality's own bias only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import nn

from tune_mm.config import Section
from tune_mm.core.types import DataSpec
from tune_mm.models.fusions.concat import ConcatFusion


class SumConfig(Section):
    """A head per modality, summed."""

    name: Literal["sum"] = "sum"
    # How a sequence becomes a vector: by the mean over its real steps, or by its first step.
    pool: Literal["mean", "first"] = "mean"


class SumFusion(ConcatFusion):
    """Features [B, T_m, W_m] or [B, W_m] -> hidden [B, sum of W_m], in the order of the modalities."""

    Config = SumConfig

    def __init__(
        self, widths: Mapping[str, int], outputs: int, pool: Literal["mean", "first"]
    ) -> None:
        super().__init__(widths, outputs, pool)
        layers = []
        for width in widths.values():
            layers.append(nn.Linear(width, outputs))
        with torch.no_grad():
            self.head.weight.copy_(torch.cat([layer.weight for layer in layers], 1))
            self.head.bias.copy_(torch.stack([layer.bias for layer in layers]).sum(0))

    @classmethod
    def build(cls, config: Any, spec: DataSpec, widths: Mapping[str, int]) -> SumFusion:
        """See `LateFusion.build`; any widths fit."""
        return cls(widths, spec.task.outputs, config.pool)


plugin = SumFusion
