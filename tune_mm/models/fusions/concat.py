"""Concatenation: each modality pooled over time, side by side, one linear head (DGL's and CGGM's
late fusion).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from tune_mm.config import Section
from tune_mm.core.features import pooled
from tune_mm.core.types import DataSpec, Features, UnimodalPath
from tune_mm.models.base import LateFusion


class ConcatConfig(Section):
    """Features side by side."""

    name: Literal["concat"] = "concat"
    # How a sequence becomes a vector: by the mean over its real steps, or by its first step.
    pool: Literal["mean", "first"] = "mean"


class ConcatFusion(LateFusion):
    """Features [B, T_m, W_m] or [B, W_m] -> hidden [B, sum of W_m], in the order of the modalities."""

    Config: ClassVar[type] = ConcatConfig
    head: nn.Linear

    def __init__(
        self, widths: Mapping[str, int], outputs: int, pool: Literal["mean", "first"]
    ) -> None:
        super().__init__()
        self.pool = pool
        self.blocks = {}
        total = 0
        for m, width in widths.items():
            self.blocks[m] = slice(total, total + width)
            total += width
        self.head = nn.Linear(total, outputs)

    @classmethod
    def build(cls, config: Any, spec: DataSpec, widths: Mapping[str, int]) -> ConcatFusion:
        """See `LateFusion.build`; any widths fit."""
        return cls(widths, spec.task.outputs, config.pool)

    def block(self, modality: str) -> slice:
        return self.blocks[modality]

    def hidden(self, features: Features) -> Tensor:
        return torch.cat([pooled(features[m], self.pool) for m in self.blocks], 1)

    def unimodal(self, features: Features, path: UnimodalPath) -> dict[str, Tensor]:
        """See `LateFusion.unimodal`: zeros outside the modality's block, on either path."""
        total = self.head.in_features
        out = {}
        for m, block in self.blocks.items():
            vector = pooled(features[m], self.pool)
            out[m] = functional.pad(vector, (block.start, total - block.stop))
        return out


plugin = ConcatFusion
