"""Shared head: one linear head for every modality, logits W h_m + b, combined by their mean (MLA,
ReconBoost).

    hidden = (h_1 + .. + h_M) / M,  so that  W hidden + b = the mean over m of (W h_m + b)

Source: MLA (Zhang et al., CVPR 2024) and ReconBoost (Hua et al., ICML 2024). The fusion has no
parameters but the head.

Zeroing leaves h_m / M: the same direction with smaller logits, so a sharper or flatter softmax than
what the modality has of its own. The default is therefore `mask`, which leaves the others out of
the mean: hidden is h_m itself, and the logits are W h_m + b. `self` is the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tune_mm.config import Section
from tune_mm.core.types import DataSpec, Features, Tensors, UnimodalPath
from tune_mm.models.fusions._pairs import Pool, VectorFusion


class SharedHeadConfig(Section):
    """One head for all modalities."""

    name: Literal["shared_head"] = "shared_head"
    # How a sequence becomes a vector: by the mean over its real steps, or by its first step.
    pool: Pool = "mean"


class SharedHeadFusion(VectorFusion):
    """Features [B, T_m, W] or [B, W], all of one width -> hidden [B, W]."""

    Config = SharedHeadConfig
    paths = ("mask", "zero", "self")

    def __init__(self, widths: Mapping[str, int], outputs: int, pool: Pool) -> None:
        super().__init__(widths, pool)
        self.head = nn.Linear(next(iter(widths.values())), outputs)

    @classmethod
    def build(cls, config: Any, spec: DataSpec, widths: Mapping[str, int]) -> SharedHeadFusion:
        """See `LateFusion.build`. Raises ValueError unless all widths are equal."""
        if len(set(widths.values())) != 1:
            raise ValueError(
                f"the shared_head fusion takes features of one width, but got widths={dict(widths)}"
            )
        return cls(widths, spec.task.outputs, config.pool)

    def combine(self, vectors: Tensors) -> Tensor:
        return torch.stack(list(vectors.values())).mean(0)

    def unimodal(self, features: Features, path: UnimodalPath) -> dict[str, Tensor]:
        """See the module docstring."""
        vectors = self._vectors(features)
        if path == "zero":
            return {m: h / len(vectors) for m, h in vectors.items()}
        return vectors


plugin = SharedHeadFusion
