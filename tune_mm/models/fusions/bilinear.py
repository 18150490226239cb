"""Bilinear fusion: a linear layer over the outer product of two modalities' features, then the
linear head.

    hidden = W_1 vec(x y^T) + b_1  [B, width]

It is what DGL's public code (ICCV 2025) trains as "FiLM": 134 million parameters for two features
of 512. More than two modalities: the sum over all pairs i < j of W_ij vec(h_i h_j^T), with one
bias. A single modality passes as it is.

Zeroing leaves nothing: the product with zeros is 0, hidden is the bias, and no gradient reaches any
encoder. The only way for a modality alone is `self`, its product with itself, vec(x x^T), in every
pair that it is part of (as in that code); pairs of others are 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from tune_mm.config import Section
from tune_mm.core.types import DataSpec, Features, Tensors, UnimodalPath
from tune_mm.models.fusions._pairs import Pool, VectorFusion

WHY = "the outer product with zeros is zero and leaves the encoders no gradient; use self"


class BilinearConfig(Section):
    """Products of pairs of modalities."""

    name: Literal["bilinear"] = "bilinear"
    # Outputs of W_1; null: the features' width (published: 512, which is ResNet-18's).
    width: int | None = Field(None, ge=1)
    # How a sequence becomes a vector: by the mean over its real steps, or by its first step.
    pool: Pool = "mean"


class BilinearFusion(VectorFusion):
    """Features [B, T_m, W] or [B, W], all of one width -> hidden [B, width].

    `product.weight` is [W_12, W_13 .. ], the pairs' matrices [width, W W] side by side.
    """

    Config = BilinearConfig
    paths = ("self",)
    refused: ClassVar[Mapping[UnimodalPath, str]] = {"zero": WHY, "mask": WHY}

    def __init__(self, widths: Mapping[str, int], width: int, outputs: int, pool: Pool) -> None:
        super().__init__(widths, pool)
        self.pairs = tuple(combinations(widths, 2))
        if self.pairs:
            self.product = nn.Linear(sum(widths[a] * widths[b] for a, b in self.pairs), width)
        self.head = nn.Linear(width if self.pairs else sum(widths.values()), outputs)

    @classmethod
    def build(cls, config: Any, spec: DataSpec, widths: Mapping[str, int]) -> BilinearFusion:
        """See `LateFusion.build`. Raises ValueError unless all widths are equal, which `self`
        needs.
        """
        if len(set(widths.values())) != 1:
            raise ValueError(
                f"the bilinear fusion takes features of one width, but got widths={dict(widths)}"
            )
        if config.width is None:
            width = next(iter(widths.values()))
        else:
            width = config.width
        return cls(widths, width, spec.task.outputs, config.pool)

    def combine(self, vectors: Tensors) -> Tensor:
        if not self.pairs:
            return vectors[next(iter(self.widths))]
        return self._project([_outer(vectors[a], vectors[b]) for a, b in self.pairs])

    def unimodal(self, features: Features, path: UnimodalPath) -> dict[str, Tensor]:
        """See the module docstring."""
        vectors = self._vectors(features)
        if not self.pairs:
            return vectors
        out = {}
        for m, x in vectors.items():
            own = _outer(x, x)
            zero = torch.zeros_like(own)
            out[m] = self._project([own if m in pair else zero for pair in self.pairs])
        return out

    def _project(self, products: list[Tensor]) -> Tensor:
        out: Tensor = self.product(products[0] if len(products) == 1 else torch.cat(products, 1))
        return out


def _outer(x: Tensor, y: Tensor) -> Tensor:
    """vec(x y^T), [B, W W]."""
    return (x[:, :, None] * y[:, None, :]).flatten(1)


plugin = BilinearFusion
