"""Transformer encoder of one modality: a linear projection to `width`, positions, pre-norm layers,
a final LayerNorm.

Source: CGGM (NeurIPS 2024), Sec. 4.1 and its public code (width 40, 5 heads). The projection
belongs to the encoder, so methods that scale encoder gradients reach it. A vector [B, D] is a
sequence of one step and comes out as [B, W].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from tune_mm.config import Section
from tune_mm.core.types import Padded
from tune_mm.models._layers import Dropouts, Transformer, linear
from tune_mm.models.base import Encoder


class TransformerConfig(Section):
    """Sizes of the transformer and its dropout probabilities."""

    name: Literal["transformer"] = "transformer"
    # W, a multiple of `heads` (CGGM's public code: 40).
    width: int = Field(40, ge=1)
    # Attention heads (CGGM's public code: 5).
    heads: int = Field(5, ge=1)
    # Pre-norm layers.
    layers: int = Field(4, ge=1)
    # Probability for attention weights.
    dropout_attention: float = Field(0.15, ge=0, lt=1)
    # Probability after the ReLU of a feed-forward block.
    dropout_relu: float = Field(0.15, ge=0, lt=1)
    # Probability for steps with their positions.
    dropout_embed: float = Field(0.2, ge=0, lt=1)
    # Probability for both residual branches of a layer.
    dropout_residual: float = Field(0.1, ge=0, lt=1)
    # Whether padded steps are kept out of the attention (public code: padded zeros attend).
    padding_mask: bool = True


class TransformerEncoder(Encoder):
    """Padded [B, T, D] -> Padded [B, T, W] with the same mask; [B, D] -> [B, W]."""

    Config = TransformerConfig
    ranks: ClassVar[tuple[int, ...]] = (1, 2)
    small: ClassVar[Mapping[str, Any]] = {
        "width": 6,
        "heads": 2,
        "layers": 1,
        "dropout_attention": 0.0,
        "dropout_relu": 0.0,
        "dropout_embed": 0.0,
        "dropout_residual": 0.0,
    }

    def __init__(
        self,
        inputs: int,
        width: int,
        heads: int,
        layers: int,
        dropouts: Dropouts,
        padding_mask: bool = True,
    ) -> None:
        super().__init__()
        self.width = width
        self.padding_mask = padding_mask
        self.project = linear(inputs, width)
        self.body = Transformer(width, heads, layers, dropouts)

    @classmethod
    def build(cls, config: Any, shape: tuple[int, ...]) -> TransformerEncoder:
        """See `Encoder.build`.

        Raises ValueError for images and frames, and when `heads` does not divide `width`.
        """
        if len(shape) not in cls.ranks:
            raise ValueError(
                "the transformer encoder takes vectors (D,) or sequences (T, D), "
                f"but got shape={shape}; use encoder=cnn"
            )
        dropouts = Dropouts(
            attention=config.dropout_attention,
            relu=config.dropout_relu,
            embed=config.dropout_embed,
            residual=config.dropout_residual,
        )
        return cls(
            shape[-1], config.width, config.heads, config.layers, dropouts, config.padding_mask
        )

    def forward(self, x: Padded) -> Padded:
        if x.value.dim() == 2:
            return Padded(self.steps(x.value[:, None], None)[:, 0])
        return Padded(self.steps(x.value, x.mask if self.padding_mask else None), x.mask)

    def steps(self, value: Tensor, keys: Tensor | None) -> Tensor:
        """[B, T, D] -> [B, T, W]."""
        out: Tensor = self.body(self.project(value), keys)
        return out


plugin = TransformerEncoder
