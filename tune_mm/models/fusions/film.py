"""FiLM: a modality's features scaled and shifted by what another one says (Perez et al., AAAI 2018;
OGM-GE, CVPR 2022).

    gamma, beta = split(F h_c)        one linear map F of the condition c, 2 W_o outputs
    hidden      = gamma * h_o + beta  [B, W_o]

More than two modalities: the condition modulates each other one by a map of its own, and the
results stand side by side. `symmetric`: every modality is modulated by all others, side by side as
in MMCosine (ICASSP 2023); gamma and beta are then one linear map of the others' concatenation,
which is the sum of a map of each. A single modality passes as it is. What DGL's public code calls
FiLM is an outer product: `bilinear`.

Zeroing. Without the condition, gamma and beta are F's biases, and h_o passes through a fixed gain;
without h_o, beta is left. Both carry gradient (the biases start at random values other than 0 for
that reason). `self` puts the modality in the others' place as well, and needs equal widths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import model_validator
from torch import Tensor, nn

from tune_mm.config import Section
from tune_mm.core.types import DataSpec
from tune_mm.models.fusions._pairs import ModulatedFusion, Pool, sources_of


class FilmConfig(Section):
    """Feature-wise linear modulation."""

    name: Literal["film"] = "film"
    # The modality that modulates; null: the first.
    condition: str | None = None
    # Whether every modality modulates the others.
    symmetric: bool = False
    # How a sequence becomes a vector: by the mean over its real steps, or by its first step.
    pool: Pool = "mean"

    @model_validator(mode="after")
    def _one_direction_has_a_condition(self) -> FilmConfig:
        if self.symmetric and self.condition is not None:
            raise ValueError("condition has no meaning with symmetric: leave one of them out")
        return self


class FilmFusion(ModulatedFusion):
    """Features [B, T_m, W_m] or [B, W_m] -> hidden [B, sum of the modulated modalities' W_m]."""

    Config = FilmConfig
    paths = ("zero", "mask", "self")

    def __init__(
        self,
        widths: Mapping[str, int],
        sources: Mapping[str, tuple[str, ...]],
        outputs: int,
        pool: Pool,
    ) -> None:
        super().__init__(widths, sources, widths, outputs, pool)
        self.maps = nn.ModuleDict(
            {
                m: nn.Linear(sum(widths[k] for k in names), 2 * widths[m])
                for m, names in sources.items()
                if names
            }
        )

    @classmethod
    def build(cls, config: Any, spec: DataSpec, widths: Mapping[str, int]) -> FilmFusion:
        """See `LateFusion.build`; any widths fit. Raises ValueError for a condition that is no
        modality.
        """
        sources = sources_of(widths, "condition", config.condition, config.symmetric)
        return cls(widths, sources, spec.task.outputs, config.pool)

    def modulate(self, target: str, source: Tensor, value: Tensor) -> Tensor:
        gamma, beta = self.maps[target](source).chunk(2, 1)
        out: Tensor = gamma * value + beta
        return out


plugin = FilmFusion
