"""Gated fusion: a modality's projection times the sigmoid gate of another one (Kiela et al., AAAI
2018; OGM-GE, DGL).

    hidden = sigmoid(U h_g) * (V h_o)  [B, width]

More than two modalities: the gate modality opens a gate of its own for each other one, and the
results stand side by side. `symmetric`: every modality's projection is gated by all others, side by
side as in MMCosine (ICASSP 2023); a gate is then the sigmoid of one linear map of the others'
concatenation. A single modality passes as it is.

Zeroing. Without h_o, its projection is V's bias and h_g is left with sigmoid(U h_g) * b_V, a weak
gradient; without h_g, the gate is sigmoid(b_U) and h_o passes through V. `self` puts the modality
in the other's place as well, sigmoid(U h) * (V h), and needs equal widths.

Deviations
    * DGL's public code pairs the projections with themselves for a modality alone, sigmoid(U h_g) *
      (U h_g) and sigmoid(V h_o) * (V h_o). Here the features change places, so that it is the
      trained fusion that a modality passes: the nearest way is `self`; the paper's is `zero`.
    * That code stops the gradient after U and V, which then never learn. Here it is stopped at the
      features.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from tune_mm.config import Section
from tune_mm.core.types import DataSpec
from tune_mm.models.fusions._pairs import ModulatedFusion, Pool, sources_of


class GatedConfig(Section):
    """Features gated by others."""

    name: Literal["gated"] = "gated"
    # The modality that gates; null: the first.
    gate: str | None = None
    # Whether every modality gates the others.
    symmetric: bool = False
    # Columns of one gated projection; null: the width of the features that are gated (published:
    # 512, which is ResNet-18's).
    width: int | None = Field(None, ge=1)
    # How a sequence becomes a vector: by the mean over its real steps, or by its first step.
    pool: Pool = "mean"

    @model_validator(mode="after")
    def _one_direction_has_a_gate(self) -> GatedConfig:
        if self.symmetric and self.gate is not None:
            raise ValueError("gate has no meaning with symmetric: leave one of them out")
        return self


class GatedFusion(ModulatedFusion):
    """Features [B, T_m, W_m] or [B, W_m] -> hidden [B, width times the number of gated modalities]."""

    Config = GatedConfig
    paths = ("zero", "mask", "self")

    def __init__(
        self,
        widths: Mapping[str, int],
        sources: Mapping[str, tuple[str, ...]],
        width: int | None,
        outputs: int,
        pool: Pool,
    ) -> None:
        sizes = {}
        for m, names in sources.items():
            sizes[m] = width if names and width is not None else widths[m]
        super().__init__(widths, sources, sizes, outputs, pool)
        gated = {m: names for m, names in sources.items() if names}
        self.gates = nn.ModuleDict(
            {m: nn.Linear(sum(widths[k] for k in gated[m]), sizes[m]) for m in gated}
        )
        self.projections = nn.ModuleDict({m: nn.Linear(widths[m], sizes[m]) for m in gated})

    @classmethod
    def build(cls, config: Any, spec: DataSpec, widths: Mapping[str, int]) -> GatedFusion:
        """See `LateFusion.build`; any widths fit. Raises ValueError for a gate that is no modality."""
        sources = sources_of(widths, "gate", config.gate, config.symmetric)
        return cls(widths, sources, config.width, spec.task.outputs, config.pool)

    def modulate(self, target: str, source: Tensor, value: Tensor) -> Tensor:
        out: Tensor = self.gates[target](source).sigmoid() * self.projections[target](value)
        return out


plugin = GatedFusion
