"""Multi-layer perceptron encoder for vectors: `layers` times linear, ReLU and dropout, then
LayerNorm.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from tune_mm.config import Section
from tune_mm.core.types import Padded
from tune_mm.models._dropout import relu_dropout
from tune_mm.models._layers import linear
from tune_mm.models.base import Encoder


class MlpConfig(Section):
    """Sizes of the perceptron."""

    name: Literal["mlp"] = "mlp"
    # Outputs of each linear layer.
    width: int = Field(64, ge=1)
    # Linear layers.
    layers: int = Field(2, ge=1)
    # Probability after each layer.
    dropout: float = Field(0.1, ge=0, lt=1)


class MlpEncoder(Encoder):
    """Padded [B, D] -> Padded [B, W]."""

    Config = MlpConfig
    ranks: ClassVar[tuple[int, ...]] = (1,)
    small: ClassVar[Mapping[str, Any]] = {"width": 6, "dropout": 0.0}

    def __init__(self, inputs: int, width: int, layers: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.dropout = dropout
        self.layers = nn.ModuleList(linear(width if i else inputs, width) for i in range(layers))
        self.norm = nn.LayerNorm(width)

    @classmethod
    def build(cls, config: Any, shape: tuple[int, ...]) -> MlpEncoder:
        """See `Encoder.build`. Raises ValueError for sequences, which need the transformer encoder."""
        if len(shape) != 1:
            raise ValueError(
                f"the mlp encoder takes vectors (D,), but got shape={shape}; use encoder=transformer"
            )
        return cls(shape[0], config.width, config.layers, config.dropout)

    def forward(self, x: Padded) -> Padded:
        value = x.value
        for layer in self.layers:
            value = relu_dropout(layer(value), self.dropout if self.training else 0.0)
        return Padded(self.norm(value))


plugin = MlpEncoder
